"""The model card of the shipped bundle, written by the build from the weights and figures that are there."""

from pathlib import Path

from utils.files import atomic_write_text, read_json

TEXT = """---
license: mit
library_name: diffusers
pipeline_tag: text-to-image
---
# The miniature world's networks

Small networks that stand in for Stable Diffusion 2.1 and an insightface pack, so that the whole path can
be run, tested and taught on two CPU cores. `python -m mini.build` makes all of them from nothing.

**No real person is in here.** Every training picture is drawn by `mini/face_world.py` from random
numbers. The faces are cartoons of nobody; nothing learnt on them says anything about recognising real
people, and the pack must not be used for that. Licence: MIT, like the code.

| file | what it is | MB |
|---|---|---|
{files}

## base
A `StableDiffusionPipeline` for 128 x 128 pixels: {pictures} rendered pictures of as many people
(identity seeds 0 to 99,999), half of them mirrored; an 8x autoencoder with 4 channels (no attention, so
a window of the latents decodes as the whole does), a UNet on 16 x 16 latents and a CLIP-style text
encoder, trained jointly for {steps} steps with epsilon prediction, SD 2.1's noise schedule and min-SNR
weighting. Float16 on disk, meant for float32.

Prompts: `face [side-]portrait photo of [young|middle-aged|old] male|female person, <place> background`
with the ten places of the paper, `photo of a person`; use 30 DDPM steps and guidance 5. Other text does
little.

## pack
`det_mini.onnx` (five landmarks, SCRFD form) and `rec_mini.onnx` load with
`insightface.app.FaceAnalysis`.

## Figures
{figures}
"""
NO_FIGURES = "Not measured for this bundle yet."


def write_model_card(weights_dir, steps, pictures):
    """Write README.md in the bundle; figures come from ``figures.json``, if there is one.

    Args:
        steps: training steps of the base model.  pictures: size of its training set.
    """
    weights_dir = Path(weights_dir)
    figures = weights_dir / "figures.json"
    rows = [f"| {name} | {value} |" for name, value in read_json(figures).items()] if figures.exists() else []
    table = "\n".join(["| figure | value |", "|---|---|", *rows]) if rows else NO_FIGURES
    text = TEXT.format(files=file_table(weights_dir), steps=steps, pictures=pictures, figures=table)
    atomic_write_text(weights_dir / "README.md", text)


def file_table(weights_dir):
    """One row per network: path, what it is, size."""
    what = {
        "base/unet": "denoising UNet",
        "base/text_encoder": "text encoder",
        "base/vae": "autoencoder",
        "pack/det_mini.onnx": "face detector",
        "pack/rec_mini.onnx": "face recogniser",
        "pack/rec_mini.safetensors": "the same as a PyTorch IResNet's weights",
    }
    rows = []
    for name, description in what.items():
        path = weights_dir / name
        files = [path] if path.is_file() else path.rglob("*") if path.exists() else []
        if files:
            rows.append(f"| {name} | {description} | {sum(f.stat().st_size for f in files) / 1e6:.1f} |")
    return "\n".join(rows)
