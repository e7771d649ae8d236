"""Face recognition networks with gradients, from the three kinds of file they come in.

.pth and .safetensors hold the state dict of an IResNet (insightface's arcface_torch names), .onnx any
feed-forward recogniser, for instance that of an insightface pack.
"""

import contextlib
import os
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from arcface_files.counted_memory import CountedMemory
from arcface_files.iresnet import INPUT_SIZE, iresnet_from_state_dict
from arcface_files.onnx_module import OnnxModule
from arcface_files.safe_load import load_tensors
from utils.errors import UserError

GIBIBYTE = 2**30
# Limits for a network of others: its file and weights, and what it computes of one face. IResNet-100 has 0.25
# and takes 0.12 GiB.
MAX_WEIGHTS, MAX_FACE = 2 * GIBIBYTE, GIBIBYTE
MAX_TENSORS = 10_000  # IResNet-200 has 1,900
# Where a checkpoint of a training keeps the network, and what wrappers (data-parallel, compiled, Lightning)
# put before its names.
CHECKPOINT_KEYS = ("state_dict_backbone", "state_dict", "backbone", "model")
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|backbone)\.)+")
WHERE = (
    "put the weights there (arcface_files/README.md says where they come from), or name a face pack's "
    "recogniser .onnx"
)


def load_recogniser(path, device="cpu") -> nn.Module:
    """A frozen recogniser: float (N, 3, 112, 112) RGB in [-1, 1] -> float (N, D), not normalised.

    The module is in eval mode, no parameter requires a gradient, the gradient to the input is exact, and
    `embedding_size` is D, and `path` the file.

    Args:
        path: .pth, .pt or .ckpt (read with weights_only), .safetensors, or .onnx.
        device: where the module goes.

    Raises:
        UserError: a missing, damaged or unsafe file, weights of another network, or an unsupported operator.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise UserError(f"{path}: no such recogniser file; {WHERE}")
    readers = {".pth": read_pth, ".pt": read_pth, ".ckpt": read_pth, ".safetensors": read_safetensors}
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        network = read_onnx(path)
    elif suffix in readers:
        network = iresnet_from_weights(readers[suffix](path), path)
    else:
        raise UserError(f"{path}: a recogniser is a .pth, .ckpt, .safetensors or .onnx file")
    network = network.eval().requires_grad_(False)
    network.path, network.embedding_size = path, probe_embedding_size(network, path)
    return network.to(device)


def recogniser_dim(recogniser):
    """Length D of the embeddings of a recogniser, given the module or its file."""
    return (recogniser if isinstance(recogniser, nn.Module) else load_recogniser(recogniser)).embedding_size


def recogniser_input(crops):
    """uint8 RGB faces (N, 112, 112, 3) as recognisers want them: float (N, 3, 112, 112) in [-1, 1]."""
    return torch.as_tensor(crops).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def embed_crops(crops, recogniser, batch_size=64):
    """Embeddings, without gradient, of uint8 RGB faces (N, 112, 112, 3): float32 (N, D) on the CPU."""
    device = next(iter(recogniser.state_dict().values())).device
    embeddings = torch.zeros(len(crops), recogniser.embedding_size)
    with torch.inference_mode():
        for start in range(0, len(crops), batch_size):
            batch = torch.as_tensor(crops[start : start + batch_size]).to(device)
            embeddings[start : start + batch_size] = recogniser(recogniser_input(batch)).float().cpu()
    return embeddings


def read_onnx(path):
    """An :class:`OnnxModule`, whatever the file asks for; UserError for a graph that cannot be a network."""
    try:
        with CountedMemory(MAX_WEIGHTS):
            return OnnxModule(path)
    except UserError:
        raise
    except Exception as error:  # a crafted graph can fail anywhere
        raise UserError(f"{path}: not a network that can be read ({told(error)}); get it again") from error


def read_pth(path):
    """The state dict in a .pth file, under torch's weights_only rule: such a file may not run code."""
    try:
        state = load_tensors(path, MAX_WEIGHTS)
    except Exception as error:  # UnpicklingError for code, RuntimeError for a damaged archive, EOFError, ...
        raise UserError(
            f"{path}: refused, not a plain state dict of tensors ({told(error)[:120]}); get the file again "
            "from its source"
        ) from None
    if isinstance(state, dict):
        state = next((state[name] for name in CHECKPOINT_KEYS if isinstance(state.get(name), dict)), state)
    plain = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    if not plain or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: holds no state dict of tensors; save network.state_dict() of an IResNet")
    return state


def read_safetensors(path):
    """The tensors in a .safetensors file."""
    from safetensors.torch import load_file

    if Path(path).stat().st_size > MAX_WEIGHTS:
        raise UserError(f"{path}: larger than {MAX_WEIGHTS / GIBIBYTE:.0f} GiB; no face network is")
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # SafetensorError, or KeyError for a type of number that torch lacks
        raise UserError(f"{path}: damaged ({told(error)}); get the file again from its source") from None


def iresnet_from_weights(state, path):
    """An IResNet with these weights, prefixes of wrappers stripped; strict."""
    try:
        state = {
            WRAPPERS.sub("", name): value.float() if value.is_floating_point() else value
            for name, value in state.items()
        }
        blocks = {".".join(name.split(".")[:2]) for name in state if name.startswith("layer")}
        if not 10 * len(blocks) < len(state) < MAX_TENSORS:  # a block has 15 or more
            raise RuntimeError(f"{len(state)} tensors of {len(blocks)} blocks")
        # First without memory: one thin tensor of 100,000 rows makes a layer of 360 GB.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied
            iresnet_from_state_dict(state)
        return iresnet_from_state_dict(state)
    except KeyError as error:
        raise UserError(
            f"{path}: not the weights of an IResNet (no {error.args[0]!r}); use a backbone of "
            "insightface's arcface_torch, or the network as .onnx"
        ) from None
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path}: does not fit an IResNet: {condensed(error)}") from None


def probe_embedding_size(network, path):
    """D, by one black image; refuses a network that does not map such images to one vector each."""
    # What an IResNet computes is in proportion to its weights; a graph may do anything.
    counted = CountedMemory(MAX_FACE) if isinstance(network, OnnxModule) else contextlib.nullcontext()
    try:
        with torch.inference_mode(), counted:
            return network(torch.full((1, 3, INPUT_SIZE, INPUT_SIZE), -1.0)).shape[1]
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{path}: does not take (N, 3, 112, 112) images: {condensed(error)}") from None


def told(error):
    """What a library says of a problem, on one line; some say nothing but their kind."""
    return condensed(error) or type(error).__name__


def condensed(error):
    """The start of a library's message, on one line."""
    return " ".join(str(error).split())[:300]
