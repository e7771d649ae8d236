"""insightface packs: which folder is meant, and which of its ONNX files is the detector and the recogniser.

A pack is a folder of ONNX files, such as buffalo_l or antelopev2 of insightface. Nothing is ever downloaded.
"""

import contextlib
import io
import os
from functools import cache, lru_cache
from pathlib import Path

from utils.errors import UserError, one_line
from utils.progress import log_once

# Bytes of main memory that onnxruntime's networks may take together; a batch of 64 faces in an IResNet-100
# takes 1.2 GiB. Without it a file of 200 bytes can ask for any amount.
NETWORKS_MEMORY = 8 * 2**30
MODELS_ROOT = Path("~/.insightface/models")
WHERE = (
    f"give a folder with insightface detector and recogniser (.onnx), or unpack one such as buffalo_l "
    f"under {MODELS_ROOT}"
)


def resolve_pack(pack):
    """The pack folder for a path, or for the name of a pack under ~/.insightface/models.

    The nested folder in antelopev2's archive (antelopev2/antelopev2) is looked into.

    Raises:
        UserError: no such folder, or no .onnx file in it.
    """
    candidates = [Path(os.path.expanduser(pack))]
    if len(Path(pack).parts) == 1:
        candidates.append(MODELS_ROOT.expanduser() / pack)
    folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if folder is None:
        raise UserError(f"{pack}: no such face pack; {WHERE}")
    for place in (folder, folder / folder.name):
        if onnx_files(place):
            return place
    raise UserError(f"{folder}: holds no .onnx file; {WHERE}")


def onnx_files(folder):
    """The ONNX files of a folder in alphabetical order, without hidden ones, which macOS leaves."""
    return sorted(path for path in folder.glob("*.onnx") if path.is_file() and path.name[0] != ".")


def pack_models(pack):
    """{"detection": path, "recognition": path} of a pack, told apart by insightface's own rule.

    Five outputs or more make a detector; one square input of at least 112 pixels, divisible by 16, a
    recogniser. The first of each in alphabetical order counts, as in insightface.app.FaceAnalysis.

    Raises:
        UserError: no such pack, or one of the two is missing, or a file is no ONNX network.
    """
    folder = resolve_pack(pack)
    found = {}
    for path in onnx_files(folder):
        found.setdefault(task_of(path, path.stat().st_mtime_ns), path)
    for task, example in (("detection", "det_10g.onnx"), ("recognition", "w600k_r50.onnx")):
        if task not in found:
            raise UserError(f"{folder}: no {task} network here; put one in, such as {example} of buffalo_l")
    return {task: found[task] for task in ("detection", "recognition")}


@lru_cache(maxsize=64)
def task_of(path, _modified):
    """ "detection", "recognition" or "other" for an ONNX file."""
    graph = load_onnx(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(graph.output) >= 5:
        return "detection"
    if not inputs:
        return "other"
    size = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim][2:]
    square = len(size) == 2 and size[0] == size[1]
    # 192 pixels are landmark networks; two inputs are face swappers.
    if square and len(inputs) == 1 and size[0] >= 112 and size[0] != 192 and size[0] % 16 == 0:
        return "recognition"
    return "other"


def load_onnx(path):
    """The parsed ONNX file; UserError when it is missing, damaged, or does not hold its own weights."""
    import onnx  # heavy: only where a network is really read

    if not Path(path).is_file():
        raise UserError(f"{path}: not found; {WHERE}")
    try:
        model = onnx.load(str(path), load_external_data=False)
        outside = any(map(lies_outside, tensors_in(model)))
    except Exception as error:  # protobuf's DecodeError, RecursionError, ...
        raise UserError(f"{path}: not a readable ONNX file ({type(error).__name__}); copy it anew") from error
    if outside:  # other files of any length, or a few numbers that stand for a matrix of any size
        raise UserError(f"{path}: has weights in other files or sparse ones; save it whole and dense")
    return model


def tensors_in(message):
    """Every tensor in a model, those of inner graphs and functions too."""
    for field, value in message.ListFields():
        for part in () if field.message_type is None else value if hasattr(value, "append") else [value]:
            if type(part).__name__ in ("TensorProto", "SparseTensorProto"):
                yield part
            else:
                yield from tensors_in(part)


def lies_outside(tensor):
    """Whether the file does not hold what a tensor claims: in another file, or sparse."""
    return not hasattr(tensor, "data_location") or bool(tensor.data_location or tensor.external_data)


def open_network(path, device="auto"):
    """insightface's model object (session, input_mean, input_std) of a detector or recogniser file.

    Args:
        device: "auto" (CUDA where onnxruntime has it), "cpu", "cuda" or "cuda:1", also as torch.device.

    Raises:
        UserError: the file is missing, damaged, or no network of insightface's kinds.
    """
    import onnxruntime
    import torch
    from insightface.model_zoo import model_zoo

    providers, wanted = ["CPUExecutionProvider"], str(device)
    if wanted != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        current = torch.cuda.current_device() if torch.cuda.is_available() else 0
        number = int(wanted.partition(":")[2] or current)
        # Its default times every algorithm anew for each size of picture or batch.
        options = {"device_id": number, "cudnn_conv_algo_search": "HEURISTIC"}
        providers.insert(0, ("CUDAExecutionProvider", options))
    path = Path(path)
    task_of(path, path.stat().st_mtime_ns if path.is_file() else 0)  # refuses what onnxruntime should not see
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # both libraries print there
            network = model_zoo.get_model(str(path), providers=providers, sess_options=session_options())
    except Exception as error:  # onnxruntime raises its own kinds
        raise UserError(f"{path}: does not open ({one_line(error)[:200]}); copy it anew") from error
    if network is None:
        raise UserError(f"{path}: no network of insightface's kinds; {WHERE}")
    say_where(path.name, network.session.get_providers()[0], wanted, torch)
    return network


def session_options():
    """onnxruntime's settings here: threads as torch's, nothing printed, memory within NETWORKS_MEMORY."""
    import onnxruntime
    import torch

    limit_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and said by whoever catches it
    # One setting for both runtimes (utils.devices.use_threads).
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@cache
def limit_memory():
    """Give all sessions of this process one allocator with a limit."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"max_mem": NETWORKS_MEMORY}))


def say_where(name, provider, wanted, torch):
    """Say once where a network runs, if a GPU was to be expected: onnxruntime falls back without a word."""
    if provider == "CPUExecutionProvider" and (wanted.startswith("cuda") or torch.cuda.is_available()):
        log_once(
            f"{name}: runs on the CPU with {torch.get_num_threads()} threads, since this onnxruntime has no "
            "CUDA; docs/gpu-and-clusters.md says how to install it"
        )
