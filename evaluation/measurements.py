"""A row for each sample and each real photo: what every later choice is made from.

measurements.parquet (exact) and measurements.csv (for spreadsheets) hold the rows, measurements.json what the
columns mean and the judges' scores between different people's real photos, which thresholds are read from.
evaluation/measure_samples.py makes them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.pose import ANGLES
from evaluation.tables import csv_text
from id_booth.prompts import PROMPTED
from utils.errors import UserError, one_line
from utils.files import atomic_path, atomic_write_json, atomic_write_text, read_json

REAL = "real photos"
STEM, KIND = "measurements", "id-booth-measurements"
FILES = tuple(f"{STEM}.{form}" for form in ("parquet", "csv", "json"))
TEXTS = {
    "method": "method of a sample, or real photos",
    "identity": "the person",
    "file": "image file, relative to its set's folder",
    "sha256": "hash of the file's content; empty for a file that cannot be read",
    "prompt": "what was asked for",
} | {name: f"{name} that the prompt asks for" for name in PROMPTED}
SEEN = "seen_"  # and the name of an attribute of the classifier
NEAREST = {
    "nearest_photo": "real photo of the person whose aligned face looks most alike",
    "nearest_sample": "other sample of the person, by the same method, whose aligned face looks most alike",
}
NUMBERS = {
    "detection_score": "score of the detector, 0 to 1; empty without a usable face, as all that follows",
    "quality": "CR-FIQA of the face, higher is better",
    **{name: f"{name} of the head in degrees" for name in ANGLES},
    "photo_likeness": "correlation of the aligned faces' pixels with the nearest photo's; 1 is a copy",
    "sample_likeness": "the same with the nearest sample's; 1 is a duplicate",
}
OF_JUDGE = {
    "similarity": "mean cosine to the person's real photos (of a photo: the others), by the {}",
    "other_similarity": "mean cosine to the photos of the most similar other person, by the {}",
    "margin": "similarity less other_similarity, by the {}; below 0 somebody else is nearer",
}
OTHER_PERSON = "the most similar other person, by the {}"
KEPT = 10  # of all scores between different people the highest tenth is kept: false match rates up to 0.1
FEW = 10  # false matches below which a threshold says little


@dataclass
class Measurements:
    """columns: name -> (N,) array; text as objects with None, numbers as float64 with NaN where unknown.
    judges: name -> {"title", "comparisons": of photos with other people's, "highest": their scores}."""

    columns: dict
    judges: dict

    def __len__(self):
        return len(self.columns["method"])

    def __getitem__(self, name):
        return self.columns[name]

    def of_method(self, method):
        """Rows of a method, or of the real photos, as a mask (N,)."""
        return self.columns["method"] == method

    def threshold(self, judge, fmr):
        """(threshold, false matches): the lowest one at which at most `fmr` of the real photos' comparisons
        with other people's photos match, and how many do; NaN without such comparisons."""
        return threshold_at_fmr(self.judges[judge]["highest"], self.judges[judge]["comparisons"], fmr)

    def records(self):
        """Rows as dicts of text, numbers and None."""
        lists = {name: plain(values) for name, values in self.columns.items()}
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]

    def describe(self):
        """{column: what it means} of the columns there are."""
        texts = TEXTS | NEAREST | NUMBERS
        looks = [name.removeprefix(SEEN) for name in self.columns if name.startswith(SEEN)]
        texts |= {SEEN + name: f"{name} that the classifier of attributes sees" for name in looks}
        for judge in self.judges:
            texts |= {f"{judge}_{name}": text.format(judge) for name, text in OF_JUDGE.items()}
            texts[f"{judge}_other_person"] = OTHER_PERSON.format(judge)
        return {name: texts[name] for name in self.columns}


def threshold_at_fmr(highest, comparisons, fmr):
    """(threshold, false matches) of the highest impostor scores, in descending order; see Measurements.

    Raises:
        UserError: `fmr` needs more scores than are kept.
    """
    allowed = int(comparisons // (1 / fmr))
    if not comparisons:
        return float("nan"), 0
    if allowed >= len(highest):
        raise UserError(f"fmr: {fmr} is above the rates that are kept; use at most {1 / KEPT}")
    threshold = np.nextafter(highest[allowed], np.inf)
    return float(threshold), int((np.asarray(highest) >= threshold).sum())


def plain(values):
    """A column as a list: text or None, or numbers to six digits or None."""
    if values.dtype == object:
        return values.tolist()
    return [None if np.isnan(value) else round(value, 6) for value in values.tolist()]


def write_measurements(folder, measurements):
    """Write FOLDER/measurements.parquet, .csv and .json, each whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    stem = Path(folder) / STEM
    lists = {name: plain(values) for name, values in measurements.columns.items()}
    kinds = {
        name: pa.string() if of.dtype == object else pa.float64() for name, of in measurements.columns.items()
    }
    with atomic_path(stem.with_suffix(".parquet")) as temporary:
        parquet.write_table(pa.table(lists, pa.schema(kinds.items())), temporary)
    atomic_write_text(stem.with_suffix(".csv"), csv_text(measurements.records(), list(lists)))
    about = {"kind": KIND, "columns": measurements.describe(), "judges": measurements.judges}
    atomic_write_json(stem.with_suffix(".json"), about)


def read_measurements(folder):
    """The :class:`Measurements` that an evaluation wrote into a folder.

    Raises:
        UserError: there are none, or they are damaged.
    """
    from pyarrow import parquet

    stem = Path(folder) / STEM
    if not stem.with_suffix(".parquet").is_file():
        raise UserError(f"{stem}.parquet: not found; evaluate the samples first (evaluation.evaluate)")
    about = read_json(stem.with_suffix(".json"))
    try:
        if about["kind"] != KIND:
            raise ValueError("of another kind")
        judges = {str(name): checked_judge(judge) for name, judge in about["judges"].items()}
        table = parquet.read_table(stem.with_suffix(".parquet"))
        columns = {name: as_column(table[name]) for name in table.column_names}
        measurements = Measurements(columns, judges)
        if set(measurements.describe()) != set(about["columns"]) or not set(TEXTS | NUMBERS) <= set(columns):
            raise ValueError("columns are missing")
        return measurements
    except Exception as error:  # a crafted file can fail anywhere in pyarrow
        raise UserError(f"{stem}: damaged ({one_line(error)[:120]}); evaluate the samples again") from error


def checked_judge(judge):
    """What is stored of a judge; ValueError, KeyError or TypeError where it is not that."""
    highest = np.array(judge["highest"], np.float64)
    if highest.ndim != 1 or not np.isfinite(highest).all() or (np.diff(highest) > 0).any():
        raise ValueError("the judges' scores are no descending numbers")
    return {
        "title": str(judge["title"]),
        "comparisons": int(judge["comparisons"]),
        "highest": highest.tolist(),
    }


def as_column(column):
    """A column of a Parquet table as Measurements hold it."""
    if str(column.type) == "string":
        return as_texts(column.to_pylist())
    return column.to_numpy().astype(np.float64)


def as_texts(values):
    """A column of text, with None where there is none."""
    column = np.empty(len(values), object)
    column[:] = list(values)
    return column
