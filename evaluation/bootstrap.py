"""Bootstrap over identities: how much a figure would change with other people.

Photos of one person, and scores that share a person, are not independent; people are. So identities are drawn
with replacement and every figure is computed again from those drawn (Bolle et al., 2004, the subsets
bootstrap). All methods see the same draws, so a difference between methods is a paired one.
"""

import numpy as np

from evaluation.diversity import frechet_of_moments
from evaluation.error_rates import ScoreSample
from evaluation.identity import stats_of
from evaluation.inputs import MetricError, as_labels
from evaluation.protocols import Pairs
from utils.seeding import derive_seed

LEVEL = 0.95
REPLICATES = 1000
# More impostor scores than this do not narrow an interval that identities dominate; they only cost time.
MAX_IMPOSTORS = 200_000


def identity_weights(names, replicates=REPLICATES, seed=0):
    """How often each identity is drawn in each replicate: int (replicates, names), rows sum to len(names).

    Depends on the names and the seed only, so two calls for two methods draw the same people.
    """
    names = [str(name) for name in names]
    rng = np.random.default_rng(derive_seed("identity bootstrap", seed, *names))
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)


def mean_interval(per_identity, replicates=REPLICATES, seed=0, level=LEVEL):
    """(mean, low, high) of a mapping identity -> value: percentile interval of the mean over identities.

    One identity has no interval: low and high are NaN.
    """
    names, values = sorted_items(per_identity)
    weights = identity_weights(names, replicates, seed)
    return (float(values.mean()), *percentile_interval(weights @ values / len(values), len(values), level))


def pooled_interval(values, labels, replicates=REPLICATES, seed=0, level=LEVEL):
    """(mean, low, high) of a mean over images, identities redrawn with all their images.

    Args:
        values: (N,) one per image. labels: (N,) identity of each.
    """
    values, labels = np.asarray(values, np.float64), as_labels(labels, len(values), "bootstrap").astype(str)
    if not len(values) or not np.isfinite(values).all():
        raise MetricError("bootstrap: no values, or NaN among them")
    names, codes = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(codes, values), np.bincount(codes)
    weights = identity_weights(names, replicates, seed)
    draws = (weights @ sums) / (weights @ counts)
    return (float(values.mean()), *percentile_interval(draws, len(names), level))


def paired_difference(first, second, replicates=REPLICATES, seed=0, level=LEVEL):
    """Mean of `first` minus mean of `second` over the identities in both, with a paired interval.

    Returns:
        dict: difference, low, high, share_above_zero (of the replicates), identities (count).

    Raises:
        MetricError: no identity is in both.
    """
    common = {name: first[name] - second[name] for name in first if name in second}
    if not common:
        raise MetricError("paired difference: the two methods share no identity")
    names, values = sorted_items(common)
    draws = identity_weights(names, replicates, seed) @ values / len(values)
    low, high = percentile_interval(draws, len(values), level)
    return {
        "difference": float(values.mean()),
        "low": low,
        "high": high,
        "share_above_zero": float((draws > 0).mean()),
        "identities": len(values),
    }


def unpaired_difference(first, second, replicates=REPLICATES, seed=0, level=LEVEL):
    """(difference, low, high) of the means of two mappings identity -> value of different people.

    The people of each are redrawn by themselves. One person on a side has no interval: low and high are NaN.
    """
    sides = [sorted_items(one) for one in (first, second)]
    draws = [identity_weights(names, replicates, seed) @ values / len(values) for names, values in sides]
    difference = float(sides[0][1].mean() - sides[1][1].mean())
    fewest = min(len(values) for _, values in sides)
    return (difference, *percentile_interval(draws[0] - draws[1], fewest, level))


def sorted_items(per_identity):
    """Names in string order and their values as float64; MetricError when empty or not finite."""
    names = sorted(per_identity, key=str)
    values = np.array([per_identity[name] for name in names], dtype=np.float64)
    if not len(values):
        raise MetricError("bootstrap: no identity has a value")
    if not np.isfinite(values).all():
        raise MetricError(f"bootstrap: {names[int(np.argmin(np.isfinite(values)))]} has no finite value")
    return names, values


def percentile_interval(draws, identities, level=LEVEL):
    """(low, high) percentiles of the replicates; NaN for a single identity, which cannot vary."""
    draws = draws[np.isfinite(draws)]
    if identities < 2 or not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def frechet_replicates(real, fake, people, replicates=200, seed=0):
    """Frechet distances (replicates,) of two sets, each (rows (N, D), labels), for redrawn `people`.

    A row counts as often as its person is drawn; those of nobody among `people` once. Rows should be centred.
    Replicates that leave a side fewer than two rows are NaN.
    """
    weights = np.column_stack([identity_weights(people, replicates, seed), np.ones(replicates)])
    sides = [rows_by_person(*side, people) for side in (real, fake)]
    enough = np.all([weights @ [len(part) for part in parts] >= 2 for parts in sides], axis=0)
    draws = np.full(replicates, np.nan)
    draws[enough] = frechet_of_moments(*(redrawn_moments(parts, weights[enough]) for parts in sides))
    return draws


def rows_by_person(rows, labels, people):
    """The rows of each of `people`, then those of all others."""
    places = {name: place for place, name in enumerate(people)}
    codes = np.array([places.get(name, len(people)) for name in labels])
    return [rows[codes == place] for place in range(len(people) + 1)]


def redrawn_moments(parts, weights):
    """(means (R, D), covariances (R, D, D), ddof 1) of rows (parts) that count by the weights (R, parts)."""
    counts = weights @ [len(part) for part in parts]
    means = weights @ np.array([part.sum(0) for part in parts]) / counts[:, None]
    products = np.tensordot(weights, np.array([part.T @ part for part in parts]), 1)
    outer = means[:, :, None] * means[:, None]
    return means, (products - counts[:, None, None] * outer) / (counts - 1)[:, None, None]


def verification_replicates(
    embeddings,
    labels,
    other=None,
    other_labels=None,
    replicates=200,
    seed=0,
    fmr_rule="at_most",
    protocol="all",
):
    """Statistics of :func:`evaluation.identity.verification_stats` for redrawn identities.

    Args:
        embeddings, labels: the samples. other, other_labels: the real photos, or None for samples against
            samples. Genuine scores of a person drawn w times count w times, impostor scores of persons drawn
            v and w times count v * w times; pairs of one person's copies are never impostors.
        protocol: whose pairs these are (evaluation/protocols.py), drawn with `seed` as for the figure itself.

    Returns:
        dict statistic -> (replicates,) float64, replicate i of the same people for every method over the
        same identities. Replicates that leave no genuine or no impostor pair are NaN. Beyond 200,000
        impostor scores of protocol "all" a seeded random part of them is used.
    """
    pairs = Pairs(protocol, embeddings, labels, other, other_labels, seed, MAX_IMPOSTORS)
    genuine, impostor = (sorted_scores(pairs, rows) for rows in (pairs.genuine, pairs.impostor))
    if not len(genuine[0]) or not len(impostor[0]):
        kind = "genuine" if not len(genuine[0]) else "impostor"
        raise MetricError(f"verification: no {kind} pair; it takes two identities and two images of one")
    rows = []
    for weights in identity_weights(pairs.names, replicates, seed):
        weights = weights.astype(np.float64)
        own, apart = weights[genuine[1]], weights[impostor[1]] * weights[impostor[2]]
        if own.any() and apart.any():
            rows.append(stats_of(ScoreSample(genuine[0], own), ScoreSample(impostor[0], apart), fmr_rule))
        else:
            rows.append({})
    keys = next((list(row) for row in rows if row), [])
    return {key: np.array([row.get(key, np.nan) for row in rows]) for key in keys}


def sorted_scores(pairs, rows):
    """(scores, first identity, second identity) of pairs of rows, in ascending order of the scores."""
    scores = pairs.scores(rows)
    order = np.argsort(scores, kind="stable")
    return scores[order], pairs.first_codes[rows[0]][order], pairs.second_codes[rows[1]][order]
