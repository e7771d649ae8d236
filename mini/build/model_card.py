"""The model card of the shipped bundle, written by the build from the weights and figures that are there."""

from pathlib import Path

from mini.build.tokenizer import NAMES
from utils.errors import UserError
from utils.files import atomic_write_json, atomic_write_text, read_json
from utils.text_tables import markdown

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

{files}

## base
A `StableDiffusionPipeline` for 128 x 128 pixels: {pictures} rendered pictures, half of them of {named} people
with names, the others each of another person (identity seeds 0 to 99,999), half of them mirrored; an 8x
autoencoder with 4 channels (no attention, so a window of the latents decodes as the whole does), a UNet on
16 x 16 latents and a CLIP-style text encoder, trained jointly for {steps} steps with epsilon prediction,
SD 2.1's noise schedule and min-SNR weighting. Float16 on disk, meant for float32.

The weights were not trained in one run. The base model took 6,000 steps of batch size 32 (16,000 pictures,
seed 0), the first 3,952 on latents of an earlier autoencoder, trained without perceptual and adversarial
loss. Another 5,000 steps of batch size 64 followed, on other pictures and with a new optimiser: `python -m
mini.build --base-from mini/weights/base --seed 1 --images 32000 --base-batch 64 --base-steps 5000
--base-bfloat16 --no-base-compile`. In the first 2,819 of these, captions did not match their pictures at low
timesteps (t below 400; after step 1,114, t below 600 and with matching names). Samples of one prompt became
more diverse, but fine-tuning preserved identity less well, so this was dropped. The last 3,400 steps were
of batch size 128: `--seed 2 --images 64000 --base-batch 128 --base-steps 3400` (begun with 5,200, shortened
before the learning rate fell). Beside them the decoder went on for 3,000 steps on latents that stayed as
they were: `--stage vae --seed 2 --images 20000 --vae-images 20000 --vae-decoder-steps 3000 --vae-batch 16`.
Detector and recogniser were trained later: the encoder's perceptual loss and the quality network used an
earlier recogniser. The detector's 16,000 steps were three runs (to 6,000, 9,000 and 16,000), each with its
learning rate decayed to the end.

The embedding of the word `sks`, which configs fill with a person, was set after the training to the mean of
the names' embeddings, at their usual norm: a name of nobody in particular, as a rare word is to Stable
Diffusion. These weights had seen `sks` in captions of anybody, had learnt that it names nobody (the cosine of
its embedding with that mean was -.70), and fine-tuning fought that; `mini.build` no longer shows it.
The price: before fine-tuning a prompt with `sks` shows one mean person, who hardly follows words of gender
and age. The figures of base below are of prompts with the bare word `person`, then of the same with `sks`.

Prompts: `face [side-]portrait photo of [young|middle-aged|old] male|female person[ smiling][ with long red
hair and glasses], <place> background` with the ten places of the paper, `photo of a person`; the word before
`person` may be the name of one of the fictional people (`mini.build.captions.names`). Use 30 DDPM steps and
guidance 5. Other text does little.

## pack
`det_mini.onnx` (five landmarks, SCRFD form) and `rec_mini.onnx` load with
`insightface.app.FaceAnalysis`.

## attributes
`attributes.onnx` (made by `mini.build.attribute_classifier`, read by `evaluation/attributes.py`) says what a
picture shows: gender, age, background, frontal or turned, hair, skin, beard, glasses. It judges whether
samples follow their prompts and whether a person's looks are kept.

## quality
`quality.safetensors` is a CR-FIQA network (`evaluation/quality.py` reads it), trained by
`fr_training.train_fr` with the quality head.

## Figures
{figures}
"""
NO_FIGURES = "Not measured for this bundle yet: `python -m mini.check --publish` does."
HEADING = "## Figures\n"
PROVENANCE = "Measured by `python -m mini.check` on fresh seeds and people that no network has seen."


def write_model_card(weights_dir, steps, pictures):
    """Write README.md in the bundle; figures come from its ``figures.json``, if there is one.

    Args:
        steps: training steps of the base model.  pictures: size of its training set.
    """
    weights_dir = Path(weights_dir)
    figures = weights_dir / "figures.json"
    text = TEXT.format(
        files=file_table(weights_dir),
        steps=steps,
        pictures=pictures,
        named=NAMES,
        figures=figure_table(read_json(figures)) if figures.exists() else NO_FIGURES,
    )
    atomic_write_text(weights_dir / "README.md", text)


def publish_figures(weights_dir, records):
    """Put measured figures into the bundle: figures.json, and the figures' section of README.md.

    Args:
        records: mappings of name, demand, shown, sample, verdict, note, scale (mini.check.figures.Figure).
    Raises:
        UserError: the bundle has no model card, or one without a section for figures.
    """
    card = Path(weights_dir) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if HEADING not in text:
        raise UserError(f"{card}: no model card with {HEADING.strip()!r}; run mini.build --stage export")
    before, after = text.split(HEADING, 1)
    rest = after[after.index("\n## ") :] if "\n## " in after else "\n"
    atomic_write_json(Path(weights_dir) / "figures.json", records)
    atomic_write_text(card, before + HEADING + figure_table(records) + rest)


def figure_table(records):
    """Figures as a Markdown table, one block of rows per part."""
    lines, part = [["figure", "demanded", "measured", "on", ""]], None
    for one in records:
        if one["part"] != part:
            part = one["part"]
            lines.append([f"**{part}**", "", "", "", ""])
        small = f" (scale {one['scale']:g})" if one.get("scale", 1) != 1 else ""
        note = f"; {one['note']}" if one["note"] else ""
        lines.append([one["name"] + note, one["demand"], one["shown"], one["sample"] + small, one["verdict"]])
    return f"{PROVENANCE}\n\n{markdown(lines)}"


def file_table(weights_dir):
    """One row per network: path, what it is, size."""
    what = {
        "base/unet": "denoising UNet",
        "base/text_encoder": "text encoder",
        "base/vae": "autoencoder",
        "pack/det_mini.onnx": "face detector",
        "pack/rec_mini.onnx": "face recogniser",
        "pack/rec_mini.safetensors": "the same as a PyTorch IResNet's weights",
        "attributes.onnx": "classifier of gender, age, background, pose and looks, for judging samples",
        "quality.safetensors": "face quality (CR-FIQA)",
    }
    lines = [["file", "what it is", "MB"]]
    for name, description in what.items():
        path = weights_dir / name
        files = [path] if path.is_file() else path.rglob("*") if path.exists() else []
        if files:
            lines.append([name, description, f"{sum(f.stat().st_size for f in files) / 1e6:.1f}"])
    return markdown(lines)
