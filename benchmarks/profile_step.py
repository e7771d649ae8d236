"""Where a step's time goes: its parts, with and without an identity term, and the longest operators.

python -m benchmarks.profile_step                      the fast recipe on the miniature
python -m benchmarks.profile_step --geometry sd21 --steps 1
python -m benchmarks.profile_step --cohort 8           eight identities in one batch
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.profile_step")

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.measure import report
from benchmarks.settings import FAST, PUBLISHED, make_cohort, make_fine_tuning, make_setting
from benchmarks.train_step import EvenSteps, fill_adapters
from utils.errors import run

OPERATORS = 12
BACKWARD = "autograd::engine::evaluate_function"


@dataclass
class ProfileConfig:
    """What to look at."""

    geometry: Literal["mini", "sd21"] = "mini"
    """The miniature world, or SD 2.1's size with random weights."""
    recipe: Literal["fast", "published"] = "fast"
    """The fast recipe, or the published one with caches."""
    cohort: int = 1
    """Identities in the batch."""
    steps: int = 10
    """Steps profiled of each kind."""


def main():
    """Profile steps below and above the fast recipe's limit on the timestep."""
    options = tyro.cli(ProfileConfig, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        config = make_setting(Path(folder), options.geometry, options.cohort)
        recipe = FAST if options.recipe == "fast" else PUBLISHED
        config = replace(config, learning_rate=0.0, **recipe)
        fine_tuning, photos = make_fine_tuning(config, options.geometry)
        fine_tuning.models.set_cohort_size(options.cohort)
        cohort = make_cohort(fine_tuning, photos[: options.cohort], EvenSteps)
        fill_adapters(fine_tuning.models.adapters)
        label_parts(cohort)
        kinds = {"with identity term": (50, 125, 200), "without": (600, 800, 950)}
        results = {kind: profile_steps(cohort, points, options.steps) for kind, points in kinds.items()}
    rows = [{"steps": kind, **row} for kind, parts in results.items() for row in parts]
    report(f"profile_step_{options.geometry}_{options.recipe}_{options.cohort}", vars(options), rows)


def label_parts(cohort):
    """Give the parts of a step names that the profiler shows."""
    parts = [
        (cohort, "draw", "random draws"),
        (cohort, "latents", "latents from the cache"),
        (cohort.models, "predict", "UNet forward"),
        (cohort.branch, "decode", "decoder forward"),
        (cohort.branch, "crop", "crop"),
        (cohort.branch.recogniser, "forward", "recogniser forward"),
        (cohort, "update", "clip, optimiser, schedule"),
    ]
    for owner, name, label in parts:
        setattr(owner, name, labelled(getattr(owner, name), label))


def labelled(function, label):
    """The function inside a profiler range with that label."""

    def call(*arguments):
        with record_function("part: " + label):
            return function(*arguments)

    return call


def profile_steps(cohort, points, steps):
    """Rows (what, ms per step, share) of the parts of a step and of its longest operators."""
    EvenSteps.points = points
    cohort.step(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number in range(steps):
            with record_function("part: step"):
                cohort.step(number)
    averages = profiler.key_averages()
    times = {
        e.key.removeprefix("part: "): e.cpu_time_total / 1000 / steps
        for e in averages
        if e.key.startswith("part: ")
    }
    total = times.pop("step")
    times["backward and the rest"] = total - sum(times.values())
    operators = sorted(
        (e for e in averages if not e.key.startswith(("part: ", BACKWARD))),
        key=lambda e: -e.self_cpu_time_total,
    )
    times |= {
        f"{e.key} ({e.count // steps} calls)": e.self_cpu_time_total / 1000 / steps
        for e in operators[:OPERATORS]
    }
    return [{"what": "whole step", "ms": round(total, 2), "share": 1.0}] + [
        {"what": name, "ms": round(ms, 2), "share": round(ms / total, 3)} for name, ms in times.items()
    ]


if __name__ == "__main__":
    run(main)
