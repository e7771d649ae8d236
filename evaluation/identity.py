"""Verification statistics over all pairs: exact, in O(n log n), in little more memory than the scores.

Scores are similarities (higher = more alike). A comparison matches when score >= threshold, as in PyEER
0.5.6, whose definitions these are: FMR(t) = share of impostor scores >= t, FNMR(t) = share of genuine
scores < t.
"""

import numpy as np

from evaluation.inputs import as_features, as_labels, as_scores, same_width, unit_rows

BLOCK = 1 << 22  # scores per block: 16 MiB of float32


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


class ScoreSample:
    """Scores in ascending order with optional weights: the empirical distribution rates are read from."""

    def __init__(self, scores, weights=None):
        if weights is None:
            self.values, self.mass = np.sort(scores), None
            self.total = len(scores)
            self.mean, self.std = moments(self.values)
        else:
            order = np.argsort(scores, kind="stable")
            self.values = scores[order]
            self.mass = np.concatenate([[0.0], np.cumsum(weights[order], dtype=np.float64)])
            self.total = self.mass[-1]
            self.mean = float(np.average(scores, weights=weights))
            self.std = float(np.sqrt(np.average((scores - self.mean) ** 2, weights=weights)))

    def count(self, threshold, side="left"):
        """Number (or weight) of scores < threshold; with side "right", <= threshold. Also for arrays."""
        index = np.searchsorted(self.values, threshold, side=side)
        return index if self.mass is None else self.mass[index]

    def share_below(self, threshold):
        """Share of scores < threshold: the FNMR of genuine scores."""
        return self.count(threshold) / self.total

    def share_from(self, threshold):
        """Share of scores >= threshold: the FMR of impostor scores."""
        return (self.total - self.count(threshold)) / self.total

    def first(self, predicate):
        """The smallest score for which a predicate that never turns false again holds; infinity if none."""
        low, high = 0, len(self.values)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if predicate(self.values[middle]) else (middle + 1, high)
        return self.values[low] if low < len(self.values) else np.inf

    def next_below(self, threshold):
        """The largest score < threshold, or minus infinity."""
        index = np.searchsorted(self.values, threshold, side="left")
        return self.values[index - 1] if index else -np.inf


def moments(values):
    """(mean, standard deviation with ddof 0) in float64, block by block so that no float64 copy is made."""
    mean = values.sum(dtype=np.float64) / len(values)
    blocks = (values[i : i + BLOCK].astype(np.float64) - mean for i in range(0, len(values), BLOCK))
    return float(mean), float(np.sqrt(sum(float(block @ block) for block in blocks) / len(values)))


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
        eer_threshold, fmr100, fmr1000, genuine_mean, genuine_std, impostor_mean, impostor_std (ddof 0), fdr
        (squared difference of means over the sum of variances), decidability (difference of means over the
        root mean of the variances).

    Raises:
        MetricError: either set is empty or holds NaN; a value that does not exist is never returned as 0.
    """
    if fmr_rule not in ("at_most", "nearest"):
        raise ValueError(f"unknown fmr_rule {fmr_rule!r}; one of at_most, nearest")
    return stats_of(as_sample(genuine, "genuine"), as_sample(impostor, "impostor"), fmr_rule)


def as_sample(scores, name):
    """Scores as a :class:`ScoreSample`; one that is sorted already passes through."""
    return scores if isinstance(scores, ScoreSample) else ScoreSample(as_scores(scores, name))


def stats_of(genuine, impostor, fmr_rule="at_most"):
    """:func:`verification_stats` of two :class:`ScoreSample`."""
    eer, threshold = equal_error_rate(genuine, impostor)
    difference = genuine.mean - impostor.mean
    variance = genuine.std**2 + impostor.std**2
    return {
        "auc": area_under_curve(genuine, impostor),
        "eer": eer,
        "eer_threshold": threshold,
        "fmr100": fnmr_at_fmr(genuine, impostor, 100, fmr_rule),
        "fmr1000": fnmr_at_fmr(genuine, impostor, 1000, fmr_rule),
        "genuine_mean": genuine.mean,
        "genuine_std": genuine.std,
        "impostor_mean": impostor.mean,
        "impostor_std": impostor.std,
        "fdr": ratio(difference**2, variance),
        "decidability": ratio(abs(difference), np.sqrt(variance / 2)),
    }


def ratio(difference, spread):
    """difference / spread; two constant distributions are infinitely far apart, or, if equal, not at all."""
    if spread == 0:
        return float("inf") if difference else 0.0
    return float(difference / spread)


def area_under_curve(genuine, impostor):
    """P(genuine > impostor) + P(equal) / 2, the area under the ROC curve (Mann and Whitney)."""
    area = 0.0
    for start in range(0, len(genuine.values), BLOCK):
        values = genuine.values[start : start + BLOCK]
        wins = (impostor.count(values) + impostor.count(values, "right")) / 2
        if genuine.mass is None:
            area += float(wins.sum(dtype=np.float64))
        else:
            area += float(wins @ np.diff(genuine.mass[start : start + len(values) + 1]))
    return area / (float(genuine.total) * float(impostor.total))


def equal_error_rate(genuine, impostor):
    """(EER, threshold) by FVC2000 (Maio et al., TPAMI 2002): midpoint of the interval where FMR meets FNMR.

    Thresholds are the scores themselves and, unlike in PyEER, one above them all, so that scores that are all
    equal have the EER 0.5 and not 1.
    """

    def crossed(threshold):
        return impostor.share_from(threshold) - genuine.share_below(threshold) <= 0

    after = min(genuine.first(crossed), impostor.first(crossed))
    before = max(genuine.next_below(after), impostor.next_below(after))
    candidates = [after]
    if np.isfinite(before) and impostor.share_from(after) != genuine.share_below(after):
        candidates.insert(0, before)
    rates = [impostor.share_from(t) + genuine.share_below(t) for t in candidates]
    best = int(np.argmin(rates))
    return float(rates[best] / 2), finite_threshold(candidates[best], genuine, impostor)


def fnmr_at_fmr(genuine, impostor, denominator, rule="at_most"):
    """FNMR where FMR is 1 / `denominator`; `rule` as in :func:`verification_stats`."""
    allowed = impostor.total / denominator
    if impostor.mass is None:
        # In whole numbers: 0.01 * 2900 is 28.999... in floating point, and would forbid the 29th false match.
        allowed = impostor.total // denominator
    # The largest score that, as a threshold, still lets too many impostors through.
    above = impostor.first(lambda t: impostor.total - impostor.count(t) <= allowed * (1 + 1e-12))
    last_bad = impostor.next_below(above)
    at_most = genuine.count(last_bad, "right") / genuine.total
    if rule == "at_most":
        return float(at_most)
    target = 1 / denominator
    over = abs(impostor.share_from(last_bad) - target)
    under = abs(impostor.share_from(np.nextafter(last_bad, np.inf, dtype=impostor.values.dtype)) - target)
    nothing_above = max(genuine.values[-1], impostor.values[-1]) <= last_bad
    if over <= under or nothing_above:
        return float(genuine.count(impostor.next_below(last_bad), "right") / genuine.total)
    return float(at_most)


def finite_threshold(threshold, *samples):
    """The threshold, or for infinity the next number above all scores."""
    if np.isfinite(threshold):
        return float(threshold)
    return float(np.nextafter(max(sample.values[-1] for sample in samples), np.inf))


def det_curve(genuine, impostor, points=200):
    """(FMR, FNMR), each (points,): the detection error trade-off at logarithmically spaced FMR up to 1.

    Each point is the lowest FNMR with at most that FMR; the lowest FMR is one false match.
    """
    genuine, impostor = as_sample(genuine, "genuine"), as_sample(impostor, "impostor")
    allowed = np.unique(np.geomspace(1, impostor.total, points).round().astype(np.int64))
    last_bad = impostor.values[np.maximum(impostor.total - allowed - 1, 0)]
    fnmr = genuine.count(last_bad, "right") / genuine.total
    fnmr[allowed >= impostor.total] = 0.0
    return allowed / impostor.total, fnmr
