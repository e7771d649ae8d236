"""Acceptance figures of the miniature world, measured on fresh seeds and held-out people.

    python -m mini.check                                        all parts
    python -m mini.check --scale 0.1 --only renderer,detector   a first look at two parts
    python -m mini.check --publish                              the figures go into the bundle's model card

The parts: renderer (speed; YuNet and SFace on its faces), detector, recogniser, base (1,000 samples) and
finetune (20 people, three methods, by the public scripts). Real networks come from ID_BOOTH_FIXTURES.
Intermediate results are kept in the build folder, so the same command goes on where an earlier one stopped.
The exit code is 1 when a figure misses its demand.
"""

import torch
import tyro

from mini.build.model_card import publish_figures
from mini.check.base import check_base
from mini.check.figures import CheckConfig, print_table
from mini.check.finetune import check_finetune
from mini.check.pack import check_detector, check_recogniser
from mini.check.renderer import check_renderer
from utils.errors import UserError
from utils.files import atomic_write_json, read_json
from utils.progress import log

CHECKS = {
    "renderer": check_renderer,
    "detector": check_detector,
    "recogniser": check_recogniser,
    "base": check_base,
    "finetune": check_finetune,
}


def check(config):
    """Measure the parts asked for; their records. Records of parts measured earlier are kept in the file."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    output = config.output or config.build_dir / "check/figures.json"
    parts = config.parts()
    kept = read_json(output)["figures"] if output.exists() else []
    records = {part: [one for one in kept if one["part"] == part] for part in CHECKS}
    for part in parts:
        log(f"check {part}")
        figures = CHECKS[part](config)
        extra = {"scale": config.scale, "seed": config.seed}
        records[part] = [{**f.record(part), **extra} for f in figures]
        everything = [one for of in records.values() for one in of]
        atomic_write_json(output, {"figures": everything})
    measured = [one for part in parts for one in records[part]]
    print_table(measured)
    if config.publish:
        publish_figures(config.weights_dir, everything)
    log(f"figures: {output}")
    return measured


def main():
    """Read the command line, check, and say by the exit code whether all demands are met."""
    config = tyro.cli(CheckConfig, prog="python -m mini.check", description=__doc__)
    if not config.weights_dir.is_dir():
        raise UserError(f"--weights-dir: {config.weights_dir} is no folder; python -m mini.build makes it")
    failed = [one["name"] for one in check(config) if one["verdict"] == "FAIL"]
    if failed:
        log(f"{len(failed)} figures miss their demand: {'; '.join(failed)}")
    return int(bool(failed))
