"""Whether time and memory grow linearly: training of 1, 4 and 16 identities, sampling of 100 to 10,000
images.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --identities 1 4 --images 100 1000

Each number has a process of its own, so that its peak memory is its own. Networks are loaded before the clock
starts; reading and encoding the photos, checkpoints, logs, PNGs and metadata are inside. Sampling takes one
denoising step without guidance, so that the networks do not hide the cost of the rest.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.scaling")

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from arcface_files.people import find_identities
from benchmarks.measure import CLOCK, CLOCKS, PeakMemory, check_done, in_own_process, read_weights, report
from benchmarks.settings import make_fine_tuning, make_setting
from configs.inference_config import BASELINE, InferenceConfig
from id_booth.diffusion.base_files import base_model_fingerprint
from id_booth.sampling.plan import Plan
from id_booth.sampling.settings import set_folder
from inference_id_booth import Sampler
from mini.lab_photos import write_lab_photos
from utils.claims import Claims
from utils.errors import run


@dataclass
class ScalingBenchmark:
    """What to measure."""

    identities: tuple[int, ...] = (1, 4, 16)
    """Numbers of people to train."""
    steps: int = 40
    """Training steps of each."""
    images: tuple[int, ...] = (100, 1000, 10_000)
    """Numbers of images to sample."""
    only: Literal["", "identities", "images"] = ""
    """Measure the first number of this and print it (used by the benchmark itself)."""


def main():
    """Measure each number in its own process and report."""
    options = tyro.cli(ScalingBenchmark, description=__doc__)
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            measure = {"identities": train_people, "images": sample_images}[options.only]
            return print(json.dumps(measure(Path(folder), options)))
    rows = []
    for kind in ("identities", "images"):
        for number in getattr(options, kind):
            figures = in_own_process(
                "benchmarks.scaling", "--only", kind, f"--{kind}", number, "--steps", options.steps
            )
            rows.append(
                {
                    "unit": kind,
                    "number": number,
                    "ms per unit": round(1000 * figures["seconds"] / number, 2),
                    "peak memory above the networks, MiB": figures["mib"],
                }
            )
    report("scaling", {"steps": options.steps}, rows)
    return None


def train_people(folder, options):
    """Seconds and peak memory of training some people one after another."""
    number = options.identities[0]
    config = make_setting(folder, "mini", number, photos_each=4, class_images=8)
    config = replace(config, max_train_steps=options.steps)
    fine_tuning, _ = make_fine_tuning(config, "mini")
    read_weights(fine_tuning.models.unet, fine_tuning.models.vae, fine_tuning.models.base.text_encoder)
    with PeakMemory() as peak:
        started = CLOCKS[CLOCK]()
        with fine_tuning.claims:
            rows = fine_tuning.train_identities(find_identities(config.source_folder))
        seconds = CLOCKS[CLOCK]() - started
    check_done(rows)
    return {"seconds": seconds, "mib": peak.mib}


def sample_images(folder, options):
    """Seconds and peak memory of sampling that many images of the base model."""
    number = options.images[0]
    write_lab_photos(folder / "faces", 1, photos_each=1)
    config = InferenceConfig(
        lora_folder=str(folder / "loras"),
        methods=(BASELINE,),
        source_folder=str(folder / "faces"),
        output_folder=str(folder / "samples"),
        base_model="mini/weights/base",
        precision="fp32",
        steps=1,
        guidance=1.0,
        resolution=128,
        batch_size=20,
        decode_batch_size=10,
        prompt_set=str(number),
        contact_sheets=False,
    )
    sampler = Sampler(config, None, torch.device("cpu"), None, show_progress=False)
    read_weights(sampler.base.unet, sampler.base.vae, sampler.base.text_encoder)
    with PeakMemory() as peak:
        started = CLOCKS[CLOCK]()
        sampler.plan = Plan(config, "base", base_model_fingerprint(config.base_model))
        with Claims(set_folder(config)) as sampler.claims:
            rows = sampler.make(sampler.plan.bundles())
        seconds = CLOCKS[CLOCK]() - started
    check_done(rows)
    return {"seconds": seconds, "mib": peak.mib}


if __name__ == "__main__":
    run(main)
