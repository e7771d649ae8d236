"""Test recognisers on verification benchmarks: lfw, cfp_fp, agedb_30, calfw, cplfw, any .bin, any pair list.

    python -m fr_training.test_fr --config configs/test_fr_tfd.py --recognisers runs/fr/real runs/fr/real+21
    python -m fr_training.test_fr --config configs/test_fr_mini.py --benchmarks my_pairs.bin

Ten-fold accuracy as published, AUC, EER and TAR at FAR 1e-3 and 1e-4, on flip-summed embeddings. A run folder
stands for all its seeds and gives mean and spread over them. Results are cached by the content of weights and
benchmark.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m fr_training.test_fr")

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcface_files.face_pack import pack_models
from arcface_files.recogniser import load_recogniser
from configs.fr_config import TestFRConfig
from fr_training.benchmarks import find_benchmark, load_benchmark
from fr_training.networks import embed
from fr_training.results import accuracy_table, plot_roc, write_tables
from fr_training.verification import FAR_TARGETS, check_pairs, evaluate_pairs, far_name
from utils.config import parse_command_line
from utils.devices import pick_device, use_threads
from utils.errors import UserError, run
from utils.files import atomic_write_json, read_json, sha256_file
from utils.identities import natural_key
from utils.outputs import open_output
from utils.progress import log
from utils.run_record import write_run_record

RESULT_FILES = [
    "results.json",
    "run.json",
    *(f"verification.{form}" for form in ("json", "csv", "md", "tex")),
]
FIGURES = ("accuracy", "accuracy_std", "auc", "eer", "pairs", *map(far_name, FAR_TARGETS))


@dataclass(frozen=True)
class Weights:
    """A recogniser to test: the row it belongs to, which seed of it, and its file."""

    row: str
    seed: str
    file: Path


def main(argv=None):
    config = parse_command_line(TestFRConfig, "configs/test_fr_mini.py", argv)
    recognisers = [weights for source in config.recognisers for weights in find_weights(source)]
    benchmarks = [find_benchmark(name, config.benchmark_folder) for name in config.benchmarks]
    plots = [f"roc_{path.stem}.png" for path in benchmarks]
    open_output(config.output, [*RESULT_FILES, *plots], config.recognisers, write=not config.dry_run)
    if config.dry_run:
        log(f"{len(recognisers)} networks on {', '.join(path.stem for path in benchmarks)}")
        return 0
    use_threads(config.threads)
    results = test_all(config, recognisers, benchmarks)
    report(config, results, [path.stem for path in benchmarks])
    return 0


def find_weights(source):
    """The networks behind a run folder (one per seed), a weights file or an insightface pack."""
    path = Path(source)
    seeds = sorted(path.glob("seed_*/best/network.safetensors"), key=natural_key)
    if seeds:
        return [Weights(path.name, file.parents[1].name, file) for file in seeds]
    if path.is_file():
        return [Weights(path.stem, "", path)]
    official = sorted(path.glob("[!.]*_backbone.pth"), key=lambda file: natural_key(file.name))
    if official:  # the official code's run folder: its best network, or the last one
        best = path / "best_backbone.pth"
        return [Weights(path.name, "", best if best in official else official[-1])]
    if path.is_dir() and any(path.glob("seed_*")):
        raise UserError(f"{path}: no seed has finished an epoch; run train_fr.py again")
    try:
        return [Weights(path.name, "", Path(pack_models(source)["recognition"]))]
    except UserError as error:
        raise UserError(
            f"recognisers: {source} is no run folder of train_fr.py, no weights file and no "
            f"insightface pack ({error})"
        ) from None


def test_all(config, recognisers, benchmarks):
    """List of dicts: row, seed, benchmark and the figures of `evaluate_pairs`."""
    results = []
    for path in benchmarks:
        missing = [weights for weights in recognisers if not kept_figures(cache_file(config, weights, path))]
        if missing:
            images, same = load_benchmark(path)
            check_pairs(same, path.name)
            first, places = distinct(images)
            for weights in missing:
                figures = test_one(config, weights, images[first], places, same, path.name)
                atomic_write_json(cache_file(config, weights, path), figures)
        for weights in recognisers:
            figures = kept_figures(cache_file(config, weights, path))
            results.append({"row": weights.row, "seed": weights.seed, "benchmark": path.stem, **figures})
    return results


def cache_file(config, weights, benchmark):
    """Where the figures of one network on one benchmark are kept: by the content of both and the settings."""
    parts = [sha256_file(weights.file)[:16], sha256_file(benchmark)[:16], "flip" if config.flip else "plain"]
    return Path(config.output) / "cache" / ("_".join(parts) + ".json")


def kept_figures(file):
    """The figures kept in a file, as `evaluate_pairs` gives them; None for no file, or a damaged one."""
    with contextlib.suppress(UserError, KeyError, TypeError, ValueError, AttributeError):
        figures = read_json(file)
        far, tar = (np.array(figures["roc"][name], float) for name in ("far", "tar"))
        if far.shape == tar.shape and all(isinstance(figures[name], (int, float)) for name in FIGURES):
            return figures
    return None


def distinct(images):
    """(first, places): positions of the unique images, and for each image which of those it equals.

    A photo is in several pairs of a benchmark; its embedding is computed once.
    """
    first, places = {}, []
    for place, image in enumerate(images):
        digest = hashlib.sha256(np.ascontiguousarray(image)).digest()
        places.append(first.setdefault(digest, (len(first), place))[0])
    return np.array([place for _, place in first.values()]), np.array(places)


def test_one(config, weights, images, places, same, name):
    """The figures of one network on one benchmark, whose image i is ``images[places[i]]``."""
    device = pick_device(config.device)
    network = load_recogniser(weights.file, device).eval()
    embeddings = embed(network, images, device, config.batch_size, config.flip)[places]
    if not np.isfinite(embeddings).all():
        raise UserError(f"{weights.file}: gives embeddings that are not finite; train it again")
    figures = evaluate_pairs(embeddings[0::2], embeddings[1::2], same, name)
    log(
        f"{weights.row} {weights.seed} on {name}: accuracy {figures['accuracy']:.4f} "
        f"(fold std {figures['accuracy_std']:.4f})  AUC {figures['auc']:.4f}  EER {figures['eer']:.4f}"
    )
    return figures


def report(config, results, benchmarks):
    """Write and print the tables, and one ROC plot per benchmark."""
    output = Path(config.output)
    for benchmark in benchmarks:
        plot_roc(
            [r for r in results if r["benchmark"] == benchmark], output / f"roc_{benchmark}.png", benchmark
        )
    write_results(config, results, accuracy_table(results, benchmarks))


def write_results(config, results, table):
    """Print the table; write it, results.json (all figures without the ROC curves) and the run's record."""
    output = Path(config.output)
    log(write_tables(table, output), lines=True)
    atomic_write_json(output / "results.json", [{k: v for k, v in r.items() if k != "roc"} for r in results])
    write_run_record(output, config)


if __name__ == "__main__":
    run(main)
