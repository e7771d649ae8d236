"""The short table: does each method's face look like the person, is there a face at all, how varied is it."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.bootstrap import mean_interval
from evaluation.diversity import vendi_score
from evaluation.face_sets import load_sets
from evaluation.image_sets import REAL, find_methods, method_samples, real_photos
from evaluation.inputs import unit_rows
from utils.files import atomic_write_json, atomic_write_text

VENDI_SEED = 0


def method_table(
    samples_root,
    real_root,
    analyser,
    judge=None,
    methods=(),
    identities=(),
    replicates=1000,
    seed=0,
    cache_folder=None,
):
    """One row per method, and one for the real photos among themselves.

    Args:
        samples_root: Generated_Samples/{set} with {method}/{identity}/*.png below.
        real_root: FACE_DATASET, in either nesting.
        analyser: FaceAnalyser; its detector finds the faces and its recogniser judges them.
        judge: a second FaceAnalyser whose recogniser the training loss never saw; None for none.
        methods: folder names to show, in this order; empty means all. identities: likewise.
        replicates: bootstrap replicates over identities.

    Returns:
        pandas DataFrame indexed by method:
        - images, identities, face_share: 0..1, share of images with a detected face;
        - similarity, similarity_low, similarity_high: mean cosine of a person's samples to that person's
          photos, mean over identities, 95 % bootstrap interval over identities;
        - judge_similarity and its interval, when there is a judge;
        - vendi, vendi_low, vendi_high: effective number of different images per identity, on the first
          recogniser's embeddings, of `vendi_size` images each.
        What does not exist is NaN.
    """
    real = real_photos(real_root, identities)
    folders = find_methods(samples_root, methods)
    samples = [method_samples(folder, identities or real.identities) for folder in folders]
    judges = {"similarity": analyser} | ({"judge_similarity": judge} if judge is not None else {})
    sets = load_sets([real, *samples], analyser, judges, cache_folder=cache_folder)
    size = vendi_size(sets.values())
    rows = [summary_row(faces, sets[REAL], judges, size, replicates, seed) for faces in sets.values()]
    return pd.DataFrame(rows).set_index("method")


def summary_row(faces, real, judges, size, replicates, seed):
    """One method's row of :func:`method_table`."""
    row = {
        "method": faces.name,
        "images": len(faces.images),
        "identities": len(faces.images.identities),
        "face_share": faces.face_share,
    }
    for judge in judges:
        add_interval(row, judge, own_similarity(faces, real, judge), replicates, seed)
    add_interval(row, "vendi", identity_vendi(faces, next(iter(judges)), size), replicates, seed)
    row["vendi_size"] = size
    return row


def own_similarity(faces, real, judge):
    """{identity: mean cosine of its faces to its real photos}; of the real photos, to one another."""
    found = {}
    for name in dict.fromkeys(faces.labels.tolist()):
        mine, photos = (
            unit_rows(one.embeddings[judge][one.labels == name].astype(np.float64), one.name, np.float64)
            for one in (faces, real)
        )
        cosines = mine @ photos.T
        if faces is real:
            cosines = cosines[~np.eye(len(photos), dtype=bool)]
        if cosines.size:
            found[name] = float(cosines.mean())
    return found


def vendi_size(face_sets):
    """The number of faces per identity that every identity with two or more has, in all sets; 0 if none."""
    counts = [np.unique(faces.labels, return_counts=True)[1] for faces in face_sets]
    usable = [int(count) for each in counts for count in each if count >= 2]
    return min(usable, default=0)


def identity_vendi(faces, judge, size):
    """{identity: Vendi score of `size` seeded faces}; identities with fewer are left out."""
    found = {}
    for name in dict.fromkeys(faces.labels.tolist()):
        rows = np.flatnonzero(faces.labels == name)
        if size and len(rows) >= size:
            rows = np.random.default_rng(VENDI_SEED).permutation(rows)[:size]
            found[name] = vendi_score(faces.embeddings[judge][rows])
    return found


def add_interval(row, column, per_identity, replicates, seed):
    """Put mean, low and high of a per-identity mapping into a row; NaN when it is empty."""
    mean, low, high = (math.nan,) * 3
    if per_identity:
        mean, low, high = mean_interval(per_identity, replicates, seed)
    row[column], row[f"{column}_low"], row[f"{column}_high"] = mean, low, high


def readable(table):
    """The table as text: intervals in brackets, shares in per cent, a dash for what does not exist."""
    shown = pd.DataFrame(index=table.index)
    shown["images"], shown["identities"] = table["images"], table["identities"]
    shown["face found"] = [f"{100 * share:.1f} %" for share in table["face_share"]]
    titles = {
        "similarity": "similarity to own photos",
        "judge_similarity": "by the judge",
        "vendi": "Vendi per identity",
    }
    for column, title in titles.items():
        if column in table:
            digits = 2 if column == "vendi" else 3
            columns = (table[column], table[f"{column}_low"], table[f"{column}_high"])
            shown[title] = [with_interval(*values, digits) for values in zip(*columns, strict=True)]
    return shown


def with_interval(mean, low, high, digits=3):
    """For instance "0.512 [0.480, 0.540]"; without the bracket when there is no interval."""
    if math.isnan(mean):
        return "-"
    bracket = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{bracket}"


def to_markdown(frame):
    """A pandas frame of text as a Markdown table."""
    frame = frame.reset_index()
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def save_table(table, folder, name="methods"):
    """Write `table` as folder/name.csv, .json and .md, each whole or not at all; returns the folder."""
    folder = Path(folder)
    atomic_write_text(folder / f"{name}.csv", table.to_csv())
    records = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in table.reset_index().to_dict("records")
    ]
    atomic_write_json(folder / f"{name}.json", records)
    atomic_write_text(folder / f"{name}.md", to_markdown(readable(table)))
    return folder
