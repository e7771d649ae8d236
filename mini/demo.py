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

from evaluation.summary import method_table, readable, save_table
from mini.lab_photos import write_lab_photos
from utils.errors import UserError, run
from utils.faces import FaceAnalyser
from utils.run_record import PROJECT_ROOT

OUTPUT = Path("demo_output")


@dataclass
class DemoConfig:
    """What the demo makes."""

    people: int = 3
    """Miniature people, none of whom the base model has ever seen."""
    photos: int = 10
    """Lab photos of each."""


def main():
    """Render, extract, train, sample, measure."""
    config = tyro.cli(DemoConfig, description=__doc__)
    started = time.perf_counter()
    photos = OUTPUT / "FACE_DATASET"
    print(f"\n{config.people} people that the base model has never seen -> {photos}", flush=True)
    write_lab_photos(photos, config.people, config.photos)
    call(["extract_arcface_embeds.py", "--config", "configs/extract_mini.py"])
    call(["train_id_booth.py", "--config", "configs/train_mini.py"])
    call(["inference_id_booth.py", "--config", "configs/inference_mini.py"])
    samples = data_set_folder()
    table = method_table(samples, photos, FaceAnalyser("mini/weights/pack", device="cpu"))
    save_table(table, OUTPUT / "tables")
    print(f"\n{readable(table).to_string()}\n")
    print("Similarity is judged by the recogniser that trained the LoRAs: circular, see the README.")
    for sheet in sorted((samples / "contact_sheets").glob("*.jpg")):
        print(f"contact sheet: {sheet}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; table: {OUTPUT / 'tables' / 'methods.md'}")


def call(arguments):
    """Run one of the public scripts as a user would, echoing the command."""
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, *arguments], cwd=PROJECT_ROOT).returncode
    if code:
        raise UserError(f"{arguments[0]}: ended with exit code {code}; see its messages above")


def data_set_folder():
    """The one data set that inference left."""
    folders = [path for path in (OUTPUT / "Generated_Samples").iterdir() if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    run(main)
