"""The identity section: do the samples of a person look like one person, and like that person."""

import itertools
from pathlib import Path

import numpy as np

from evaluation import plots, protocols
from evaluation.bootstrap import (
    mean_interval,
    paired_difference,
    percentile_interval,
    pooled_interval,
    verification_replicates,
)
from evaluation.error_rates import ScoreSample
from evaluation.identity import identification_ranks, stats_of
from evaluation.inputs import MetricError, unit_rows
from evaluation.judges import CIRCULAR, INDEPENDENT, JUDGE, UNKNOWN
from evaluation.measurements import FEW
from evaluation.score_files import write_scores
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value

RATE = dict(scale=100.0, unit=" %", digits=2)
FNMR = "FNMR, the share of genuine comparisons that do not match, at the threshold where"
APART = "the squared difference of the means of genuine and impostor scores over the sum of"
COLUMNS = [
    Column("method", "method"),
    Column("eer", "EER", "low", **RATE, help="equal error rate: where FMR and FNMR meet (FVC2000)"),
    Column(
        "fmr100", "FMR100", "low", **RATE, help=f"{FNMR} 1 in 100 comparisons of different people matches"
    ),
    Column("fmr1000", "FMR1000", "low", **RATE, help=f"{FNMR} 1 in 1,000 matches"),
    Column("fmr0", "FMR0", "low", **RATE, help=f"{FNMR} no comparison of different people matches"),
    Column("auc", "AUC", "high", digits=4, help="how often a genuine score is above an impostor score"),
    Column("genuine", "genuine", "high", help="mean and deviation of cosine similarity, same person"),
    Column("impostor", "impostor", "low", help="mean and deviation of cosine similarity, different people"),
    Column("fdr", "FDR", "high", digits=2, help=f"Fisher's discriminant ratio: {APART} their variances"),
    Column("decidability", "d'", "high", digits=2, help="decidability: difference of means in deviations"),
    Column("mcc", "MCC", "high", help="Matthews' correlation coefficient, the highest of all thresholds"),
    Column("mcc_at_eer", "MCC at EER", "high", help="the same at the threshold of the EER"),
]
PAIRS = [Column("genuine_pairs", "genuine pairs"), Column("impostor_pairs", "impostor pairs")]
RANKS = {1: "samples whose most similar photo is their person's", 5: "samples whose person is among five"}
RANK_COLUMNS = [Column(f"rank{k}", f"rank {k}", "high", **RATE, help=text) for k, text in RANKS.items()]
WITH_INTERVAL = ("eer", "fmr100", "fmr1000", "fmr0", "auc", "fdr", "decidability", "mcc", "mcc_at_eer")
WHAT_IT_MEANS = {
    CIRCULAR: "Circular for {}: they were trained to please this recogniser.",
    INDEPENDENT: "Independent of {}.",
    UNKNOWN: "Unknown whether circular for {}: their samples do not name the recogniser of their loss.",
}


def identity_section(comparison, judge):
    """Verification tables, score histograms and DET curves under one judge."""
    config = comparison.config
    relations = {faces.name: comparison.judges[judge].relation(faces.images) for faces in comparison.methods}
    text = (
        f"Judge: {comparison.judges[judge].title}. Cosine similarity; pairs: {config.protocol}. "
        f"In brackets 95\u00a0% bootstrap intervals over identities; for error rates from "
        f"{config.verification_replicates} replicates. {relation_text(relations)}"
    )
    section = Section(f"Identity, by the {judge}", text)
    name = "identity" if judge == JUDGE else f"identity_{judge}"
    section.tables.append(similarity_table(comparison, judge, f"{name}_similarity", relations))
    differences = difference_table(comparison, judge, f"{name}_differences")
    if differences.rows:
        section.tables.append(differences)
    add_verification(section, comparison, judge, f"{name}_vs_samples", None)
    add_verification(section, comparison, judge, f"{name}_vs_real", comparison.real)
    return section


def relation_text(relations):
    """What a judge is to the methods, {method: relation}, in sentences."""
    named = {kind: [name for name, of in relations.items() if of == kind] for kind in WHAT_IT_MEANS}
    return " ".join(WHAT_IT_MEANS[kind].format(", ".join(names)) for kind, names in named.items() if names)


def add_verification(section, comparison, judge, name, real):
    """Table and figures of samples against samples, or against the real photos."""
    title = "Samples against samples" if real is None else "Samples against real photos"
    rows, scores, ranks, notes = [], {}, {}, []
    for faces in comparison.sets if real is None else comparison.methods:
        try:
            row, pair = verification_row(faces, real, judge, comparison.config)
            if real is not None:
                found = sample_ranks(faces, real, judge)
                ranks[faces.name] = found[0]
                row |= rank_cells(*found, comparison.config)
        except MetricError as error:
            notes.append(f"{faces.name}: {error}")
            continue
        rows.append(row)
        scores[faces.name] = pair
        if comparison.config.score_files:
            folder = Path(comparison.config.output_folder) / "scores" / name / faces.name
            write_scores(folder, *(sample.values for sample in pair))
    notes += [false_matches(row["impostor_pairs"] for row in rows)] if rows else []
    columns = [*COLUMNS, *(RANK_COLUMNS if real is not None else ()), *PAIRS]
    section.tables.append(Table(name, title, columns, rows, " ".join(notes), comparison.no_rivals))
    if scores:
        salt = name.replace("_", "-")
        section.figures.append((f"{title}: scores", plots.score_histograms(scores, f"{salt}-histograms")))
        caption = f"{title}: error trade-off (lowest level: no error left)"
        section.figures.append((caption, plots.det_curves(scores, f"{salt}-det")))
    if ranks:
        caption = f"{title}: cumulative match (CMC) of a search among all photos"
        section.figures.append((caption, plots.match_curves(ranks, f"{salt}-cmc")))


def false_matches(impostor_pairs):
    """How many false matches the figures at fixed rates rest on, and a warning where these are few."""
    fewest = min(impostor_pairs)
    counts = {"FMR100": fewest // 100, "FMR1000": fewest // 1000}
    text = ", ".join(f"{name} on {count:,}" for name, count in counts.items())
    few = [name for name, count in counts.items() if count < FEW]
    warning = f" Below {FEW}, so no more than a hint: {', '.join(few)}." if few else ""
    return f"False matches that figures rest on (of the smallest set): {text}.{warning}"


def verified(faces, real, judge, config, people=None):
    """(sorted (genuine, impostor) scores, their statistics, {statistic: redrawn}) of a set's faces.

    Args:
        real: the photos to compare with; None for the faces among themselves. people: keep only theirs.
    """
    sides = ()
    for one in (faces, real) if real is not None else (faces,):
        mine = np.isin(one.labels, people) if people is not None else slice(None)
        sides += (one.embeddings[judge][mine], one.labels[mine])
    if not len(sides[0]):
        raise MetricError("no face found, so there is nothing to compare")
    genuine, impostor = protocols.scores(config.protocol, *sides, seed=config.seed)
    for scores, kind in ((genuine, "genuine"), (impostor, "impostor")):
        if not len(scores):
            raise MetricError(f"no {kind} pair; it takes two identities, and two faces of one")
    pair = ScoreSample(genuine), ScoreSample(impostor)
    draws = verification_replicates(
        *sides,
        replicates=config.verification_replicates,
        seed=config.seed,
        fmr_rule=config.fmr_rule,
        protocol=config.protocol,
    )
    return pair, stats_of(*pair, config.fmr_rule), draws


def verification_row(faces, real, judge, config):
    """A row of the verification table, and the sorted (genuine, impostor) scores behind it."""
    pair, stats, draws = verified(faces, real, judge, config)
    people = len(np.unique(faces.labels))
    genuine, impostor = (len(scores.values) for scores in pair)
    row = {"method": faces.name, "genuine_pairs": genuine, "impostor_pairs": impostor}
    for key in WITH_INTERVAL:
        row[key] = Value(stats[key], *percentile_interval(draws[key], people))
    for key in ("genuine", "impostor"):
        interval = percentile_interval(draws[f"{key}_mean"], people)
        row[key] = Value(stats[f"{key}_mean"], *interval, spread=stats[f"{key}_std"])
    return row, pair


def sample_ranks(faces, real, judge):
    """identification_ranks of a set's samples in the gallery of real photos."""
    return identification_ranks(faces.embeddings[judge], faces.labels, real.embeddings[judge], real.labels)


def rank_cells(ranks, labels, config):
    """How many samples find their person at rank 1 and up to rank 5."""
    options = (labels, config.replicates, config.seed)
    return {f"rank{k}": Value(*pooled_interval(ranks <= k, *options)) for k in RANKS}


def similarity_table(comparison, judge, name, relations):
    """Mean cosine of samples to their person's real photos, mean over identities."""
    columns = [
        Column("method", "method"),
        Column("people", "identities"),
        Column("similarity", "similarity to own photos", "high"),
        Column("judge", "the judge is", help="circular: the method was trained to please it"),
    ]
    config, rows = comparison.config, []
    for faces in comparison.sets:
        values = own_similarity(faces, comparison.real, judge)
        row = {"method": faces.name, "people": len(values), "similarity": None}
        row["judge"] = relations.get(faces.name)
        if values:
            row["similarity"] = Value(*mean_interval(values, config.replicates, config.seed))
        rows.append(row)
    note = "Mean cosine per identity, then mean over identities. Real photos: to the person's other photos."
    return Table(name, "Similarity to the person's own photos", columns, rows, note, comparison.no_rivals)


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


def difference_table(comparison, judge, name):
    """Paired differences of every two methods in similarity, over the identities that both have."""
    config, rows = comparison.config, []
    values = {faces.name: own_similarity(faces, comparison.real, judge) for faces in comparison.methods}
    for first, second in itertools.combinations([name for name, of in values.items() if of], 2):
        try:
            paired = paired_difference(values[first], values[second], config.replicates, config.seed)
        except MetricError:
            continue  # they share no identity
        apart = paired["low"] > 0 or paired["high"] < 0
        rows.append(
            {
                "method": f"{first} minus {second}",
                "people": paired["identities"],
                "difference": Value(paired["difference"], paired["low"], paired["high"]),
                "verdict": "differs" if apart else "not distinguished",
            }
        )
    columns = [
        Column("method", "methods"),
        Column("people", "identities"),
        Column("difference", "difference in similarity"),
        Column("verdict", "95 % interval without 0?"),
    ]
    note = "Both methods on the same resampled people. With few people no interval is narrow."
    return Table(name, "Differences between methods, paired by identity", columns, rows, note)
