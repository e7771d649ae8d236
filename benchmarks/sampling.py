"""Sampling: the published way, ours, and the bare networks.

    python -m benchmarks.sampling                             the miniature world
    python -m benchmarks.sampling --geometry sd21 --steps 2   SD 2.1's size, random weights, few steps

The published way loads a pipeline for each identity and method and makes one image per call. Ours loads the
base once, swaps LoRAs in it, and makes batches while the previous images are being written. The floor is the
UNet and the decoder alone on batches of ours' size: no scheduler, no prompts, no LoRA, no files. Images of
ours are also compared with those of batch size 1, and of a batch that two people share.
"""

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import tyro

from benchmarks import sd21_geometry
from benchmarks.literal import sample_literally
from benchmarks.measure import (
    PeakMemory,
    alternate,
    check_done,
    describe_runs,
    in_own_process,
    report,
    speed_rows,
)
from configs.inference_config import InferenceConfig
from id_booth.diffusion.base_model import base_model_fingerprint, load_base_model
from id_booth.diffusion.stacked_lora import LORA_FILE, add_stacked_lora, save_lora
from id_booth.sampling.plan import Plan
from id_booth.sampling.settings import set_folder
from inference_id_booth import Sampler
from mini.lab_photos import write_lab_photos
from utils.claims import Claims
from utils.errors import run
from utils.images import load_image
from utils.run_record import PROJECT_ROOT

WAYS = {
    "literal": "published way",
    "ours": "ours",
    "mixed": "ours, people sharing batches",
    "floor": "UNet and decoder alone",
}


@dataclass
class SamplingBenchmark:
    """What to measure."""

    geometry: Literal["mini", "sd21"] = "mini"
    """The miniature world, or SD 2.1's size with random weights."""
    people: int = 2
    """Identities, each with a LoRA of its own."""
    images: int = 21
    """Images per identity."""
    steps: int = 30
    """Denoising steps."""
    batch_size: int = 21
    """Images per batch of ours."""
    rounds: int = 3
    """Data sets made by each way."""
    only: str = ""
    """Run this way once and print its peak memory (used by the benchmark itself)."""
    memory: bool = True
    """Measure peak memory, each way in a process of its own."""
    folder: str = ""
    """Where base model and LoRAs are, or go; a temporary folder when empty."""


def main():
    """Make LoRAs, run all ways, compare images, report."""
    options = tyro.cli(SamplingBenchmark, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        config = make_config(options, folder)
        ways = make_ways(options, config, folder)
        if options.only:
            with PeakMemory() as peak:
                ways[options.only](0)
            return print(json.dumps(peak.mib))
        runs = alternate(ways, options.rounds, warmup=0)
        differences = image_differences(config, folder)
        memory = {name: peak_of(name, options, folder) for name in ways if options.memory}
    report_sampling(options, runs, memory, differences)
    return None


def peak_of(name, options, folder):
    """Peak memory of one way, MiB, from a process of its own (models included where the way loads them)."""
    given = {
        "only": name,
        "folder": folder,
        "geometry": options.geometry,
        "people": options.people,
        "images": options.images,
        "steps": 2,
        "batch-size": options.batch_size,
    }
    arguments = [word for key, value in given.items() for word in (f"--{key}", value)]
    return in_own_process("benchmarks.sampling", *arguments)


def make_config(options, folder):
    """The config of ours, with photos for the attributes and a random LoRA for each identity."""
    base = "mini/weights/base"
    if options.geometry == "sd21":
        base = str(folder / "base")
        if not Path(base).is_dir():
            sd21_geometry.make_base(Path(base), torch.float32)
    write_lab_photos(folder / "people", options.people, photos_each=1)
    config = InferenceConfig(
        lora_folder=str(folder / "loras"),
        methods=("ID-Booth",),
        source_folder=str(folder / "people"),
        output_folder=str(folder / "samples"),
        base_model=base,
        precision="fp32",
        contact_sheets=False,
        prompt_set=str(options.images),
        steps=options.steps,
        batch_size=options.batch_size,
        cohort_size=1,
        resolution=128 if options.geometry == "mini" else 512,
        set_name="set",
        decode_batch_size=7 if options.geometry == "mini" else 1,
    )
    if not (folder / "loras").is_dir():
        write_random_loras(folder, base, options.people)
    return config


def write_random_loras(folder, base, people, rank=4):
    """A LoRA of small random weights for each identity, as training would leave it."""
    unet = load_base_model(base).unet
    layers, _ = add_stacked_lora(unet, ("to_q", "to_k", "to_v", "to_out.0"), people, rank, rank)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers.values():
            for matrix in (layer.down, layer.up):
                matrix.copy_(0.1 * torch.randn(matrix.shape, generator=generator))
    for slot in range(people):
        path = folder / f"loras/ID-Booth/ID_{slot + 1}/checkpoint-0-1" / LORA_FILE
        path.parent.mkdir(parents=True)
        save_lora(path, {"unet": layers}, slot, rank, rank, dora=False)


# ------------------------------------------------------------------------------------------------- the ways


def make_ways(options, config, folder):
    """dict of name -> function that makes the whole data set anew."""
    sampler = SimpleNamespace(ours=None)

    def ours(_, cohort_size=1):
        sampler.ours = sampler.ours or make_sampler(config)
        sample_set(sampler.ours, replace(config, cohort_size=cohort_size), folder / "samples")

    def literal(_):
        plan = make_plan(config)
        for unit in plan.units:
            sample_literally(
                str(PROJECT_ROOT / config.base_model),
                str(unit.lora),
                plan.items(unit),
                config.steps,
                config.guidance,
            )
        shutil.rmtree(folder / "samples")

    def floor(_):
        sampler.ours = sampler.ours or make_sampler(config)
        bare_networks(sampler.ours.base, config, options.people * options.images)

    ways = {"literal": literal, "ours": ours, "mixed": lambda _: ours(_, options.people), "floor": floor}
    if not options.only:
        ours(0)  # loads the base model, once for any number of images, so its time is left out
    return ways


def make_plan(config):
    """The sampling plan of a set of which nothing exists yet."""
    return Plan(config, "base", base_model_fingerprint(config.base_model))


def make_sampler(config):
    """A Sampler with the base model loaded."""
    return Sampler(config, None, torch.device("cpu"), None, show_progress=False)


def sample_set(sampler, config, output, keep=False):
    """Make the set with a loaded sampler, and delete it unless ``keep``."""
    sampler.config, sampler.batch_size, sampler.plan = config, config.batch_size, make_plan(config)
    with Claims(set_folder(config)) as sampler.claims:
        rows = sampler.make(sampler.plan.bundles())
    check_done(rows)
    if not keep:
        shutil.rmtree(output)


@torch.inference_mode()
def bare_networks(base, config, images):
    """Only the UNet calls and decodes of that many images, in batches."""
    side = config.resolution // base.latent_factor
    width, length = base.unet.config.cross_attention_dim, base.text_encoder.config.max_position_embeddings
    for start in range(0, images, config.batch_size):
        count = min(config.batch_size, images - start)
        latents = torch.randn(count, base.unet.config.in_channels, side, side)
        context = torch.randn(2 * count, length, width)
        twice = torch.cat([latents] * 2)
        for _ in range(config.steps):
            base.unet(twice, 500, context, return_dict=False)
        for piece in latents.split(config.decode_batch_size):
            base.vae.decode(piece, return_dict=False)


# ------------------------------------------------------------------------------------------------- figures


def image_differences(config, folder):
    """Largest difference of any pixel between our batches, batch size 1, and batches people share."""
    sampler, pictures = make_sampler(config), {}
    few = replace(config, prompt_set="3", steps=min(4, config.steps))
    settings = {
        "batch": {"batch_size": 3},
        "single": {"batch_size": 1, "decode_batch_size": 1},
        "mixed": {"batch_size": 5, "cohort_size": 2},
    }
    for name, changes in settings.items():
        output = folder / "samples"
        sample_set(sampler, replace(few, **changes), output, keep=True)
        pictures[name] = np.stack([load_image(path) for path in sorted(output.glob("*/*/*/*.png"))])
        shutil.rmtree(output)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder / "samples")
    return {
        name: int(np.abs(pictures[name].astype(int) - pictures["single"]).max())
        for name in ("batch", "mixed")
    }


def report_sampling(options, runs, memory, differences):
    """Print the table and keep the figures."""
    count = options.people * options.images
    figures = {name: describe_runs(run) for name, run in runs.items()}
    rows = speed_rows(figures, WAYS, "sampling", "s per image", 1 / count, 4)
    rows = [
        {**row, "peak memory, MiB": memory.get(name, "")} for row, name in zip(rows, figures, strict=True)
    ]
    result = {
        "options": {
            key: getattr(options, key) for key in ("geometry", "people", "images", "steps", "batch_size")
        },
        "figures": figures,
        "peak_mib": memory,
        "largest_pixel_difference_to_batch_size_1": differences,
    }
    report(f"sampling_{options.geometry}", result, rows)
    print(f"largest pixel difference to batch size 1: {differences}")


if __name__ == "__main__":
    run(main)
