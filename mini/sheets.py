"""Contact sheets of the miniature world for the README: rendered people, and what the base model draws.

python -m mini.sheets                 # into assets/
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.sheets")

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from id_booth.diffusion.base_model import load_base_model
from id_booth.prompts import portrait_prompt
from id_booth.sampling.contact_sheet import contact_sheet
from id_booth.sampling.provenance import DIGITAL_SOURCE_TYPE, SOURCE_TYPES, jpeg_marks, save_jpeg
from mini.check.base import sample
from mini.face_world import render, sample_identity, sample_view
from mini.paths import WEIGHTS
from mini.world.backgrounds import BACKGROUNDS
from mini.world.identity import HELD_OUT
from utils.errors import run
from utils.outputs import make_folder, open_output
from utils.progress import log
from utils.run_record import PROJECT_ROOT, code_version
from utils.seeding import derive_seed

PEOPLE = 5
FIRST_PERSON = HELD_OUT + 700_000  # people of the sheets only
KINDS = [(gender, pose) for gender in ("male", "female") for pose in ("portrait", "side-portrait")]


@dataclass
class Arguments:
    """Draw the sheets."""

    output: Path = PROJECT_ROOT / "assets"
    """Folder of the two JPEG files."""
    base_model: Path = WEIGHTS / "base"
    """The base model to sample."""
    seed: int = 0
    """Seed of people, views and samples."""


def renders_sheet(seed):
    """A person per row: a lab photo, then a photo in the wild in each place, every second one turned."""
    rows, photos = {}, []
    for number in range(PEOPLE):
        person = sample_identity(FIRST_PERSON + 100 * seed + number)
        photos.append(render(person, sample_view(derive_seed("sheet lab", seed, number), "lab")).image)
        views = [
            sample_view(
                derive_seed("sheet", seed, number, place), "wild", side=bool(column % 2), background=place
            )
            for column, place in enumerate(BACKGROUNDS)
        ]
        name = f"{number + 1}: {person.gender}"
        rows[name] = [render(person, view).image for view in views]
    return contact_sheet("Rendered people", photos, rows, list(BACKGROUNDS), photos_title="lab photo")


def base_sheet(base_model, seed):
    """Samples of no particular identity: a gender and pose per row, a place per column."""
    prompts = [
        portrait_prompt(pose, "", gender, place, "person") for gender, pose in KINDS for place in BACKGROUNDS
    ]
    with tempfile.TemporaryDirectory() as folder:
        images = sample(load_base_model(str(base_model)), Path(folder), "sheet", prompts, seed)
    width = len(BACKGROUNDS)
    rows = {
        f"{gender} {pose.removesuffix('-portrait')}": list(images[width * row : width * (row + 1)])
        for row, (gender, pose) in enumerate(KINDS)
    }
    return contact_sheet("Samples of the base model", [], rows, list(BACKGROUNDS))


def main():
    """Entry point."""
    options = tyro.cli(Arguments, prog="python -m mini.sheets", description=__doc__)
    open_output(options.output, [], shared=True, write=False)
    make_folder(options.output)
    sheets = {
        "renders_sheet": (renders_sheet(options.seed), SOURCE_TYPES + "algorithmicMedia"),
        "base_sheet": (base_sheet(options.base_model, options.seed), DIGITAL_SOURCE_TYPE),
    }
    for name, (sheet, source_type) in sheets.items():
        save_jpeg(options.output / f"{name}.jpg", sheet, jpeg_marks(source_type, code_version()))
        log(f"{options.output / name}.jpg")


if __name__ == "__main__":
    run(main)
