"""Error rates of scores: exact, in O(n log n), each read off the sorted scores.

Scores are similarities (higher = more alike). A comparison matches when score >= threshold, as in PyEER
0.5.6, whose definitions these are: FMR(t) = share of impostor scores >= t, FNMR(t) = share of genuine
scores < t.
"""

import numpy as np

from evaluation.inputs import as_scores

BLOCK = 1 << 22  # scores at a time: 16 MiB of float32
RULES = ("at_most", "nearest")


class ScoreSample:
    """Scores in ascending order with optional weights: the empirical distribution rates are read from."""

    def __init__(self, scores, weights=None):
        if weights is None:
            self.values, self.mass = np.sort(scores), None
            self.total = len(scores)
            self.mean, self.std = moments(self.values)
        else:
            scores, weights = scores[weights > 0], weights[weights > 0]  # what is not drawn is no threshold
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


def as_sample(scores, name):
    """Scores as a :class:`ScoreSample`; one that is sorted already passes through."""
    return scores if isinstance(scores, ScoreSample) else ScoreSample(as_scores(scores, name))


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
    """FNMR where FMR is 1 / `denominator` (infinity: 0); `rule` as in evaluation.identity's statistics."""
    allowed = allowed_errors(impostor, denominator)
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


def fmr_at_fnmr(genuine, impostor, denominator, rule="at_most"):
    """FMR where FNMR is 1 / `denominator` (infinity: 0); `rule` as in :func:`fnmr_at_fmr`."""
    allowed = allowed_errors(genuine, denominator)
    # The highest threshold that rejects no more genuine scores than allowed is a genuine score.
    threshold = genuine.first(lambda t: genuine.count(t, "right") > allowed * (1 + 1e-12))
    rejected = genuine.count(threshold, "right")
    under = 1 / denominator - genuine.share_below(threshold)
    if rule == "nearest" and rejected / genuine.total - 1 / denominator <= under:
        above = genuine.first(lambda t: genuine.count(t, "right") > rejected)
        above = above if np.isfinite(above) else impostor.values[-1]
        threshold = max(threshold, above)
    return float(impostor.share_from(threshold))


def allowed_errors(sample, denominator):
    """How many (how much weight) of a sample 1 / `denominator` is.

    In whole numbers: 0.01 * 2900 is 28.999... in floating point, and would forbid the 29th error.
    """
    return sample.total // denominator if sample.mass is None else sample.total / denominator


def matthews_correlation(genuine, impostor, threshold=None):
    """Matthews' correlation coefficient at a threshold; for None the highest of all, PyEER's MCC.

    The highest is at a genuine score: between two of them a higher threshold only rejects more impostors.
    """
    thresholds = genuine.values if threshold is None else np.array([threshold])
    missed, rejected = genuine.count(thresholds) * 1.0, impostor.count(thresholds) * 1.0
    found, false = genuine.total - missed, impostor.total - rejected
    margins = (found + false, found + missed, rejected + false, rejected + missed)
    root = np.prod([np.sqrt(margin) for margin in margins], axis=0)
    values = (found * rejected - false * missed) / np.where(root > 0, root, 1)
    return float(values[0]) if threshold is not None else float(max(0.0, values.max()))


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
