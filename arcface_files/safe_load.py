"""Tensor files of others, read without running their code or unpacking more than they should hold."""

import io
import pickletools
import re
import zipfile
from pathlib import Path

import torch

MEBIBYTE = 2**20
# Steps of a pickle: a file of 20,000 pairs has less than a million, and each may make an object of 200 bytes.
MAX_STEPS = 2_000_000
# What a state dict asks for. torch's own list has also what makes any amount of memory out of one number.
STATE_DICT = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v[23])?|parameter)|"
    r"torch(\.cuda|\.storage)? \w+Storage|torch (bool|b?float\w+|u?int\d+)"
)


def load_tensors(path, limit):
    """torch.load with weights_only on the CPU, for a file of at most ``limit`` bytes, packed and unpacked.

    Raises:
        ValueError: no regular file, larger than ``limit``; an archive that unpacks to more than its size;
            tensors that claim more than the file holds; names no state dict has. Whatever torch raises.
    """
    data = Path(path).read_bytes() if Path(path).is_file() and Path(path).stat().st_size <= limit else b""
    if not data:
        raise ValueError(f"no file, empty, or larger than {limit / MEBIBYTE:.0f} MiB")
    for pickled in pickles_in(data):
        check_pickle(pickled, STATE_DICT)
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    claimed = 0
    for tensor in tensors_in(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError("a tensor that is not dense")
        # Strides of zero let a few bytes pose as a tensor of any size; copying it would fill the memory.
        claimed += tensor.numel() * tensor.element_size()
    if claimed > len(data):
        raise ValueError(f"tensors of {claimed / MEBIBYTE:.0f} MiB in a file of {len(data)} bytes")
    return content


def pickles_in(data):
    """A stream before each pickle of a file of torch.save: one in an archive, five in a row in an old one."""
    if data[:4] != b"PK\x03\x04":
        yield from [io.BytesIO(data)] * 5
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > len(data):
            raise ValueError(f"unpacks to {unpacked / MEBIBYTE:.0f} MiB")
        for entry in archive.infolist():
            if entry.filename.endswith("data.pkl"):
                yield io.BytesIO(archive.read(entry))


def check_pickle(stream, names=None):
    """Walk over one pickle of a stream without running it.

    Raises:
        ValueError: damaged, longer than MAX_STEPS, a name that is not one of ``names`` (a pattern), or a
            place in the memo beyond all steps, for which the unpickler would make a table of that length.
    """
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step > MAX_STEPS or (opcode.name.endswith("PUT") and argument > MAX_STEPS):
            raise ValueError(f"more than {MAX_STEPS} steps, or a memo for more")
        if names and opcode.name == "GLOBAL" and not names.fullmatch(argument):
            raise ValueError(f"it asks for {argument.replace(' ', '.')}")


def tensors_in(content):
    """All tensors in nested dicts, lists and tuples; each container is looked into once."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if torch.is_tensor(value):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
