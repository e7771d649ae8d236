"""Choose samples by what they measure and by a person's marks: a list of files, nothing is copied or deleted.

    python -m evaluation.curate --config configs/curate_mini.py --dry-run       the plan
    python -m evaluation.curate --config configs/curate_mini.py --marks marks.json

Reads   measurements.parquet and .json of evaluation.evaluate, and the marks that gallery.html exported.
Writes  {output_folder}/curation.json (which samples, why, counts), curation.csv (every sample and its reason)
        and README.md (how they were chosen, for those who get the data).

fr_training.augment_dataset and fr_training.study take curation.json as `curation`, and train_fr the manifest
that augment_dataset makes of it.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m evaluation.curate")

from collections import Counter
from pathlib import Path

import numpy as np

from configs.curate_config import CurateConfig
from evaluation.curation import KIND, MARKED, REJECTED, TAKEN, read_marks, reasons
from evaluation.measurements import REAL, read_measurements
from evaluation.tables import csv_text
from utils.config import parse_command_line
from utils.errors import UserError, did_you_mean, run
from utils.files import atomic_write_json, atomic_write_text
from utils.outputs import open_output
from utils.progress import log
from utils.run_record import describe_run
from utils.text_tables import aligned, lines_of, markdown, markdown_text

FILES = ("curation.json", "curation.csv", "README.md")
CARD = """# How these samples were chosen

{kept:,} of {all:,} generated images were chosen by measurements{by_marks}; none was changed. What they are,
who consented to what, and the licences stand in the data card of their set, which goes on holding.

A sample was taken if it has, in this order:

{rules}

{marks}## Samples by method
{methods}

## Chosen samples by person
{people}

## Chosen samples by what their prompt asks
{prompts}
{nobody}
Choosing narrows a set: what pleases a recogniser and looks like lab photos is more alike than what was
sampled. Figures of chosen samples flatter the method that made them; measure methods on all samples.
"""


def main(argv=None):
    config = parse_command_line(CurateConfig, "configs/curate_mini.py", argv)
    measurements = read_measurements(config.measurements)
    check_methods(config, measurements)
    sources = [config.measurements]
    open_output(config.output_folder, FILES, sources, write=not config.dry_run)
    marks = read_marks(config.marks) if config.marks else {}
    if strangers := set(marks) - set(measurements["sha256"]):
        log(
            f"{config.marks}: {len(strangers)} of {len(marks)} marks are of files that were not measured here"
        )
    reason, rules = reasons(measurements, config, marks)
    log(aligned(lines_of(method_rows(measurements, reason))), lines=True)
    for rule in rules:
        log(f"{rule.name}: asked is {rule.text}")
    if not taken(reason).any():
        name, count = Counter(reason[reason != ""]).most_common(1)[0]
        why = f"{count} of {(reason != '').sum()} are left out as '{name}', so ease that rule"
        log(f"{config.measurements}: no sample passes; {why}")
    if config.dry_run:
        return 0
    write_curation(config, measurements, reason, rules)
    log(f"{Path(config.output_folder) / FILES[0]}: {int(taken(reason).sum())} samples")
    return 0


def check_methods(config, measurements):
    """UserError for a method that was not measured, or where there are no samples at all."""
    have = [name for name in dict.fromkeys(measurements["method"]) if name != REAL]
    for name in config.methods:
        if name not in have:
            hint = f"{did_you_mean(name, have)}there are {', '.join(have)}"
            raise UserError(f"methods: no {name!r} in {config.measurements}; {hint}")
    if not have:
        raise UserError(f"{config.measurements}: holds no samples; evaluate some")


def taken(reason):
    """Which rows are chosen, (N,) bool."""
    return np.isin(reason, (TAKEN, MARKED))


def method_rows(measurements, reason):
    """A row for each method: its samples, how many are taken, how many each reason leaves out."""
    here = reason != ""
    names = [name for name in dict.fromkeys(reason[here]) if name not in (TAKEN, MARKED)]
    rows = []
    for method in dict.fromkeys(measurements["method"][here]):
        counts = Counter(reason[measurements.of_method(method)])
        row = {"method": method, "samples": counts.total(), "taken": counts[TAKEN] + counts[MARKED]}
        rows.append(row | {f"out: {name}": counts[name] for name in names})
    return rows


def write_curation(config, measurements, reason, rules):
    """Write the three files of a curation, each whole or not at all."""
    folder, samples = Path(config.output_folder), {}
    fields = [measurements[name] for name in ("method", "identity", "file", "sha256")]
    rows = [*zip(*fields, reason.tolist(), strict=True)]
    for (method, identity, file, digest, why), chosen in zip(rows, taken(reason), strict=True):
        if chosen:
            entry = {"file": file, "sha256": digest, "why": why}
            samples.setdefault(method, {}).setdefault(identity, []).append(entry)
    manifest = {
        "kind": KIND,
        "rules": [rule.text for rule in rules],
        "samples": samples,
        "counts": {"methods": method_rows(measurements, reason), **counts_of(measurements, reason)},
        "run": describe_run(config),
    }
    keys = ("method", "identity", "file", "sha256", "why")
    listing = [dict(zip(keys, row, strict=True)) for row in rows if row[-1]]
    atomic_write_text(folder / FILES[1], csv_text(listing))
    atomic_write_text(folder / FILES[2], card(measurements, reason, rules))
    atomic_write_json(folder / FILES[0], manifest)


def counts_of(measurements, reason):
    """{"people": {method: {identity: chosen}}, "prompts": {method: {"background, pose": chosen}}}."""
    here, chosen = reason != "", taken(reason)
    pairs = zip(measurements["background"], measurements["pose"], strict=True)
    asked = [f"{background or 'no background'}, {pose or 'no pose'}" for background, pose in pairs]
    counts = {"people": {}, "prompts": {}}
    for i in np.flatnonzero(here):
        for kind, name in (("people", measurements["identity"][i]), ("prompts", asked[i])):
            of = counts[kind].setdefault(measurements["method"][i], {})
            of[name] = of.get(name, 0) + int(chosen[i])
    return counts


def card(measurements, reason, rules):
    """The text of README.md."""
    counts = counts_of(measurements, reason)
    marks = "Taken whatever they measure, since a person marked them: {}.\n\n"
    marked = {name: int((reason == name).sum()) for name in (MARKED, REJECTED)}
    nobody = [f"{m}: {name}" for m, of in counts["people"].items() for name, count in of.items() if not count]
    return CARD.format(
        kept=int(taken(reason).sum()),
        all=int((reason != "").sum()),
        by_marks=" and by a person's marks" if any(marked.values()) else "",
        rules="\n".join(f"{place}. {markdown_text(rule.text)}" for place, rule in enumerate(rules, 1)),
        marks=marks.format(marked[MARKED]) if marked[MARKED] else "",
        methods=markdown_table(method_rows(measurements, reason)),
        people=markdown_table(crossed("person", counts["people"])),
        prompts=markdown_table(crossed("background and pose", counts["prompts"])),
        nobody=f"\nNo sample was chosen of {markdown_text(', '.join(nobody))}.\n" if nobody else "",
    )


def crossed(title, counts):
    """Counts {method: {name: count}} as rows, one a name."""
    names = dict.fromkeys(name for of in counts.values() for name in of)
    return [{title: name} | {method: of.get(name, 0) for method, of in counts.items()} for name in names]


def markdown_table(rows):
    """Rows (dicts) as a Markdown table, everything in it text."""
    return markdown([[markdown_text(cell) for cell in line] for line in lines_of(rows)], numbers=True)


if __name__ == "__main__":
    run(main)
