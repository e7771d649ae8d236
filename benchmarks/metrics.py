"""Speed and memory of the metrics, and their figures beside PyEER's.

    python -m benchmarks.metrics                      all cases, each in a process of its own
    python -m benchmarks.metrics --case prdc          one of: pyeer, pairs, prdc

PyEER 0.5.6 is compared where it is installed (pip install --no-deps pyeer): only its module of formulas is
loaded, since the package itself fails to import beside current setuptools.
"""

import importlib.util
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from evaluation.diversity import prdc
from evaluation.identity import pair_scores, verification_stats
from utils.errors import run

CASES = ("pyeer", "pairs", "prdc")


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
    """verification_stats and PyEER's formulas on the same scores: time and figures side by side."""
    rng = np.random.default_rng(0)
    genuine = rng.normal(0.45, 0.17, config.impostors // 20)
    impostor = rng.normal(0.02, 0.075, config.impostors)
    started = time.perf_counter()
    ours = verification_stats(genuine, impostor, fmr_rule="nearest")
    seconds = time.perf_counter() - started
    report("verification_stats", f"{config.impostors:,} impostor scores", seconds)
    formulas = pyeer_formulas()
    if formulas is None:
        print("PyEER is not installed: pip install --no-deps pyeer")
        return
    started = time.perf_counter()
    theirs = pyeer_stats(formulas, genuine, impostor)
    their_seconds = time.perf_counter() - started
    report("PyEER", f"{config.impostors:,} impostor scores", their_seconds)
    print(f"ratio {their_seconds / seconds:.0f}")
    for key, value in theirs.items():
        gap = abs(ours[key] - value)
        print(f"  {key:13} ours {ours[key]:.12f}  PyEER {value:.12f}  difference {gap:.1e}")


def pyeer_formulas():
    """PyEER's module of formulas, or None where PyEER is not installed."""
    package = importlib.util.find_spec("pyeer")
    if package is None:
        return None
    path = Path(package.submodule_search_locations[0]) / "eer_stats.py"
    spec = importlib.util.spec_from_file_location("eer_stats", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pyeer_stats(formulas, genuine, impostor):
    """The statistics as PyEER's get_eer_stats computes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thresholds, fmr, fnmr = formulas.calculate_roc(genuine, impostor)
        index, _, _, eer = formulas.get_eer_values(fmr, fnmr)
        spread = genuine.mean(), genuine.std(), impostor.mean(), impostor.std()
        return {
            "auc": formulas.calculate_roc_auc(fmr, fnmr),
            "eer": eer,
            "eer_threshold": thresholds[index],
            "fmr100": formulas.get_fmr_op(fmr, fnmr, 0.01)[1],
            "fmr1000": formulas.get_fmr_op(fmr, fnmr, 0.001)[1],
            "decidability": formulas.get_decidability_value(*spread),
        }


def all_pairs(config):
    """Scores and statistics of all pairs of many embeddings."""
    rng = np.random.default_rng(0)
    labels = np.arange(config.embeddings) // 20
    centres = rng.normal(size=(labels.max() + 1, 512))
    embeddings = (centres[labels] + 2 * rng.normal(size=(config.embeddings, 512))).astype(np.float32)
    started = time.perf_counter()
    genuine, impostor = pair_scores(embeddings, labels)
    stats = verification_stats(genuine, impostor)
    report("all pairs", f"{len(genuine) + len(impostor):,} scores", time.perf_counter() - started)
    print(f"  EER {stats['eer']:.5f}, AUC {stats['auc']:.5f}")


def neighbours(config):
    """Precision, recall, density and coverage of two large sets."""
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(shift, 1, (config.features, 1024)).astype(np.float32) for shift in (0, 0.05))
    started = time.perf_counter()
    values = prdc(real, fake)
    size = f"{config.features:,} against {config.features:,}, 1,024 wide"
    report("PRDC", size, time.perf_counter() - started)
    print("  " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))


def report(what, size, seconds):
    """One line: what, how much, seconds, and the process's peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {size}: {seconds:.2f} s, peak {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    run(main)
