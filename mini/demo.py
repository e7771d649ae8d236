"""The whole path on the embedded default: lab photos in, an identity data set out, measured.

    make demo            or      python -m mini.demo --people 3

Runs the public scripts with the mini configs, echoing each command, so that they can be repeated by hand.
"""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from mini.lab_photos import write_lab_photos
from utils.errors import UserError, run
from utils.run_record import PROJECT_ROOT

OUTPUT = Path("demo_output")


@dataclass
class DemoConfig:
    """What the demo makes."""

    people: int = 3
    """Miniature people, none of whom any network has ever seen."""
    photos: int = 10
    """Lab photos of each."""
    judge_pack: str | None = None
    """An insightface pack whose recogniser judges the samples; None lets the mini pack judge itself."""


def main():
    """Render lab photos, then extract, train, sample and evaluate by the public scripts."""
    config = tyro.cli(DemoConfig, description=__doc__)
    started = time.perf_counter()
    photos = OUTPUT / "FACE_DATASET"
    print(f"\n{config.people} people that the base model has never seen -> {photos}", flush=True)
    write_lab_photos(photos, config.people, config.photos)
    judge = ["--judge-pack", config.judge_pack] if config.judge_pack else []
    call(["extract_arcface_embeds.py", "--config", "configs/extract_mini.py"])
    call(["train_id_booth.py", "--config", "configs/train_mini.py"])
    call(["inference_id_booth.py", "--config", "configs/inference_mini.py"])
    call(["-m", "evaluation.evaluate", "--config", "configs/evaluate_mini.py", *judge])
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes in all")
    for sheet in sorted((OUTPUT / "Generated_Samples").glob("*/contact_sheets/*.jpg")):
        print(f"contact sheet: {sheet}")
    print(f"report: {OUTPUT / 'evaluation' / 'report.html'}")


def call(arguments):
    """Run one of the public scripts as a user would, echoing the command."""
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, *arguments], cwd=PROJECT_ROOT).returncode
    if code:
        raise UserError(f"{shlex.join(arguments)}: ended with exit code {code}; see its messages above")


if __name__ == "__main__":
    run(main)
