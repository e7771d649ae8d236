"""The whole pipeline on the miniature world: lab photos to LoRAs, samples and their report.

    make demo            or      python -m mini.demo --people 3

Runs the public scripts with the mini configs, echoing each command, so that they can be repeated by hand.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.demo")

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from evaluation.commands import run_python
from mini.lab_photos import write_lab_photos
from mini.study_data import BENCHMARK_FIRST
from mini.world.identity import HELD_OUT
from utils.errors import UserError, run
from utils.identities import subfolders

OUTPUT = Path("demo_output")


@dataclass
class DemoConfig:
    """What the demo makes."""

    people: int = 3
    """Miniature people, all held out from training."""
    photos: int = 10
    """Lab photos of each."""
    judge_pack: str | None = None
    """An insightface pack whose recogniser judges the samples; None lets the mini pack judge itself."""


def main():
    """Render lab photos, then extract, train, sample and evaluate by the public scripts."""
    config = tyro.cli(DemoConfig, prog="python -m mini.demo", description=__doc__)
    started = time.perf_counter()
    photos = OUTPUT / "FACE_DATASET"
    there = len(subfolders(photos)) if photos.is_dir() else 0
    if config.people < there:
        raise UserError(f"--people: {OUTPUT} has {there}; ask for as many, or begin anew by make clean")
    if not 1 <= config.people <= BENCHMARK_FIRST - HELD_OUT or config.photos < 2:
        most = BENCHMARK_FIRST - HELD_OUT
        raise UserError(f"--people, --photos: from 1 to {most:,} people, and two photos of each at least")
    print(f"\n{config.people} people held out from training -> {photos}", flush=True)
    write_lab_photos(photos, config.people, config.photos)
    judge = ["--judge-pack", config.judge_pack] if config.judge_pack else []
    run_python("extract_arcface_embeds.py", "--config", "configs/extract_mini.py")
    run_python("train_id_booth.py", "--config", "configs/train_mini.py")
    run_python("inference_id_booth.py", "--config", "configs/inference_mini.py")
    run_python("-m", "evaluation.evaluate", "--config", "configs/evaluate_mini.py", *judge)
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes in all")
    for sheet in sorted((OUTPUT / "Contact_Sheets").glob("*/*.jpg")):
        print(f"contact sheet: {sheet}")
    print(f"report: {OUTPUT / 'evaluation' / 'report.html'}")
    print(f"gallery: {OUTPUT / 'evaluation' / 'gallery.html'}")


if __name__ == "__main__":
    run(main)
