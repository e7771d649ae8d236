"""Inputs of the main scripts to mutate: for each (path, function rng -> mutant, function that reads it)."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import torch

from tests.fuzz_mutations import ODD, Canary, flip, mutate_bytes, mutate_text


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
    from arcface_files.face_records import FaceRecords, network_record
    from arcface_files.stored_faces import StoredFaces
    from id_booth.training.photos import alignment_matrices, face_windows
    from utils.files import sha256_file

    landmarks = [[22.0, 26], [42, 26], [32, 36], [24, 46], [40, 46]]
    paths = [folder / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(b"photo")
    torch.save(torch.zeros(8), folder / "1.pt")
    entry = {
        "status": "ok",
        "sha256": sha256_file(paths[0]),
        "width": 64,
        "height": 64,
        "faces": 1,
        "box": [1, 2, 30, 40],
        "score": 0.9,
        "landmarks": landmarks,
        "embedding_sha256": sha256_file(folder / "1.pt"),
    }
    networks = {"detector": {"file": "d"}, "recogniser": network_record(paths[0])}
    settings = networks | {"multiple_faces": "largest", "crop": "aligned"}
    text = json.dumps(settings | {"images": {path.name: entry for path in paths}})
    path = folder / "faces.json"
    path.write_text(text)
    pool = ThreadPoolExecutor(1)

    def read():
        FaceRecords(folder, settings, 8).keep_up_to_date(paths, pool)
        stored = StoredFaces(folder, "aligned", SimpleNamespace(path=paths[0], embedding_size=8))
        stored.embeddings(stored.photos_named(folder))
        points = [stored.landmarks(path) for path in paths]
        face_windows(alignment_matrices([known for known in points if known is not None]), 8, 8, 1)

    return path, lambda rng: mutate_text(text, rng), read


def metadata_kind(folder):
    """metadata.jsonl of a data set, with the data card made from it."""
    from configs.inference_config import InferenceConfig
    from id_booth.sampling.data_card import write_data_card
    from id_booth.sampling.provenance import FIELDS, finish_metadata, make_record, png_chunks, read_metadata
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
        read_metadata(folder / "set/M")
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
