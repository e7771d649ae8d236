"""Writing the trained parts as the bundle that the project ships: mini/weights/base in diffusers' layout."""

import json
from pathlib import Path

from mini.build.base_model import make_pipeline
from utils.files import atomic_path

BASE_LIMIT = 34_000_000
BUNDLE_LIMIT = 40_000_000
ORIGINS = ("_name_or_path", "name_or_path")


def export_base(folder, vae, text_encoder, tokenizer, unet):
    """Write a StableDiffusionPipeline with float16 safetensors to ``folder``; its size in bytes.

    The folder replaces an older one only when it is complete. The text encoder stays in float32:
    transformers loads a network as it was saved, diffusers in float32, and the two must agree for a user who
    names no precision.
    """
    pipe = make_pipeline(vae, text_encoder, tokenizer, unet)
    for part in (pipe.vae, pipe.unet):
        for weight in part.parameters():
            weight.data = weight.data.half()
    with atomic_path(folder) as temporary:
        pipe.save_pretrained(temporary)
        # vocab.json and merges.txt are what other tools read; transformers itself now writes one file.
        vocabulary = json.loads((temporary / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))["model"]
        write_clip_files(temporary / "tokenizer", vocabulary)
        forget_origin(temporary)
    return folder_size(folder)


def forget_origin(folder):
    """Take out of the configs below ``folder`` from where their parts were loaded: a path of this machine."""
    for path in Path(folder).rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in ORIGINS}
        if len(kept) < len(config):
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_clip_files(folder, model):
    """vocab.json and merges.txt of a byte-pair model, in the form of OpenAI CLIP's."""
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")


def folder_size(folder):
    """Bytes of all files under ``folder``."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
