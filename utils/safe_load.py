"""Tensor files of others, read without running their code or unpacking more than they should hold."""

import io
import zipfile
from pathlib import Path

import torch

MEBIBYTE = 2**20


def load_tensors(path, limit):
    """torch.load with weights_only on the CPU, for a file of at most ``limit`` bytes, packed and unpacked.

    Raises:
        ValueError: larger than ``limit``; an archive that unpacks to more; a tensor that claims more
            than its file holds. Whatever torch raises for a file it cannot read.
    """
    data = Path(path).read_bytes() if Path(path).stat().st_size <= limit else b""
    if not data:
        raise ValueError(f"empty, or larger than {limit / MEBIBYTE:.0f} MiB")
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > limit:
            raise ValueError(f"unpacks to {unpacked / MEBIBYTE:.0f} MiB")
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for tensor in tensors_in(content):
        # Strides of zero let a few bytes pose as a tensor of any size; copying it would fill the memory.
        if tensor.layout == torch.strided and tensor.numel() * tensor.element_size() > limit:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)}")
    return content


def tensors_in(content):
    """All tensors in nested dicts, lists and tuples."""
    if torch.is_tensor(content):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from tensors_in(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from tensors_in(value)
