"""Speed and memory of the metrics, and their figures beside PyEER's.

    python -m benchmarks.metrics                      all cases, each in a process of its own
    python -m benchmarks.metrics --case prdc          one of: pyeer, pairs, prdc

PyEER 0.5.6 is no requirement of this project; put it into a folder of its own and name that folder:

    pip install --no-deps --target /tmp/pyeer pyeer==0.5.6
    python -m benchmarks.metrics --case pyeer --pyeer /tmp/pyeer

Its figures must equal ours, else the benchmark fails.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.metrics")

import importlib.util
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
import tyro

from evaluation.diversity import prdc
from evaluation.identity import pair_scores, verification_stats
from utils.errors import UserError, run

CASES = ("pyeer", "pairs", "prdc")
PYEER_NAMES = {
    "auc": "auc",
    "eer": "eer",
    "eer_threshold": "eer_th",
    "fmr100": "fmr100",
    "fmr1000": "fmr1000",
    "genuine_mean": "gmean",
    "genuine_std": "gstd",
    "impostor_mean": "imean",
    "impostor_std": "istd",
    "decidability": "decidability",
}
EQUAL = 1e-9  # rounding of sums over 10^6 scores


@dataclass
class MetricsBenchmark:
    """What to measure."""

    case: Literal["all", "pyeer", "pairs", "prdc"] = "all"
    """One case, or all."""
    impostors: int = 1_000_000
    """Impostor scores of the comparison with PyEER."""
    embeddings: int = 20_000
    """Embeddings of 512 whose pairs are all scored."""
    features: int = 10_000
    """Rows of 1,024 on each side of PRDC."""
    pyeer: str | None = None
    """Folder that PyEER was installed into (pip install --target); None: wherever Python finds it."""


def main():
    """Run the cases and print a line for each figure."""
    config = tyro.cli(MetricsBenchmark, description=__doc__)
    if config.case != "all":
        {"pyeer": against_pyeer, "pairs": all_pairs, "prdc": neighbours}[config.case](config)
        return
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.metrics", "--case", case, *sys.argv[1:]]
        subprocess.run(command, check=True)


def against_pyeer(config):
    """verification_stats and PyEER's get_eer_stats on the same scores: time and figures side by side."""
    rng = np.random.default_rng(0)
    genuine = rng.normal(0.45, 0.17, config.impostors // 20)
    impostor = rng.normal(0.02, 0.075, config.impostors)
    ours, seconds = best_time(lambda: verification_stats(genuine, impostor, fmr_rule="nearest"))
    report("verification_stats", f"{config.impostors:,} impostor scores", seconds)
    get_eer_stats = load_pyeer(config.pyeer)
    if get_eer_stats is None:
        print("PyEER: not installed; pip install --no-deps --target FOLDER pyeer==0.5.6, then --pyeer FOLDER")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, their_seconds = best_time(lambda: get_eer_stats(genuine, impostor))
    report("PyEER", f"{config.impostors:,} impostor scores", their_seconds)
    wall, processor = their_seconds / seconds
    print(f"  PyEER takes {wall:.1f} times as long (processor time: {processor:.1f} times)")
    for key, name in PYEER_NAMES.items():
        gap = abs(ours[key] - getattr(theirs, name))
        print(f"  {key:13} ours {ours[key]:.12f}  PyEER {getattr(theirs, name):.12f}  difference {gap:.1e}")
        if gap > EQUAL:
            raise UserError(f"{key}: differs from PyEER's by {gap}")


def best_time(function, repeats=3):
    """(result, wall and processor seconds of the fastest of a few calls): noise only ever adds time."""
    seconds = []
    for _ in range(repeats):
        started = clock()
        result = function()
        seconds.append(clock() - started)
    return result, np.min(seconds, axis=0)


def clock():
    """Wall and processor time in seconds, (2,): on a busy machine only the second one means much."""
    return np.array([time.perf_counter(), time.process_time()])


def load_pyeer(folder=None):
    """PyEER's get_eer_stats, or None where PyEER is not installed.

    Its reports ask pkg_resources, which setuptools no longer has, for a version; they are not used here.
    """
    if folder:
        sys.path.insert(0, folder)
    if importlib.util.find_spec("pyeer") is None:
        return None
    sys.modules.setdefault("pkg_resources", ModuleType("pkg_resources"))
    return importlib.import_module("pyeer.eer_info").get_eer_stats


def all_pairs(config):
    """Scores and statistics of all pairs of many embeddings."""
    rng = np.random.default_rng(0)
    labels = np.arange(config.embeddings) // 20
    centres = rng.normal(size=(labels.max() + 1, 512))
    embeddings = (centres[labels] + 2 * rng.normal(size=(config.embeddings, 512))).astype(np.float32)
    started = clock()
    genuine, impostor = pair_scores(embeddings, labels)
    stats = verification_stats(genuine, impostor)
    report("all pairs", f"{len(genuine) + len(impostor):,} scores", clock() - started)
    print(f"  EER {stats['eer']:.5f}, AUC {stats['auc']:.5f}")


def neighbours(config):
    """Precision, recall, density and coverage of two large sets."""
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(shift, 1, (config.features, 1024)).astype(np.float32) for shift in (0, 0.05))
    started = clock()
    values = prdc(real, fake)
    size = f"{config.features:,} against {config.features:,}, 1,024 wide"
    report("PRDC", size, clock() - started)
    print("  " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))


def report(what, size, seconds):
    """One line: what, how much, wall and processor seconds, and the process's peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall, processor = seconds
    print(f"{what}: {size}: {wall:.2f} s ({processor:.2f} s of processor), peak {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    run(main)
