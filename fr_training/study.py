"""Does synthetic data help recognition? Train on real, synthetic and mixed sets, test, make table and plot.

    python -m fr_training.study --config configs/study_tfd.py           the paper's last experiment
    python -m fr_training.study --config configs/study_mini.py          the miniature, with an oracle row

Rows: real photos alone; for each generator the largest synthetic set alone, and real + N for each count;
where given, real + N wild photos of the same people (the oracle: an upper bound for samples). With a
`curation` each real + N has another row, of as many samples that evaluation/curate.py chose. Tables say what
samples, and what curation, change, paired by generator and seed. Every row is trained with every seed and the
same settings. Finished trainings and tests are kept: run it again to go on. Once the sets exist, the same
command may run in several processes, which share the rows among them.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m fr_training.study")

import dataclasses
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.fr_config import AugmentConfig, StudyConfig, TestFRConfig, TrainFRConfig
from evaluation import plots
from evaluation.commands import run_python
from fr_training import test_fr, train_fr
from fr_training.augment_dataset import mix
from fr_training.benchmarks import find_benchmark
from fr_training.results import (
    AVERAGE,
    ORACLE,
    accuracy_table,
    curation_table,
    paired_table,
    save_figure,
    write_tables,
)
from utils.claims import Claims
from utils.config import load_config, parse_command_line
from utils.errors import UserError, run
from utils.files import atomic_write_json, read_json
from utils.identities import natural_key, subfolders
from utils.outputs import open_output
from utils.progress import log

REAL_ONLY, CURATED = "real", "_curated"
PAIRED_FILES = [f"{name}.{form}" for name in ("gain", "curation") for form in ("csv", "json", "md", "tex")]
POLL_SECONDS = 2  # between looks at rows that another process is training


@dataclass(frozen=True)
class Row:
    """A training set: crop set of a generator or None, its crops per identity, with the real crops or not.

    curated: whether they are of the samples that the study's curation chose.
    """

    name: str
    synthetic: str | None
    generator: str
    count: int
    with_real: bool
    curated: bool = False


def main(argv=None):
    config = parse_command_line(StudyConfig, "configs/study_mini.py", argv)
    open_study(config)
    if config.prepare and not config.dry_run:
        run_python("-m", config.prepare, *(sys.argv[1:] if argv is None else argv))
    rows = rows_with_samples(config, plan_rows(config))
    log(f"{len(rows)} sets x {len(config.seeds)} seeds: {', '.join(row.name for row in rows)}")
    if config.dry_run:
        return 0
    benchmarks = [find_benchmark(name, config.benchmark_folder) for name in config.benchmarks]
    work_on_rows(config, rows, benchmarks)
    results = test_rows(config, rows, benchmarks)
    report(config, rows, results, [path.stem for path in benchmarks])
    return 0


def open_study(config):
    """Take the output folder, and refuse what would fail after the sets are made, which can take hours."""
    training_config(config)
    if config.prepare and not is_module(config.prepare):
        raise UserError(f"prepare: no Python module {config.prepare!r}; give one, such as mini.study_data")
    names = [*test_fr.RESULT_FILES, "study.png", *PAIRED_FILES]
    sources = [config.real, config.synthetic, config.samples, config.oracle]
    open_output(config.output, names, sources, write=not config.dry_run)


def is_module(name):
    """Whether python -m NAME would find a module."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def plan_rows(config):
    """The study's training sets in table order."""
    folder = Path(config.synthetic)
    found = [path.name for path in subfolders(folder)] if folder.is_dir() else []
    for name in config.generators:
        if name not in found and not (config.prepare and config.dry_run):
            raise UserError(
                f"generators: no crop set {folder / name}; there are {', '.join(found) or 'none'}"
            )
    generators = [(name, str(folder / name)) for name in config.generators or sorted(found, key=natural_key)]
    rows = [Row(REAL_ONLY, None, "", 0, True)]
    alone = sorted(config.counts)[::-1] if config.on_shortage == "skip" else [max(config.counts)]
    rows += [Row(f"{name}_{n}", path, name, n, False) for name, path in generators for n in alone]
    sides = [
        (name, path, side) for name, path in generators for side in (False, True)[: 1 + bool(config.curation)]
    ]
    if config.oracle:
        sides.append((ORACLE, config.oracle, False))
    return rows + [
        Row(f"real+{name}_{count}{CURATED * curated}", path, name, count, True, curated)
        for name, path, curated in sides
        for count in config.counts
    ]


def rows_with_samples(config, rows):
    """The rows to train, after a look at all of them: one message names what samples are missing.

    Raises:
        UserError: samples are missing and are not to be, or a set is too small for a training step.
    """
    if config.prepare and config.dry_run:
        return rows  # the sets are not made yet
    training = training_config(config)
    kept, missing = [], []
    for row in rows:
        if not row.with_real and any(one.generator == row.generator for one in kept):
            continue  # a larger set of the same generator is there
        manifest, shortage = mix(mixture(config, row))
        people = {name: len(images) for name, images in manifest["identities"].items()}
        skipped = config.on_shortage == "skip" and len(shortage) == len(people)
        if shortage:
            have = f"{min(shortage.values())} to {max(shortage.values())} of {row.count}"
            missing.append(f"{row.name} ({'left out: ' * skipped}{len(shortage)} people have {have})")
        if not skipped:
            held_out = train_fr.held_out_people(dataclasses.replace(training, dataset=row.name), people)
            images = sum(count for name, count in people.items() if name not in held_out)
            if images < training.batch_size:
                raise UserError(
                    f"{row.name}: {images} images to train on, and a step takes {training.batch_size}; lower "
                    f"batch_size or held_out_identities in a copy of {config.train_config}"
                )
            kept.append(row)
    if missing and config.on_shortage == "refuse":
        raise UserError(
            f"{config.synthetic}: too few samples for {', '.join(missing)}; sample more, lower counts, or "
            "set on_shortage to keep or skip"
        )
    if missing:
        log(f"too few samples: {', '.join(missing)}")
    return kept


def work_on_rows(config, rows, benchmarks):
    """Train and test all rows; several processes claim a row each, so that none is trained twice."""
    with Claims(Path(config.output) / "runs") as claims:
        while rows:
            mine = next((row for row in rows if claims.take(row.name)), None)
            if mine is None:
                time.sleep(POLL_SECONDS)
                continue
            log(f"== {mine.name}")
            train_row(config, mine)
            test_rows(config, [mine], benchmarks)
            claims.release(mine.name)
            rows = [row for row in rows if row is not mine]


def train_row(config, row):
    """Write the row's manifest and train every seed on it."""
    mixing = mixture(config, row)
    manifest, _ = mix(mixing)
    if not Path(mixing.output).is_file() or read_json(mixing.output) != manifest:
        atomic_write_json(mixing.output, manifest)
    places = {"dataset": mixing.output, "output": str(run_folder(config, row))}
    training = dataclasses.replace(training_config(config), **places)
    train_fr.train_seeds(training, *train_fr.prepare_data(training))


def mixture(config, row):
    """What a row's training set is mixed of, and where its manifest goes."""
    metadata = Path(config.samples) / row.generator if config.samples and row.generator else None
    return AugmentConfig(
        real=config.real if row.with_real else None,
        synthetic=row.synthetic,
        count=row.count,
        samples_metadata=str(metadata) if metadata and metadata.is_dir() else None,
        choice=config.choice,
        curation=config.curation if row.curated else None,
        labels=config.labels,
        output=str(Path(config.output) / "manifests" / f"{row.name}.json"),
        seed=config.seeds[0],
    )


def training_config(config):
    """The training settings of every row, but for its data set and output; with `steps` all take as many."""
    training = load_config(config.train_config, expected_type=TrainFRConfig)
    changes = {"seeds": config.seeds}
    if config.steps:  # an epoch has a step at least, so epochs never end it before
        changes |= {"max_steps": config.steps, "max_epochs": config.steps}
    training = dataclasses.replace(training, **changes)
    training.check()
    return training


def run_folder(config, row):
    """Where a row's trainings lie."""
    return Path(config.output) / "runs" / row.name


def test_rows(config, rows, benchmarks):
    """The figures of every row, seed and benchmark; what is measured already is read."""
    testing = TestFRConfig(output=str(Path(config.output) / "test"))
    recognisers = [weights for row in rows for weights in test_fr.find_weights(run_folder(config, row))]
    return test_fr.test_all(testing, recognisers, benchmarks)


def report(config, rows, results, benchmarks):
    """The table in four forms and the plot."""
    title = "Verification accuracy in per cent by training set"
    oracle = [row.name for row in rows if row.generator == ORACLE]
    table = accuracy_table(results, benchmarks, title, oracle)
    test_fr.write_results(config, results, table)
    title, sides = "Real photos and samples against real photos alone", ("real photos", "with samples")
    gain = paired_table("gain", title, sides, results, gaining_pairs(config, rows))
    log(write_tables(gain, config.output), lines=True)
    if config.curation:
        log(write_tables(curation_table(results, curated_pairs(config, rows)), config.output), lines=True)
    plot(config, rows, table, Path(config.output) / "study.png")


def gaining_pairs(config, rows):
    """Pairs for :func:`fr_training.results.paired_table`: each mixed row with that of real photos alone."""
    return [
        (row.generator, row.count, REAL_ONLY, row.name, 0, samples_of(config, row))
        for row in rows
        if row.with_real and row.generator and not row.curated
    ]


def curated_pairs(config, rows):
    """Pairs for :func:`fr_training.results.curation_table`: each curated row with the one that is not."""
    plain = {(row.generator, row.count): row for row in rows if row.with_real and not row.curated}
    pairs = ((plain.get((row.generator, row.count)), row) for row in rows if row.curated)
    return [
        (row.generator, row.count, other.name, row.name, samples_of(config, other), samples_of(config, row))
        for other, row in pairs
        if other is not None
    ]


def samples_of(config, row):
    """How many samples a row's training set has."""
    people = mix(mixture(config, row))[0]["identities"]
    return sum(item["kind"] == "synthetic" for items in people.values() for item in items)


def plot(config, rows, table, path):
    """Accuracy over the number of added images, a line per generator; real alone is the dashed line."""
    from matplotlib.figure import Figure

    column = AVERAGE if AVERAGE in table.rows[0] else f"{config.benchmarks[0]}/accuracy"
    figures = {row["method"]: row[column] for row in table.rows}
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    base = figures[REAL_ONLY]
    axes.axhline(100 * base.value, linestyle="--", color="grey", label="real photos only")
    for name, curated in dict.fromkeys((row.generator, row.curated) for row in rows if row.generator):
        mixed = [row for row in rows if (row.generator, row.curated) == (name, curated) and row.with_real]
        values = [figures[row.name] for row in mixed]
        axes.errorbar(
            [row.count for row in mixed],
            [100 * v.value for v in values],
            [100 * np.nan_to_num(v.spread) for v in values],
            marker="o",
            capsize=3,
            label=plots.label(f"real + {name}{', curated' if curated else ''}"),
        )
    axes.set(xlabel="added images per identity", ylabel="verification accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    save_figure(figure, path)


if __name__ == "__main__":
    run(main)
