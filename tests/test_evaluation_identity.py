"""Verification statistics against brute force, against PyEER 0.5.6's numbers, and against hand counts."""

import numpy as np
import pytest

from evaluation.bootstrap import mean_interval, paired_difference, verification_replicates
from evaluation.error_rates import ScoreSample, det_curve
from evaluation.identity import (
    cross_scores,
    cumulative_match,
    identification_ranks,
    pair_scores,
    stats_of,
    verification_stats,
)
from evaluation.inputs import MetricError


def rates(genuine, impostor, thresholds):
    """FMR and FNMR at each threshold, by the definition."""
    fmr = np.array([(impostor >= t).mean() for t in thresholds])
    fnmr = np.array([(genuine < t).mean() for t in thresholds])
    return fmr, fnmr


def fvc2000(genuine, impostor):
    """EER as FVC2000 words it: the interval between the last t with FMR > FNMR and the first without."""
    thresholds = np.append(np.unique(np.concatenate([genuine, impostor])), np.inf)
    fmr, fnmr = rates(genuine, impostor, thresholds)
    after = int(np.argmax(fmr <= fnmr))
    before = after if fmr[after] == fnmr[after] else max(after - 1, 0)
    return min((fmr[before] + fnmr[before]) / 2, (fmr[after] + fnmr[after]) / 2)


def score_sets(trials):
    """Small random score sets, half of them full of ties."""
    rng = np.random.default_rng(3)
    for trial in range(trials):
        genuine = rng.normal(rng.choice([0, 1, 3]), 1, rng.integers(1, 40))
        impostor = rng.normal(0, 1, rng.integers(1, 400))
        if trial % 2:
            genuine, impostor = np.round(genuine), np.round(impostor, 1)
        yield genuine, impostor


def test_statistics_equal_brute_force_with_and_without_ties():
    for genuine, impostor in score_sets(200):
        stats = verification_stats(genuine, impostor)
        wins = (genuine[:, None] > impostor).mean() + (genuine[:, None] == impostor).mean() / 2
        assert stats["auc"] == pytest.approx(wins, abs=1e-12)
        assert stats["eer"] == pytest.approx(fvc2000(genuine, impostor), abs=1e-12)
        thresholds = np.append(np.unique(np.concatenate([genuine, impostor])), np.inf)
        fmr, fnmr = rates(genuine, impostor, thresholds)
        for name, target in (("0", 0), ("100", 1 / 100), ("1000", 1 / 1000)):
            assert stats[f"fmr{name}"] == pytest.approx(fnmr[fmr <= target + 1e-12].min(), abs=1e-12)
            assert stats[f"fnmr{name}"] == pytest.approx(fmr[fnmr <= target + 1e-12].min(), abs=1e-12)


def test_nearest_rule_is_pyeers_argmin():
    for genuine, impostor in score_sets(200):
        stats = verification_stats(genuine, impostor, fmr_rule="nearest")
        fmr, fnmr = rates(genuine, impostor, np.unique(np.concatenate([genuine, impostor])))
        for name, target in (("0", 0), ("100", 1 / 100), ("1000", 1 / 1000)):
            assert stats[f"fmr{name}"] == pytest.approx(fnmr[np.argmin(abs(fmr - target))], abs=1e-12)
            nearest = np.flatnonzero(abs(fnmr - target) == abs(fnmr - target).min())[-1]
            assert stats[f"fnmr{name}"] == pytest.approx(fmr[nearest], abs=1e-12)


def test_matthews_correlation_is_that_of_the_decisions():
    for genuine, impostor in score_sets(60):
        stats = verification_stats(genuine, impostor)
        truth = np.repeat([1.0, 0.0], [len(genuine), len(impostor)])
        scores, found = np.concatenate([genuine, impostor]), {}
        for t in np.append(np.unique(scores), stats["eer_threshold"]):
            accepted = scores >= t  # the coefficient is the correlation of decision and truth
            found[t] = np.corrcoef(truth, accepted)[0, 1] if 0 < accepted.sum() < len(scores) else 0.0
        assert stats["mcc"] == pytest.approx(max(found.values()), abs=1e-12)
        assert stats["mcc_at_eer"] == pytest.approx(found[stats["eer_threshold"]], abs=1e-12)


def test_figures_of_pyeer_on_a_fixed_set():
    genuine = np.round(0.55 + 0.35 * np.sin(np.arange(1, 61) * 1.7), 3)
    k = np.arange(1, 2501)
    impostor = np.round(0.1 + 0.3 * np.sin(k * 0.37) * np.cos(k * 0.0113), 3)
    stats = verification_stats(genuine, impostor, fmr_rule="nearest")
    # Printed by PyEER 0.5.6 (get_eer_stats; fnmr100 and fnmr1000 by its get_fnmr_op).
    expected = {
        "fmr0": 0.36666666666666664,
        "fnmr0": 0.2612,
        "fnmr100": 0.2612,
        "fnmr1000": 0.2612,
        "mcc": 0.7923437495805334,
        "auc": 0.94234,
        "eer": 0.17133333333333334,
        "eer_threshold": 0.257,
        "fmr100": 0.35,
        "fmr1000": 0.36666666666666664,
        "decidability": 2.2105026821043907,
    }
    assert {key: stats[key] for key in expected} == pytest.approx(expected, rel=1e-12)


def test_hand_counted_example():
    stats = verification_stats([0.9, 0.8, 0.7, 0.2], [0.1, 0.3, 0.75, 0.0])
    # Of 16 pairs the genuine wins 4 + 4 + 3 + 2; at t = 0.7 one of four errs on either side.
    assert stats["auc"] == 13 / 16
    assert stats["eer"] == 0.25 and stats["eer_threshold"] == 0.7
    assert stats["fmr100"] == 0.5  # only 0.9 and 0.8 lie above every impostor
    assert stats["genuine_mean"] == pytest.approx(0.65) and stats["impostor_mean"] == pytest.approx(0.2875)
    variance = np.var([0.9, 0.8, 0.7, 0.2]) + np.var([0.1, 0.3, 0.75, 0.0])
    assert stats["fdr"] == pytest.approx(0.3625**2 / variance)
    assert stats["decidability"] == pytest.approx(0.3625 / np.sqrt(variance / 2))


def test_target_fmr_counts_whole_impostors():
    # 2,900 / 100 = 29 false matches are allowed; in floating point 0.01 * 2900 falls short of 29.
    impostor = np.arange(2900.0)
    assert verification_stats([2869.5, 2870.5], impostor)["fmr100"] == 0.5


def test_equal_and_separated_scores():
    same = verification_stats([0.5] * 4, [0.5] * 9)
    assert same["auc"] == 0.5 and same["eer"] == 0.5 and same["fmr100"] == 1.0
    apart = verification_stats([1.0, 1.0], [0.0, 0.0])
    assert apart["auc"] == 1.0 and apart["eer"] == 0.0 and apart["fdr"] == float("inf")


BROKEN = [([], [0.1]), ([0.1], []), ([np.nan], [0.1]), ([0.1], [np.inf])]


@pytest.mark.parametrize("genuine, impostor", BROKEN)
def test_empty_and_broken_scores_are_refused(genuine, impostor):
    with pytest.raises(MetricError):
        verification_stats(genuine, impostor)


def embeddings(count, identities, seed=0, width=8):
    rng = np.random.default_rng(seed)
    labels = np.array([f"ID_{i}" for i in rng.integers(0, identities, count)])
    return rng.normal(size=(count, width)).astype(np.float32), labels


def test_pair_scores_are_all_pairs_once(monkeypatch):
    monkeypatch.setattr("evaluation.identity.BLOCK", 100)  # several blocks
    features, labels = embeddings(31, 4)
    genuine, impostor = pair_scores(features, labels)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    i, j = np.triu_indices(31, 1)
    cosines, same = (unit @ unit.T)[i, j], labels[i] == labels[j]
    np.testing.assert_allclose(np.sort(genuine), np.sort(cosines[same]), atol=1e-6)
    np.testing.assert_allclose(np.sort(impostor), np.sort(cosines[~same]), atol=1e-6)


def test_cross_scores_match_identities_by_label_not_position(monkeypatch):
    monkeypatch.setattr("evaluation.identity.BLOCK", 50)
    features, labels = embeddings(20, 3)
    genuine, _ = cross_scores(features, labels, features[::-1], labels[::-1])
    assert len(genuine) == sum((labels == name).sum() ** 2 for name in np.unique(labels))
    genuine, impostor = cross_scores(features[:2], ["a", "b"], features[:3], ["b", "c", "a"])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(genuine), np.sort([unit[0] @ unit[2], unit[1] @ unit[0]]), atol=1e-6)
    assert len(impostor) == 4


def test_one_identity_and_one_image_each():
    features, _ = embeddings(3, 1)
    genuine, impostor = pair_scores(features, ["a"] * 3)
    assert len(genuine) == 3 and len(impostor) == 0
    genuine, impostor = pair_scores(features, ["a", "b", "c"])
    assert len(genuine) == 0 and len(impostor) == 3
    with pytest.raises(MetricError, match="genuine"):
        verification_stats(genuine, impostor)


def test_broken_embeddings_are_refused():
    features, labels = embeddings(5, 2)
    features[3, 0] = np.nan
    with pytest.raises(MetricError, match="row 3"):
        pair_scores(features, labels)
    with pytest.raises(MetricError, match="all zeros"):
        pair_scores(np.zeros((4, 3)), list("aabb"))
    with pytest.raises(MetricError, match="one label per row"):
        pair_scores(np.ones((4, 3)), list("aab"))


def test_det_curve_is_monotone_and_honest():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(2, 1, 300), rng.normal(0, 1, 5000)
    fmr, fnmr = det_curve(genuine, impostor)
    assert (np.diff(fnmr) <= 0).all() and fnmr[-1] == 0 and fmr[-1] == 1
    k = int(np.searchsorted(fmr, 0.01, "right")) - 1
    assert fnmr[k] >= verification_stats(genuine, impostor)["fmr100"]


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    for genuine, impostor in score_sets(40):
        times = rng.integers(0, 3, len(genuine)), rng.integers(0, 3, len(impostor))
        if not (times[0].sum() and times[1].sum()):
            continue
        weighted = stats_of(ScoreSample(genuine, times[0]), ScoreSample(impostor, times[1]))
        repeated = verification_stats(np.repeat(genuine, times[0]), np.repeat(impostor, times[1]))
        for key in ("auc", "eer", "fmr100", "fmr1000", "genuine_mean", "impostor_std"):
            assert weighted[key] == pytest.approx(repeated[key], abs=1e-9)


def test_mean_interval_covers_about_95_percent():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        mean, low, high = mean_interval(dict(enumerate(rng.normal(size=40))), replicates=400, seed=trial)
        assert low < mean < high
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99
    assert np.isnan(mean_interval({"a": 1.0})[1])


def test_paired_difference_cancels_what_people_share():
    rng = np.random.default_rng(0)
    person = {f"ID_{i}": value for i, value in enumerate(rng.normal(0, 5, 30))}
    better = {name: value + 0.1 + rng.normal(0, 0.05) for name, value in person.items()}
    paired = paired_difference(better, person | {"stranger": 99.0})
    assert paired["identities"] == 30 and paired["low"] > 0.05 and paired["share_above_zero"] == 1.0
    with pytest.raises(MetricError):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_verification_replicates_are_seeded_paired_and_centred():
    rng = np.random.default_rng(0)
    labels = np.repeat([f"ID_{i}" for i in range(12)], 5)
    features = np.repeat(rng.normal(size=(12, 16)), 5, axis=0) + rng.normal(size=(60, 16))
    draws = verification_replicates(features, labels, replicates=100)
    again = verification_replicates(features, labels, replicates=100)
    np.testing.assert_array_equal(draws["eer"], again["eer"])
    point = verification_stats(*pair_scores(features, labels))
    low, high = np.nanquantile(draws["auc"], [0.01, 0.99])
    assert low < point["auc"] < high


def test_ranks_by_hand():
    gallery = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])  # a, a, b
    probes = np.array([[1.0, 0.1], [0.0, 2.0], [1.0, 0.0], [1.0, 1.0]])
    ranks, labels = identification_ranks(probes, ["a", "b", "b", "stranger"], gallery, ["a", "a", "b"])
    assert ranks.tolist() == [1, 1, 2] and labels.tolist() == ["a", "b", "b"]
    assert cumulative_match(ranks, 3).tolist() == pytest.approx([2 / 3, 1, 1])
    assert cumulative_match(np.array([1, 3, 6]), 2).tolist() == pytest.approx([1 / 3, 1 / 3])
    # A second person who is exactly as similar stands before.
    ranks, _ = identification_ranks(probes[:1], ["a"], gallery[[0, 0]], ["a", "c"])
    assert ranks.tolist() == [2]
    with pytest.raises(MetricError, match="no sample is of a person with photos"):
        identification_ranks(probes, ["x"] * 4, gallery, ["a", "a", "b"])
