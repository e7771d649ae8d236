"""Which device a process works on."""

import torch

from utils.errors import UserError


def pick_device(name="auto", state=None):
    """The torch.device for ``name``: "auto" takes this process's CUDA device where there is one.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:1".
        state: accelerate's PartialState when there are several processes, each with its own device.

    Raises:
        UserError: CUDA asked for and not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return state.device if state is not None else torch.device("cuda")
        return torch.device("cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device: {name} asked for, but torch sees no CUDA device; use auto or cpu")
    return torch.device(name)


def out_of_memory(error):
    """Whether an exception says that the memory of a GPU or of the machine is used up."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error) for w in words)
