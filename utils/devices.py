"""Which device a process works on, and in which precision."""

import torch

from utils.errors import UserError

DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def pick_dtype(name, device, field="precision"):
    """The torch dtype of ``name`` (a key of DTYPES); fp16 is refused on a CPU, where it crawls.

    Args:
        field: the setting that says so, for the message.
    """
    if name not in DTYPES:
        raise UserError(f"{field}: no {name!r}; choose from {', '.join(DTYPES)}")
    if name == "fp16" and torch.device(device).type == "cpu":
        other = "no" if field == "mixed_precision" else "fp32"
        raise UserError(f"{field}: fp16 needs a GPU and none is in use; set it to {other} or bf16")
    return DTYPES[name]


def out_of_memory(error):
    """Whether an exception says that the memory of a GPU or of the machine is used up."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error) for w in words)
