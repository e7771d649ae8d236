"""Verification benchmarks by name or path: .bin files and lists of pairs of aligned crops."""

import re
from pathlib import Path

import numpy as np

from configs.fr_config import BENCHMARKS
from fr_training.benchmark_bin import check_amount, read_bin
from fr_training.crops import load_crop
from utils.errors import UserError

WHERE = (
    "it comes with insightface's training sets (faces_webface_112x112, faces_emore and others in the dataset "
    "zoo of deepinsight/insightface); put the file there"
)


def find_benchmark(name, folder):
    """The file of a benchmark given by name ("lfw") or path; UserError says where to get a missing one."""
    path = Path(name)
    if path.suffix not in (".bin", ".txt", ".csv"):
        path = Path(folder) / f"{name}.bin"
    if not path.is_file():
        hint = WHERE if path.stem in BENCHMARKS else "check the path"
        raise UserError(f"{path}: benchmark not found; {hint}")
    return path


def load_benchmark(path):
    """Images uint8 (2P, 112, 112, 3) and same flags (P,) of a .bin or a pair list."""
    return read_bin(path) if Path(path).suffix == ".bin" else read_pair_list(path)


def read_pair_list(path):
    """A text file with a pair a line: two crops (relative to the file) and 1 or 0, by blanks or commas.

    Raises:
        UserError: no text, a line of another form, a missing or wrongly sized crop, no line at all, more
            images than are read at once.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({error}); give a pair of crops a line") from error
    names, same = [], []
    for number, line in enumerate(lines, 1):
        parts = [part for part in re.split(r"[,\s]+", line.strip()) if part]
        if not parts or line.startswith("#"):
            continue
        if len(parts) != 3 or parts[2] not in ("0", "1"):
            raise UserError(f"{path}: line {number} is not 'first.png second.png 0|1'")
        names += parts[:2]
        same.append(parts[2] == "1")
    if not same:
        raise UserError(f"{path}: holds no pairs")
    check_amount(path, len(names))
    crops = {name: load_crop(path.parent / name) for name in dict.fromkeys(names)}
    return np.stack([crops[name] for name in names]), np.array(same)
