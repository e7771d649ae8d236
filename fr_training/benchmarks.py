"""Verification benchmarks by name or path: .bin files and lists of pairs of aligned crops."""

import re
from os.path import isfile
from pathlib import Path

import numpy as np

from configs.fr_config import BENCHMARKS
from fr_training.benchmark_bin import check_amount, read_bin
from fr_training.crops import load_crop
from utils.errors import UserError
from utils.files import read_text

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
    """A text file with a pair a line: two crops (relative to the file) and 1 or 0, or LFW's pairs.txt.

    Between them stand tabs, commas or semicolons, which lets names have blanks, or else blanks. LFW says
    "name 1 4" of two photos of one person, "name 1 other 3" of two people's, in name/name_0001.png or .jpg.

    Raises:
        UserError: no text, a line of another form, a missing or wrongly sized crop, no line at all, more
            images than are read at once.
    """
    path = Path(path)
    names, same = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        parts = [part.strip() for part in re.split(r"[,;\t]" if re.search(r"[,;\t]", line) else r"\s+", line)]
        if not line or line.startswith("#") or (not names and all(map(str.isdecimal, parts))):
            continue  # LFW's first line says how many pairs there are
        first, second, flag = lfw_pair(parts) or (parts if len(parts) == 3 else ("", "", ""))
        if flag not in ("0", "1"):
            raise UserError(f"{path}: line {number} is not 'first.png second.png 0|1'")
        names += [first, second]
        same.append(flag == "1")
    if not same:
        raise UserError(f"{path}: holds no pairs")
    check_amount(path, len(names))
    crops = {name: load_crop(crop_file(path.parent / name)) for name in dict.fromkeys(names)}
    return np.stack([crops[name] for name in names]), np.array(same)


def lfw_pair(parts):
    """(first, second, flag) of a line of LFW's pairs.txt, without suffixes; None for another line."""
    if len(parts) == 3:
        parts = [parts[0], parts[1], parts[0], parts[2]]
    if len(parts) != 4 or not all(re.fullmatch(r"\d{1,9}", part) for part in parts[1::2]):
        return None
    (name, number, other, other_number), flag = parts, "1" if parts[0] == parts[2] else "0"
    return f"{name}/{name}_{int(number):04d}", f"{other}/{other}_{int(other_number):04d}", flag


def crop_file(path):
    """The file of a crop that a list may name without its suffix; align_faces.py calls a JPEG's _jpg.png."""
    endings = ("", ".png", "_jpg.png", ".jpg", ".bmp")
    return next((file for file in (Path(f"{path}{end}") for end in endings) if isfile(file)), path)
