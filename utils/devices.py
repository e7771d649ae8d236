"""Which device a process works on, and in which precision."""

import os
import re
from itertools import chain

import torch

from utils.errors import UserError

DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name="auto", state=None):
    """The torch.device for ``name``: "auto" takes this process's CUDA device where there is one.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:1".
        state: accelerate's PartialState when there are several processes, each with its own device.

    Raises:
        UserError: another name, or CUDA or one of its devices asked for and not there.
    """
    if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", name):
        kind = "Apple's GPU is not supported" if name.startswith("mps") else f"no {name!r}"
        raise UserError(f"device: {kind}; choose auto, cpu, cuda, or cuda:1 for the second one")
    if name == "auto":
        cuda = torch.device("cuda") if state is None else state.device
        return cuda if torch.cuda.is_available() else torch.device("cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device: {name} asked for, but torch sees no CUDA device; use auto or cpu")
    if int(name.partition(":")[2] or 0) >= max(1, torch.cuda.device_count()):
        raise UserError(f"device: no {name}, there are {torch.cuda.device_count()} from cuda:0 on")
    if ":" in name:
        torch.cuda.set_device(name)  # for streams, graphs and libraries, which ask for the current one
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


def to_device(tensor, device):
    """A CPU tensor on the device; from pinned memory, so that nobody waits for the copy to a GPU."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def device_of(network):
    """Where a network's weights are."""
    return next(chain(network.parameters(), network.buffers())).device


def use_threads(wanted=None):
    """Let torch and onnxruntime use ``wanted`` CPU threads; None: this process's share of the cores.

    Launchers set OMP_NUM_THREADS to 1 where nobody else has set it, which starves what runs on the CPU.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    if not wanted and processes:
        wanted = max(torch.get_num_threads(), (os.cpu_count() or 1) // processes)
    if wanted:
        torch.set_num_threads(wanted)


def out_of_memory(error):
    """Whether an exception says that the memory of a GPU or of the machine is used up."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error) for w in words)
