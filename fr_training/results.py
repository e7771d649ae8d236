"""Tables (JSON, CSV, Markdown, LaTeX) and plots of recognition results, with mean and spread over seeds."""

import io
import re
from pathlib import Path

import numpy as np
import scipy  # its parts load when they are used

from evaluation import plots
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value
from utils.errors import UserError
from utils.files import atomic_write_bytes, read_json

AVERAGE, ORACLE = "average", "oracle"
SET_NUMBER = re.compile(r"_\d+$")  # of one of several sets of LoRAs of a method


def value_of(figures):
    """Mean and spread (ddof 1, over seeds) of some figures; no spread for one."""
    spread = float(np.std(figures, ddof=1)) if len(figures) > 1 else float("nan")
    return Value(float(np.mean(figures)), spread=spread)


def accuracy_table(results, benchmarks, title="Verification accuracy in per cent", reference_rows=()):
    """Rows are recognisers (mean and standard deviation over seeds); columns the benchmarks' figures.

    Args:
        results: dicts with row, seed, benchmark, accuracy, auc, eer and tar@far=...
        reference_rows: names of rows that are no rivals (the oracle).
    """
    columns = [Column("method", "recogniser")]
    columns += [Column(f"{name}/accuracy", name, "high", 2, 100.0) for name in benchmarks]
    if len(benchmarks) > 1:
        columns.append(Column(AVERAGE, AVERAGE, "high", 2, 100.0))
    for name in benchmarks:
        columns += [
            Column(f"{name}/auc", f"{name} AUC", "high", 4),
            Column(f"{name}/eer", f"{name} EER", "low", 4),
        ]
        columns += [
            Column(f"{name}/{key}", f"{name} {key.upper()}", "high", 4)
            for key in ("tar@far=1e-3", "tar@far=1e-4")
        ]
    rows = [table_row(name, results, benchmarks) for name in dict.fromkeys(r["row"] for r in results)]
    seeds = sorted(
        {sum(r["row"] == row["method"] and r["benchmark"] == benchmarks[0] for r in results) for row in rows}
    )
    note = f"± standard deviation over seeds ({'/'.join(map(str, seeds))} per row)"
    return Table("verification", title, columns, rows, note, tuple(reference_rows))


def curation_table(results, pairs):
    """What curation changes at an equal number of images: see :func:`paired_table`."""
    title = "Curated against uncurated at an equal number of samples"
    table = paired_table("curation", title, ("not curated", "curated"), results, pairs)
    if any(row["first"] != row["second"] for row in table.rows):
        table.note += " Where people have too few chosen samples, the two sides are not equally large."
    return table


def paired_table(name, title, sides, results, pairs):
    """How far training rows are above others: a Table with a row for each generator, each method and all.

    The difference of the mean accuracy over benchmarks, second less first, is paired by generator and seed;
    its 95 % interval is Student's over those pairs. Generators whose names differ by a number at the end
    ("ID-Booth_0", "ID-Booth_1") are sets of one method. The oracle is no part of "all".

    Args:
        sides: what the first and the second rows are called.
        pairs: (generator, count, first row, second row, samples in the one, in the other).
    """
    groups = {}
    for generator, count, first, second, *samples in pairs:
        before, after = (seed_averages(results, row) for row in (first, second))
        values = [after[seed] - before[seed] for seed in before if seed in after]
        names = [generator, SET_NUMBER.sub("", generator), *["all"] * (generator != ORACLE)]
        for group in dict.fromkeys(names):
            row = groups.setdefault(
                f"{group}, {count}", {"count": count, "values": [], "first": 0, "second": 0}
            )
            row["values"] += values
            row["first"], row["second"] = row["first"] + samples[0], row["second"] + samples[1]
    rows = [
        {"method": group, **row, "pairs": len(row["values"]), "difference": paired_value(row["values"])}
        for group, row in groups.items()
    ]
    columns = [Column("method", "generator, images"), Column("count", "images per identity")]
    columns += [Column(key, f"samples, {side}") for key, side in zip(("first", "second"), sides, strict=True)]
    difference = f"{sides[1]} less {sides[0]}, points"
    columns += [Column("pairs", "pairs"), Column("difference", difference, "", 2, 100.0)]
    note = "Mean over benchmarks; in brackets Student's 95 % interval over pairs of trainings."
    return Table(name, title, columns, rows, note)


def seed_averages(results, row):
    """{seed: mean accuracy over benchmarks} of a row."""
    found = {}
    for one in results:
        if one["row"] == row:
            found.setdefault(one["seed"], []).append(one["accuracy"])
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def paired_value(differences):
    """Mean of paired differences with Student's 95 % interval; none for fewer than two."""
    if len(differences) < 2:
        return Value(float(np.mean(differences)) if differences else float("nan"))
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * scipy.stats.sem(differences)
    return Value(float(np.mean(differences)), np.mean(differences) - half, np.mean(differences) + half)


def results_section(folder, reference_rows=("oracle",)):
    """The table and the plot of a results.json that test_fr.py or study.py wrote, as a report's Section.

    Args:
        reference_rows: rows whose name holds one of these words never count as best.

    Raises:
        UserError: no results there yet.
    """
    file = Path(folder) / "results.json"
    if not file.is_file():
        raise UserError(f"{file}: not there; run fr_training.test_fr or fr_training.study first")
    try:
        return section_of(read_json(file), reference_rows)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error!r}); run fr_training.test_fr again") from error


def section_of(results, reference_rows):
    """The Section of what a results.json holds: a list of dicts."""
    names = dict.fromkeys(r["row"] for r in results)
    aside = [name for name in names if any(word in name for word in reference_rows)]
    benchmarks = list(dict.fromkeys(r["benchmark"] for r in results))
    section = Section("Face recognition", tables=[accuracy_table(results, benchmarks, reference_rows=aside)])
    for place, benchmark in enumerate(benchmarks):
        here = [r for r in results if r["benchmark"] == benchmark]
        points = {name: {r["seed"]: 100 * r["accuracy"] for r in here if r["row"] == name} for name in names}
        caption = f"{benchmark}: accuracy (%), a dot per seed"
        section.figures.append((caption, plots.dots(points, f"accuracy-{place}", "accuracy (%)")))
    return section


def table_row(name, results, benchmarks):
    """One recogniser's row; its average is taken per seed first."""
    mine = [r for r in results if r["row"] == name]
    row = {"method": name}
    for benchmark in benchmarks:
        here = [r for r in mine if r["benchmark"] == benchmark]
        for key in ("accuracy", "auc", "eer", "tar@far=1e-3", "tar@far=1e-4"):
            row[f"{benchmark}/{key}"] = value_of([r[key] for r in here])
    seeds = dict.fromkeys(r["seed"] for r in mine)
    row[AVERAGE] = value_of([np.mean([r["accuracy"] for r in mine if r["seed"] == seed]) for seed in seeds])
    return row


def write_tables(table, folder):
    """Write FOLDER/{name}.json, .csv, .md and .tex; returns the table as text for a terminal."""
    table.write(folder)
    return table.to_text()


def save_figure(figure, path):
    """Write a matplotlib figure as PNG, whole or not at all."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, bbox_inches="tight")
    atomic_write_bytes(path, stream.getvalue())


def plot_roc(results, path, title):
    """ROC curves: one line per recogniser, the mean over its seeds, with the range between them shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    for name in dict.fromkeys(r["row"] for r in results):
        curves = [r["roc"] for r in results if r["row"] == name]
        far, tar = np.array(curves[0]["far"]), np.array([curve["tar"] for curve in curves])
        axes.plot(far, tar.mean(0), label=plots.label(name))
        axes.fill_between(far, tar.min(0), tar.max(0), alpha=0.2)
    axes.set(xscale="log", xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1.01))
    axes.set_title(plots.label(title))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
