"""Sampling: the published way, ours, and the bare networks.

    python -m benchmarks.sampling                             the miniature world
    python -m benchmarks.sampling --geometry sd21 --steps 2   SD 2.1's size, random weights, few steps
    python -m benchmarks.sampling --geometry sd21 --device cuda --precision bf16      the same on a GPU

The published way loads a pipeline for each identity and method and makes one image per call. Ours loads the
base once, swaps LoRAs in it, and makes batches while the previous images are being written. The floor is the
UNet and the decoder alone on batches of ours' size: no scheduler, no prompts, no LoRA, no files. On a GPU the
published way is in float16 unless ours is in float32; random weights are made there, and not loaded. Images
of ours are also compared with those of batch size 1, and of a batch that two people share.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.sampling")

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
from benchmarks.literal import literal_pipeline, sample_literally
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
from id_booth.diffusion.base_files import base_model_fingerprint
from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.stacked_lora import LORA_FILE, add_stacked_lora, remove_stacked_lora, save_lora
from id_booth.sampling.plan import Plan
from id_booth.sampling.settings import set_folder
from inference_id_booth import Sampler
from mini.lab_photos import write_lab_photos
from utils.claims import Claims
from utils.devices import pick_device, pick_dtype
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

    geometry: Literal["mini", "sd21", "tiny"] = "mini"
    """The miniature world, SD 2.1's size with random weights, or a tiny network of the same form."""
    device: str = "cpu"
    """cpu or cuda; what is not there is refused."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of ours; the published way is in fp16 on a GPU unless this is fp32."""
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
        base = own_base(config, options)
        ways = make_ways(options, config, folder, base)
        if options.only:
            with PeakMemory(options.device) as peak:
                ways[options.only](0)
            return print(json.dumps(peak.mib))
        runs = alternate(ways, options.rounds, warmup=0, device=options.device)
        differences = image_differences(config, folder, base)
        memory = {name: peak_of(name, options, folder) for name in ways if options.memory}
    report_sampling(options, runs, memory, differences)
    return None


def peak_of(name, options, folder):
    """Peak memory of one way, MiB, from a process of its own (models included where the way loads them)."""
    given = {
        "only": name,
        "folder": folder,
        "steps": 2,
        "batch-size": options.batch_size,
    }
    given |= {key: getattr(options, key) for key in ("geometry", "people", "images", "device", "precision")}
    arguments = [word for key, value in given.items() for word in (f"--{key}", value)]
    return in_own_process("benchmarks.sampling", *arguments)


def make_config(options, folder):
    """The config of ours, with photos for the attributes."""
    base = "mini/weights/base"
    if options.geometry != "mini":
        base = sd21_geometry.random_name(options.geometry)
    if options.geometry == "sd21" and options.device == "cpu":
        base = str(folder / "base")
        if not Path(base).is_dir():
            sd21_geometry.make_base(Path(base), torch.float32)
    write_lab_photos(folder / "people", options.people, photos_each=1)
    return InferenceConfig(
        lora_folder=str(folder / "loras"),
        methods=("ID-Booth",),
        source_folder=str(folder / "people"),
        output_folder=str(folder / "samples"),
        base_model=base,
        precision=options.precision,
        device=options.device,
        contact_sheets=False,
        prompt_set=str(options.images),
        steps=options.steps,
        batch_size=options.batch_size,
        cohort_size=1,
        resolution=512 if options.geometry == "sd21" else 128,
        set_name="set",
        decode_batch_size=decode_batch(options),
    )


def decode_batch(options):
    """Images that are decoded together."""
    if options.geometry == "mini":
        return 7
    return 1 if options.device == "cpu" else 8


def own_base(config, options):
    """The BaseModel of random weights that all ways share; None where each loads the base from its folder."""
    if config.base_model != sd21_geometry.random_name(options.geometry):
        return None
    device = pick_device(options.device)
    return sd21_geometry.random_base(options.geometry, pick_dtype(options.precision, device), device)


def write_random_loras(folder, unet, people, rank=4):
    """A LoRA of small random weights for each identity, as training would leave it."""
    layers, _ = add_stacked_lora(unet, ("to_q", "to_k", "to_v", "to_out.0"), people, rank, rank)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers.values():
            for matrix in (layer.down, layer.up):
                matrix.copy_(0.1 * torch.randn(matrix.shape, generator=generator))
    remove_stacked_lora(unet, layers)
    for slot in range(people):
        path = folder / f"loras/ID-Booth/ID_{slot + 1}/checkpoint-0-1" / LORA_FILE
        path.parent.mkdir(parents=True)
        save_lora(path, {"unet": layers}, slot, rank, rank, dora=False)


# ------------------------------------------------------------------------------------------------- the ways


def make_ways(options, config, folder, base=None):
    """dict of name -> function that makes the whole data set anew."""
    sampler = SimpleNamespace(ours=None)
    if not (folder / "loras").is_dir():
        unet = (base or load_base_model(config.base_model)).unet
        write_random_loras(folder, unet, options.people)
    load = published_loader(config, base)

    def ours(_, cohort_size=1):
        sampler.ours = sampler.ours or make_sampler(config, base)
        sample_set(sampler.ours, replace(config, cohort_size=cohort_size), folder / "samples")

    def literal(_):
        plan = make_plan(config)
        for unit in plan.units:
            sample_literally(load, str(unit.lora), plan.items(unit), config.steps, config.guidance)
        shutil.rmtree(folder / "samples")

    def floor(_):
        sampler.ours = sampler.ours or make_sampler(config, base)
        bare_networks(sampler.ours.base, config, options.people * options.images)

    ways = {"literal": literal, "ours": ours, "mixed": lambda _: ours(_, options.people), "floor": floor}
    if not options.only:
        ours(0)  # loads the base model, once for any number of images, so its time is left out
    return ways


def published_loader(config, base):
    """A function that gives the published way's pipeline: loaded anew, or the one of random weights.

    The precision is the published one, float16, unless ours is float32; a CPU has bfloat16 in its place.
    """
    on_cpu, dtype = config.device == "cpu", torch.float32
    if config.precision != "fp32":
        dtype = torch.bfloat16 if on_cpu else torch.float16
    if base is None:
        folder = str(PROJECT_ROOT / config.base_model)
        return lambda: literal_pipeline(folder, dtype, config.device)
    pipe = literal_pipeline(base, dtype)
    return lambda: pipe


def make_plan(config):
    """The sampling plan of a set of which nothing exists yet."""
    return Plan(config, "base", base_model_fingerprint(config.base_model))


def make_sampler(config, base=None):
    """A Sampler with the base model loaded."""
    return Sampler(config, None, pick_device(config.device), None, show_progress=False, base=base)


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
        kind = {"device": base.device, "dtype": base.unet.dtype}
        latents = torch.randn(count, base.unet.config.in_channels, side, side, **kind)
        context = torch.randn(2 * count, length, width, **kind)
        twice = torch.cat([latents] * 2)
        for _ in range(config.steps):
            base.unet(twice, 500, context, return_dict=False)
        for piece in latents.split(config.decode_batch_size):
            base.vae.decode(piece, return_dict=False)


# ------------------------------------------------------------------------------------------------- figures


def image_differences(config, folder, base=None):
    """Largest difference of any pixel between our batches, batch size 1, and batches people share."""
    sampler, pictures = make_sampler(config, base), {}
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
            key: getattr(options, key)
            for key in ("geometry", "precision", "people", "images", "steps", "batch_size")
        },
        "figures": figures,
        "peak_mib": memory,
        "largest_pixel_difference_to_batch_size_1": differences,
    }
    report(f"sampling_{options.geometry}", result, rows, device=options.device)
    print(f"largest pixel difference to batch size 1: {differences}")


if __name__ == "__main__":
    run(main)
