"""Mutated inputs for everything that reads files of others: only UserError may come out, and nothing else.

    python -m tests.fuzz --count 3000                     all kinds, 3,000 mutants each
    python -m tests.fuzz --count 300 --kinds bin lora

No mutant may run code (a canary file would appear), write outside its folder, raise anything but UserError,
take more than TIME_LIMIT seconds or more memory than MEMORY_LIMIT.
"""

import argparse
import json
import pickle
import random
import resource
import signal
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from utils.errors import UserError

TIME_LIMIT = 20
MEMORY_LIMIT = 8 * 2**30
ODD = (
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 2000,
    "../../x",
    "/etc/passwd",
    "\0",
    "\ud800",
    "<script>",
    [],
    {},
    [[]],
    [1, 2],
    {"a": {}},
    "ü",
    0.5,
)


class Canary:
    """Unpickled, it would write a file: proof that code has run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def mutate_bytes(data, rng):
    """Flip, drop, repeat, insert or cut bytes; sometimes several of it."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 64))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            data[place:place] = rng.randbytes(length)
        elif kind == 4:
            data = data[:place]
        elif place + 4 <= len(data):
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff"))
    return bytes(data)


def flip(data, rng):
    """A few bytes changed, the length kept: damage that a format's frame does not show."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 4, 32))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def mutate_json(value, rng):
    """The value with one node of its tree changed to something odd, removed or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.1:
            changed[rng.choice(("", "../x", "\0", "images"))] = changed.pop(key)
        elif rng.random() < 0.1:
            del changed[key]
        else:
            changed[key] = mutate_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], mutate_json(value[place], rng), *value[place + rng.randrange(2) :]]
    return rng.choice(ODD)


def mutate_text(text, rng):
    """JSON text changed by its structure or by its bytes; now and then nested without end."""
    if rng.random() < 0.02:
        return b"[" * 100_000
    if rng.random() < 0.3:
        return mutate_bytes(text.encode(), rng)
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 3))):
        value = mutate_json(value, rng)
    return json.dumps(value).encode()


# -------------------------------------------------------------------------------------------------- kinds


def bin_kind(folder):
    """Verification files (.bin)."""
    from fr_training.benchmark_bin import read_bin, write_bin

    path = folder / "pairs.bin"
    pictures = np.random.default_rng(0).integers(0, 255, (8, 112, 112, 3), dtype=np.uint8)
    write_bin(path, pictures, np.array([True, False] * 2))
    seed = path.read_bytes()

    def mutant(rng):
        if rng.random() < 0.2:
            content = [*pictures]
            content[rng.randrange(8)] = Canary(folder / "canary")
            crafted = pickle.dumps((content, [True, False] * 2), rng.choice((0, 2, 4, 5)))
            return mutate_bytes(crafted, rng) if rng.random() < 0.5 else crafted
        if rng.random() < 0.3:
            return flip(seed, rng)
        head = rng.random() < 0.5  # the interesting part of the stream, not the pixels
        return mutate_bytes(seed[:200], rng) + seed[200:] if head else mutate_bytes(seed, rng)

    return path, mutant, lambda: read_bin(path)


def faces_kind(folder):
    """faces.json beside embeddings, read by extraction and by training."""
    from arcface_files.face_records import FaceRecords
    from id_booth.training.photos import alignment_matrices, face_windows, read_landmarks

    landmarks = [[22.0, 26], [42, 26], [32, 36], [24, 46], [40, 46]]
    paths = [folder / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(b"photo")
    entry = {
        "status": "ok",
        "sha256": "b" * 64,
        "width": 64,
        "height": 64,
        "faces": 1,
        "box": [1, 2, 30, 40],
        "score": 0.9,
        "landmarks": landmarks,
        "embedding_sha256": "c" * 64,
    }
    settings = {"detector": {"file": "d"}, "recogniser": {"file": "r"}, "multiple_faces": "largest"}
    text = json.dumps(settings | {"images": {path.name: entry for path in paths}})
    path = folder / "faces.json"
    path.write_text(text)
    pool = ThreadPoolExecutor(1)

    def read():
        FaceRecords(folder, settings, 8).keep_up_to_date(paths, pool)
        points = read_landmarks(paths, folder, [(1.0, 0, 0)] * 3)
        face_windows(alignment_matrices(points), 8, 8, 1)

    return path, lambda rng: mutate_text(text, rng), read


def metadata_kind(folder):
    """metadata.jsonl of a data set, with the data card made from it."""
    from configs.inference_config import InferenceConfig
    from id_booth.sampling.data_card import write_data_card
    from id_booth.sampling.plan import known_images
    from id_booth.sampling.provenance import FIELDS, finish_metadata, make_record, png_chunks
    from utils.images import save_png

    values = {name: "x" for name in FIELDS if name != "digital_source_type"}
    names = [f"ID_1/{number}.png" for number in range(3)]
    records = [make_record(**(values | {"file_name": name, "identity": "ID_1"})) for name in names]
    for record in records:
        save_png(folder / "set/M" / record["file_name"], np.zeros((8, 8, 3), np.uint8), png_chunks(record))
    lines = [json.dumps(record) for record in records]
    path = folder / "set/M/metadata.jsonl"
    path.write_text("\n".join(lines))
    config = InferenceConfig(source_folder=str(folder / "faces"))

    def mutant(rng):
        return b"\n".join(mutate_text(line, rng) if rng.random() < 0.6 else line.encode() for line in lines)

    def read():
        known_images(folder / "set/M")
        finish_metadata(folder / "set/M")
        write_data_card(config, folder / "set")

    return path, mutant, read


def config_kind(folder):
    """Config files with odd values, and odd overrides (the file itself is a program of its user)."""
    import dataclasses

    from configs.extract_config import ExtractConfig
    from configs.inference_config import InferenceConfig
    from configs.train_config import TrainConfig
    from utils.config import BaseConfig, load_config

    path, overrides = folder / "config.py", []
    path.write_text("from configs.train_config import TrainConfig\nconfig = TrainConfig()\n")

    def mutant(rng):
        kind = rng.choice((TrainConfig, InferenceConfig, ExtractConfig))
        names = [field.name for field in dataclasses.fields(kind)]
        values = [f"{rng.choice(names)}={odd_literal(rng)}" for _ in range(rng.choice((1, 2)))]
        name = kind.__name__
        text = f"from {kind.__module__} import {name}\nconfig = {name}({', '.join(values)})\n"
        overrides[:] = [f"--{rng.choice(names)}".replace("_", "-"), str(rng.choice(ODD)).replace("\0", "")]
        overrides[:] = overrides if rng.random() < 0.5 else []
        return text.encode("utf-8", "surrogatepass") if rng.random() < 0.7 else safe_noise(text, rng)

    return path, mutant, lambda: load_config(path, overrides, BaseConfig)


def odd_literal(rng):
    """A Python literal of an odd value."""
    text = repr(rng.choice(ODD))
    return f"float('{text}')" if text in ("nan", "inf") else text


def safe_noise(text, rng):
    """The text with a letter dropped or doubled after the import line: never another program."""
    head, _, rest = text.partition("\n")
    place = rng.randrange(len(rest))
    return (head + "\n" + rest[:place] + rng.choice(("", rest[place] * 2)) + rest[place + 1 :]).encode(
        "utf-8", "surrogatepass"
    )


def lora_kind(folder):
    """LoRA files, as far as putting them into the base model."""
    from id_booth.diffusion.base_model import load_base_model
    from id_booth.diffusion.lora_files import load_lora, unload_lora
    from tests.tiny_base import make_tiny_base, make_tiny_lora

    make_tiny_base(folder / "base")
    make_tiny_lora(folder / "lora", folder / "base")
    path = folder / "lora/pytorch_lora_weights.safetensors"
    seed, base = path.read_bytes(), load_base_model(folder / "base")
    length = int.from_bytes(seed[:8], "little")
    header = seed[8 : 8 + length].decode()

    def mutant(rng):
        kind = rng.random()
        if kind < 0.2:
            return flip(seed, rng)
        if kind < 0.8:
            changed = mutate_text(header, rng) if kind < 0.5 else with_other_notes(header, rng)
            return len(changed).to_bytes(8, "little") + changed + seed[8 + length :]
        return mutate_bytes(seed, rng)

    def read():
        try:
            load_lora(base, path, fuse=True)
        finally:
            unload_lora(base)

    return path, mutant, read


def with_other_notes(header, rng):
    """A safetensors header whose notes on rank, alpha and layers are mutated."""
    content = json.loads(header)
    notes = content["__metadata__"]["lora_adapter_metadata"]
    content["__metadata__"]["lora_adapter_metadata"] = mutate_text(notes, rng).decode("utf-8", "replace")
    return json.dumps(content).encode()


KINDS = {
    "bin": bin_kind,
    "faces": faces_kind,
    "metadata": metadata_kind,
    "config": config_kind,
    "lora": lora_kind,
}


def too_long(*_):
    """SIGALRM: a mutant takes too long."""
    raise TimeoutError(f"more than {TIME_LIMIT} s")


def fuzz(kind, count, seed, folder):
    """Feed ``count`` mutants of a kind to its reader; (accepted, refused, list of faults)."""
    rng = random.Random(f"{kind} {seed}")
    folder = Path(folder) / kind
    folder.mkdir()
    path, mutant, read = KINDS[kind](folder)
    read()  # the file as it should be is accepted
    before = everything(folder.parent)
    accepted, refused, faults = 0, 0, []
    for number in range(count):
        content = mutant(rng)
        path.write_bytes(content)
        signal.alarm(TIME_LIMIT)
        try:
            read()
            accepted += 1
        except UserError as error:
            refused += 1
            if "\n" in str(error):
                faults.append(f"{kind} {number}: message of several lines: {str(error)[:200]!r}")
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}"[:200]
            faults.append(f"{kind} {number}: {text} at {place.name}:{place.lineno}")
        finally:
            signal.alarm(0)
    own = {path, folder / "set/README.md", folder / "set/M/.metadata.jsonl.lock"}
    new = everything(folder.parent) - before - own
    faults += [f"{kind}: wrote {name}" for name in new]
    return accepted, refused, faults


def everything(folder):
    """All files below a folder."""
    return {path for path in Path(folder).rglob("*") if path.is_file()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    signal.signal(signal.SIGALRM, too_long)
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            accepted, refused, faults = fuzz(kind, options.count, options.seed, folder)
            total += len(faults)
            print(
                f"{kind}: {options.count} mutants, {accepted} accepted, {refused} refused in one line, "
                f"{len(faults)} faults",
                *faults[:10],
                sep="\n    ",
                flush=True,
            )
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
