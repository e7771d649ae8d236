"""The ablation study in one command: the recipe with parts left out, sampled, evaluated, in one table.

    python -m evaluation.ablation --config configs/ablation_sd21.py                 the paper's
    python -m evaluation.ablation --config configs/ablation_mini.py                 on the miniature
    python -m evaluation.ablation --config configs/ablation_sd21.py --dry-run       what would be done

Runs the public scripts, echoing each command: train_id_booth.py for LoRAs without prior preservation,
inference_id_booth.py for the set of each row, evaluation.evaluate for its report. Finished work is kept, so
the same command goes on where it stopped. ablation.csv, .json, .md and .tex hold the table.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m evaluation.ablation")

from dataclasses import dataclass, replace
from pathlib import Path

from configs.ablation_config import AblationConfig
from configs.evaluation_config import EvaluationConfig
from configs.inference_config import InferenceConfig
from configs.train_config import TrainConfig
from evaluation.commands import run_python
from evaluation.image_sets import REAL
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value
from id_booth.objectives import OBJECTIVES
from id_booth.sampling.settings import data_set_name
from utils.config import as_dict, load_config, parse_command_line
from utils.errors import UserError, run
from utils.files import read_json
from utils.outputs import open_output
from utils.progress import log
from utils.run_record import publishable

PERCENT = dict(scale=100.0, unit=" %", digits=1)
# Table of a row's results (a name, or the start of several, of which the first counts), and its column.
FIGURES = (
    ("faces", Column("images", "images")),
    ("faces", Column("share", "with a face", "high", **PERCENT)),
    ("identity_vs_samples", Column("eer", "EER among samples", "low", **PERCENT)),
    ("identity_vs_real", Column("eer", "EER against photos", "low", **PERCENT)),
    ("identity_similarity", Column("similarity", "similarity to own photos", "high")),
    ("quality", Column("quality", "face quality", "high")),
    ("pose", Column("pitch_spread", "pitch spread per identity", digits=1)),
    ("pose", Column("yaw_spread", "yaw spread per identity", digits=1)),
    ("pose", Column("roll_spread", "roll spread per identity", digits=1)),
    ("diversity_", Column("fd", "FD", "low")),
    ("diversity_", Column("vendi", "Vendi per identity", "high", digits=2)),
)
BASE = ("--no-use-gender", "--no-use-pose", "--no-use-background")
BACKGROUND = ("--no-use-gender", "--no-use-pose", "--use-background")
FULL = ("--use-gender", "--use-pose", "--use-background")
NO_NEGATIVE = ("--negative-prompt", "")
NO_PRIOR = "no-prior"


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, its title, the sampler's options, how many images of each person."""

    name: str
    title: str
    options: tuple
    images: int


def main(argv=None):
    config = parse_command_line(AblationConfig, "configs/ablation_mini.py", argv)
    rows = plan_rows(config)
    sources = [load_config(config.inference_config, expected_type=InferenceConfig).output_folder]
    names = [f"ablation.{form}" for form in ("csv", "json", "md", "tex")]
    open_output(config.output_folder, names, sources, write=not config.dry_run)
    if config.dry_run:
        return print_plan(config, rows)
    for row in rows:
        make_row(config, row)
    table = ablation_table(config, rows)
    table.write(config.output_folder)
    log(table.to_text(), lines=True)
    return 0


def plan_rows(config):
    """The rows of the table in its order; UserError for an unknown name."""
    prompts = {
        "base": ("base prompt", BASE),
        "background": ("+ background", BACKGROUND),
        "gender": ("+ gender", ("--use-gender", "--no-use-pose", "--use-background")),
        "pose": ("+ pose (whole prompt)", FULL),
        "base-no-negative": ("base prompt, no negative prompt", BASE + NO_NEGATIVE),
        "background-no-negative": ("+ background, no negative prompt", BACKGROUND + NO_NEGATIVE),
        NO_PRIOR: (f"whole prompt, {config.no_prior_objective} without prior preservation", FULL),
    }
    rows = [Row(name, title, options, config.images) for name, (title, options) in prompts.items()]
    rows += [
        Row(str(count), f"whole prompt, {count} images", FULL, count)
        for count in config.counts
        if count != config.images  # that is "pose"
    ]
    known = {row.name: row for row in rows}
    for name in config.rows:
        if name not in known:
            raise UserError(f"rows: no {name!r}; there are {', '.join(known)}")
    return [known[name] for name in config.rows] or rows


def make_row(config, row):
    """Train where the row needs it, sample its set, and evaluate it."""
    if row.name == NO_PRIOR:
        run_python("train_id_booth.py", "--config", config.train_config, *training_options(config))
    run_python("inference_id_booth.py", "--config", config.inference_config, *sampling_options(config, row))
    options = evaluation_options(config, row)
    if evaluated(config, row, options):
        log(f"{row.title}: evaluated before")
        return
    run_python("-m", "evaluation.evaluate", "--config", config.evaluation_config, *options)


def training_options(config):
    """Overrides of the training without prior preservation; negatives then come from the class images."""
    options = ["--no-with-prior-preservation", "--objectives", config.no_prior_objective]
    options += ["--output-folder", config.no_prior_folder]
    objective = OBJECTIVES.get(config.no_prior_objective)
    if objective is not None and objective.needs_negatives:
        training = load_config(config.train_config, expected_type=TrainConfig)
        options += ["--negatives-folder", training.negatives_folder or training.class_folder]
    return options


def method_of(config, row):
    """The method folder of a row's samples."""
    return config.no_prior_objective if row.name == NO_PRIOR else config.method


def sampling_options(config, row):
    """Overrides of the sampler; the name of the set tells the rows apart."""
    options = [*row.options, "--prompt-set", str(row.images), "--methods", method_of(config, row)]
    if row.name == NO_PRIOR:
        name = data_set_name(load_config(config.inference_config, options, InferenceConfig))
        options += ["--lora-folder", config.no_prior_folder, "--set-name", f"{name}_NoPrior"]
    return options


def set_of(config, row):
    """The folder of a row's samples."""
    sampling = load_config(config.inference_config, sampling_options(config, row), InferenceConfig)
    return Path(sampling.output_folder) / data_set_name(sampling)


def evaluation_options(config, row):
    """Overrides of the evaluation of a row; all share a cache."""
    output = Path(config.output_folder)
    options = ["--samples-folder", set_of(config, row), "--methods", method_of(config, row)]
    options += ["--output-folder", output / row.name, "--cache-folder", output / "cache"]
    return [*map(str, options), "--title", f"Ablation: {row.title}"]


def evaluated(config, row, options):
    """Whether a row's results are of these settings, and of all samples that there are."""
    results, made = Path(options[5]) / "results.json", set_of(config, row) / method_of(config, row)
    if not results.is_file() or results.stat().st_mtime < (made / "metadata.jsonl").stat().st_mtime:
        return False
    wanted = publishable(as_dict(load_config(config.evaluation_config, options, EvaluationConfig)))
    return read_json(results).get("run", {}).get("config") == wanted


def ablation_table(config, rows=None):
    """The table of the rows that are evaluated, with the real photos first; a note names the others.

    Raises:
        UserError: none is.
    """
    lines, absent = [], []
    for row in rows or plan_rows(config):
        file = Path(config.output_folder) / row.name / "results.json"
        if not file.is_file():
            absent.append(row.title)
            continue
        tables = read_json(file)["tables"]
        if not lines:
            lines.append({"method": REAL} | figures(tables, REAL))
        lines.append({"method": row.title} | figures(tables, method_of(config, row)))
    if not lines:
        raise UserError(f"{config.output_folder}: no row is evaluated yet; run evaluation.ablation")
    columns = [Column("method", "row"), *(column for column, _ in figure_columns())]
    note = f"Method: {config.method}. Each row is a set of samples of its own. FD and Vendi move with the "
    note += "number of images: compare rows of one number."
    note += f" Not evaluated: {', '.join(absent)}." if absent else ""
    return Table("ablation", "Ablation", columns, lines, note, (REAL,))


def ablation_section(config):
    """The table as a Section, for the notebook."""
    return Section("Ablation", tables=[ablation_table(config)])


def figure_columns():
    """(column with a key of its own, (start of its table's name, column there)) of every figure."""
    return [(replace(column, key=f"{start}/{column.key}"), (start, column)) for start, column in FIGURES]


def figures(tables, method):
    """The cells of a method's row, from the tables of a results.json."""
    cells = {}
    for column, (start, source) in figure_columns():
        table = next((table for table in tables if is_table(table["name"], start)), {"rows": []})
        record = next((row for row in table["rows"] if row["method"] == method), {})
        value = record.get(source.key)
        if value is not None and source.key == "images":
            cells[column.key] = value
        elif value is not None:
            parts = {
                part: record.get(f"{source.key}_{part}", float("nan")) for part in ("low", "high", "spread")
            }
            cells[column.key] = Value(value, **parts)
    return cells


def is_table(name, start):
    """Whether a table is the one meant; identity may be judged by the recogniser where there is no judge."""
    return name in (start, start.replace("identity_", "identity_recogniser_")) or (
        start.endswith("_") and name.startswith(start)
    )


def print_plan(config, rows):
    """Which rows there are and what each runs."""
    for row in rows:
        log(f"{row.name}: {row.title}; {method_of(config, row)} -> {set_of(config, row)}")
        if row.name == NO_PRIOR:
            log(f"    trains {config.no_prior_objective} into {config.no_prior_folder}")
    log(f"would write {config.output_folder}/ablation.csv, .json, .md, .tex and a report for each row")
    return 0


if __name__ == "__main__":
    run(main)
