"""Scores of pairs of embeddings, and what they say: verification over all pairs, identification by rank.

Scores take little more memory than they must; rates are those of evaluation/error_rates.py.
"""

import numpy as np

from evaluation.error_rates import (
    BLOCK,
    RULES,
    area_under_curve,
    as_sample,
    equal_error_rate,
    fmr_at_fnmr,
    fnmr_at_fmr,
    matthews_correlation,
    ratio,
)
from evaluation.inputs import MetricError, as_features, as_labels, same_width, unit_rows


def pair_scores(embeddings, labels):
    """Cosine similarities of all pairs within one set.

    Args:
        embeddings: (N, D), any scale. labels: (N,) identity of each row, any comparable type.

    Returns:
        (genuine, impostor), float32, each unordered pair once; either may be empty. 20,000 embeddings give
        2 x 10^8 scores, 0.8 GB.
    """
    unit, codes = prepared(embeddings, labels, "sample")
    order = np.argsort(codes, kind="stable")
    unit, codes = unit[order], codes[order]
    # Sorted by identity, row i's own identity ends at column end[i]: genuine and impostor are plain slices.
    end = np.searchsorted(codes, codes, side="right")
    first = np.arange(len(codes)) + 1
    genuine = np.empty(int((end - first).sum()), np.float32)
    impostor = np.empty(int((len(codes) - end).sum()), np.float32)
    at_genuine = at_impostor = 0
    rows = max(1, BLOCK // max(1, len(codes)))
    for start in range(0, len(codes), rows):
        stop = min(start + rows, len(codes))
        block = unit[start:stop] @ unit[start:].T
        for i in range(start, stop):
            own = block[i - start, i + 1 - start : end[i] - start]
            other = block[i - start, end[i] - start :]
            genuine[at_genuine : at_genuine + len(own)] = own
            impostor[at_impostor : at_impostor + len(other)] = other
            at_genuine, at_impostor = at_genuine + len(own), at_impostor + len(other)
    return genuine, impostor


def cross_scores(embeddings_a, labels_a, embeddings_b, labels_b):
    """Cosine similarities of every row of a (samples) against every row of b (real photos).

    Genuine where the labels are equal. Identities are matched by label, never by position; an identity in
    one set only takes part as impostor.

    Returns:
        (genuine, impostor), float32; either may be empty.
    """
    a, labels_a = as_features(embeddings_a, "sample"), as_labels(labels_a, len(embeddings_a), "sample")
    b, labels_b = as_features(embeddings_b, "real"), as_labels(labels_b, len(embeddings_b), "real")
    same_width(a, b, ("sample", "real"))
    a, b = unit_rows(a, "sample"), unit_rows(b, "real")
    codes = np.unique(np.concatenate([labels_a, labels_b]), return_inverse=True)[1]
    codes_a, codes_b = codes[: len(a)], codes[len(a) :]
    matches = int(np.bincount(codes_b, minlength=codes.max() + 1)[codes_a].sum())
    genuine, impostor = np.empty(matches, np.float32), np.empty(len(a) * len(b) - matches, np.float32)
    rows = max(1, BLOCK // len(b))
    at = 0  # number of genuine scores so far
    for start in range(0, len(a), rows):
        block = a[start : start + rows] @ b.T
        same = codes_a[start : start + rows, None] == codes_b
        found, at_impostor = int(same.sum()), start * len(b) - at
        genuine[at : at + found] = block[same]
        impostor[at_impostor : at_impostor + same.size - found] = block[~same]
        at += found
    return genuine, impostor


def prepared(embeddings, labels, name):
    """Unit float32 rows and integer identity codes, checked."""
    embeddings = as_features(embeddings, name)
    labels = as_labels(labels, len(embeddings), name)
    return unit_rows(embeddings, name), np.unique(labels, return_inverse=True)[1]


def verification_stats(genuine, impostor, fmr_rule="at_most"):
    """How well scores tell genuine from impostor comparisons.

    Args:
        genuine, impostor: similarity scores of any shape, finite (float32 needs half the memory of
            float64), or a :class:`ScoreSample` of them.
        fmr_rule: "at_most" (default): fmr100 is the lowest FNMR of all thresholds whose FMR <= 1/100, as
            FVC2000 defines it. "nearest": FNMR at the threshold whose FMR is nearest to 1/100 (PyEER, and
            the published tables); that FMR may lie above the target.

    Returns:
        dict of floats: auc (ties count half), eer (FVC2000: midpoint of the interval where the curves cross),
        eer_threshold; FNMR at FMR 0, 1/100, 1/1000: fmr0, fmr100, fmr1000; FMR at FNMR 0, 1/100, 1/1000:
        fnmr0, fnmr100, fnmr1000; genuine_mean, genuine_std, impostor_mean, impostor_std (ddof 0); fdr
        (squared difference of means over the sum of variances), decidability (difference of means over the
        root mean of the variances); mcc (Matthews' correlation coefficient, the highest of all thresholds,
        as PyEER) and mcc_at_eer (that at eer_threshold).

    Raises:
        MetricError: either set is empty or holds NaN; a value that does not exist is never returned as 0.
    """
    if fmr_rule not in RULES:
        raise ValueError(f"unknown fmr_rule {fmr_rule!r}; one of {', '.join(RULES)}")
    return stats_of(as_sample(genuine, "genuine"), as_sample(impostor, "impostor"), fmr_rule)


def stats_of(genuine, impostor, fmr_rule="at_most"):
    """:func:`verification_stats` of two :class:`ScoreSample`."""
    eer, threshold = equal_error_rate(genuine, impostor)
    difference = genuine.mean - impostor.mean
    variance = genuine.std**2 + impostor.std**2
    targets = {"0": np.inf, "100": 100, "1000": 1000}
    pair = genuine, impostor
    return {
        "auc": area_under_curve(*pair),
        "eer": eer,
        "eer_threshold": threshold,
        **{f"fmr{name}": fnmr_at_fmr(*pair, target, fmr_rule) for name, target in targets.items()},
        **{f"fnmr{name}": fmr_at_fnmr(*pair, target, fmr_rule) for name, target in targets.items()},
        "mcc": matthews_correlation(*pair),
        "mcc_at_eer": matthews_correlation(*pair, threshold),
        "genuine_mean": genuine.mean,
        "genuine_std": genuine.std,
        "impostor_mean": impostor.mean,
        "impostor_std": impostor.std,
        "fdr": ratio(difference**2, variance),
        "decidability": ratio(abs(difference), np.sqrt(variance / 2)),
    }


def identification_ranks(embeddings, labels, gallery, gallery_labels):
    """At which rank a search of a gallery finds the person: 1 when theirs is the most similar photo.

    An identity is as similar as its most similar photo; others that are equally similar rank first.

    Args:
        embeddings, labels: the samples, (N, D) and (N,). gallery, gallery_labels: the real photos.

    Returns:
        (ranks (M,) int, labels (M,)) of the samples whose identity has photos.

    Raises:
        MetricError: no sample's identity has any.
    """
    probes, photos = as_features(embeddings, "sample"), as_features(gallery, "real")
    same_width(probes, photos, ("sample", "real"))
    labels, names = as_labels(labels, len(probes), "sample"), as_labels(gallery_labels, len(photos), "real")
    order = np.argsort(names, kind="stable")
    people, starts = np.unique(names[order], return_index=True)
    known = np.isin(labels, people)
    if not known.any():
        raise MetricError("identification: no sample is of a person with photos")
    probes, photos = unit_rows(probes[known], "sample"), unit_rows(photos[order], "real")
    own, ranks = np.searchsorted(people, labels[known]), []
    rows = max(1, BLOCK // len(photos))
    for start in range(0, len(probes), rows):
        best = np.maximum.reduceat(probes[start : start + rows] @ photos.T, starts, axis=1)
        mine = np.take_along_axis(best, own[start : start + rows, None], 1)
        ranks.append((best >= mine).sum(1))
    return np.concatenate(ranks), labels[known]


def cumulative_match(ranks, last):
    """Share of searches that find the person up to rank 1, 2, ..., ``last`` (the CMC curve), (last,)."""
    return np.bincount(ranks, minlength=last + 1)[1 : last + 1].cumsum() / len(ranks)
