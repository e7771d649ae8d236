"""Face recognition networks with gradients, from the three kinds of file they come in.

.pth and .safetensors hold the state dict of an IResNet (insightface's arcface_torch names), .onnx any
feed-forward recogniser, for instance that of an insightface pack.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from arcface_files.iresnet import INPUT_SIZE, iresnet_from_state_dict
from arcface_files.onnx_module import OnnxModule
from utils.errors import UserError

WHERE = (
    "put the weights there (arcface_files/README.md says where they come from), or name a face pack's "
    "recogniser .onnx"
)


def load_recogniser(path, device="cpu") -> nn.Module:
    """A frozen recogniser: float (N, 3, 112, 112) RGB in [-1, 1] -> float (N, D), not normalised.

    The module is in eval mode, no parameter requires a gradient, the gradient to the input is exact, and
    `embedding_size` is D, and `path` the file.

    Args:
        path: .pth or .pt (read with weights_only), .safetensors, or .onnx.
        device: where the module goes.

    Raises:
        UserError: a missing, damaged or unsafe file, weights of another network, or an unsupported operator.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such recogniser file; {WHERE}")
    readers = {".pth": read_pth, ".pt": read_pth, ".safetensors": read_safetensors}
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        network = OnnxModule(path)
    elif suffix in readers:
        network = iresnet_from_weights(readers[suffix](path), path)
    else:
        raise UserError(f"{path}: a recogniser is a .pth, .safetensors or .onnx file")
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


def read_pth(path):
    """The state dict in a .pth file, under torch's weights_only rule: such a file may not run code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError for code, RuntimeError for a damaged archive, EOFError, ...
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: refused, not a plain state dict of tensors ({reason}); get the file again "
            "from its source"
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state dict of tensors; save network.state_dict() of an IResNet")
    return state


def read_safetensors(path):
    """The tensors in a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); get the file again from its source") from None


def iresnet_from_weights(state, path):
    """An IResNet with these weights, `module.` prefixes of data-parallel training stripped; strict."""
    state = {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }
    try:
        return iresnet_from_state_dict(state)
    except KeyError as error:
        raise UserError(
            f"{path}: not the weights of an IResNet (no {error.args[0]!r}); use a backbone of "
            "insightface's arcface_torch, or the network as .onnx"
        ) from None
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit an IResNet: {condensed(error)}") from None


def probe_embedding_size(network, path):
    """D, by one black image; refuses a network that does not map such images to one vector each."""
    try:
        with torch.inference_mode():
            output = network(torch.full((1, 3, INPUT_SIZE, INPUT_SIZE), -1.0))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path}: does not take (N, 3, 112, 112) images: {condensed(error)}") from None
    return output.shape[1]


def condensed(error):
    """The start of a library's message, on one line."""
    return " ".join(str(error).split())[:300]
