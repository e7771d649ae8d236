"""Diversity metrics against their definitions, written out with scipy, and against `prdc` 0.2's numbers."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from configs.evaluation_config import EvaluationConfig
from evaluation.bootstrap import frechet_replicates, identity_weights
from evaluation.diversity import (
    authpct,
    cmmd,
    equal_sizes,
    frechet_distance,
    kernel_distance,
    kernel_distance_subsets,
    on_main_axes,
    prdc,
    smallest_identity,
    vendi_per_identity,
    vendi_score,
)
from evaluation.image_sets import REAL, REFERENCE
from evaluation.inputs import MetricError
from evaluation.measure_diversity import EQUAL, Features, difference_tables


def fixed(rows, columns, start):
    """The same pseudo-random numbers in [0, 1) on every machine."""
    k = np.arange(start, start + rows * columns, dtype=np.float64).reshape(rows, columns)
    return np.modf(np.abs(np.sin(k) * 43758.5453))[0]


def sets(rows=(40, 50), width=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows[0], width)), rng.normal(0.3, 1.2, size=(rows[1], width))


@pytest.mark.parametrize("rows, width", [((40, 50), 6), ((9, 7), 30), ((60, 8), 20)])
def test_frechet_distance_is_heusels_formula(rows, width):
    real, fake = sets(rows, width)
    s1, s2 = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    difference = real.mean(0) - fake.mean(0)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    expected = difference @ difference + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_shift_is_its_square():
    real, _ = sets()
    assert frechet_distance(real, real + 2.0) == pytest.approx(6 * 4.0)


def test_frechet_distances_of_redrawn_people_by_hand():
    """Of numbers it is the squared difference of means plus that of deviations; drawn twice counts twice."""
    real, fake = (np.random.default_rng(k).normal(k, 1 + k, 9) for k in (0, 1))
    people, labels = ["a", "b", "c"], np.repeat(["a", "b", "c"], 3)
    draws = frechet_replicates((real[:, None], labels), (fake[:, None], labels), people, 20)
    fixed = frechet_replicates((real[:, None], [None] * 9), (fake[:, None], labels), people, 20)
    for drawn, one, other in zip(identity_weights(people, 20), draws, fixed, strict=True):
        again, reals = np.repeat(fake, np.repeat(drawn, 3)), np.repeat(real, np.repeat(drawn, 3))
        for photos, figure in ((reals, one), (real, other)):
            means, deviations = again.mean() - photos.mean(), again.std(ddof=1) - photos.std(ddof=1)
            assert figure == pytest.approx(means**2 + deviations**2)


def test_frechet_replicates_on_main_axes_are_those_of_the_features():
    real, fake = sets((40, 40), width=30)
    fake[:, :25] *= 1e-4  # of its variance, and of the photos', five columns hold nearly all
    real[:, :25] *= 1e-4
    labels, people = np.repeat(["a", "b", "c", "d"], 10), ["a", "b", "c", "d"]
    for most in (5, 30):
        low = on_main_axes([real, fake], most)
        assert [one.shape for one in low] == [(40, most)] * 2
        draws = frechet_replicates(*((one, labels) for one in low), people, 5)
        for drawn, figure in zip(identity_weights(people, 5), draws, strict=True):
            rows = np.repeat(np.arange(40), np.repeat(drawn, 10))
            assert figure == pytest.approx(frechet_distance(real[rows], fake[rows]), rel=1e-3)


@pytest.mark.parametrize("reference", [REAL, REFERENCE])
def test_differences_of_fd_and_vendi_are_paired_by_person(reference):
    """Of two methods that share three of four people; the interval is that of the same people's redraws."""
    rng, names = np.random.default_rng(0), {REAL: "abcd", "A": "abcd", "B": "abc", REFERENCE: "efgh"}
    features = {k: (rng.normal(size=(4 * len(v), 3)), np.repeat([*v], 4)) for k, v in names.items()}
    features["A"][0][:] *= 2
    config = EvaluationConfig(verification_replicates=40, replicates=40, nearest_neighbours=2)
    found = Features(features, reference, EQUAL, config)
    found.kept = {name: np.arange(len(rows)) for name, (rows, _) in features.items()}
    row = difference_tables(found, ["A", "B"], "t", "T")[0].rows[0]
    photos, (a, labels), b = features[reference][0], features["A"], features["B"][0]
    a = a[labels != "d"]
    expected = frechet_distance(photos, a) - frechet_distance(photos, b)
    draws = []
    for drawn in identity_weights("abc", 40):
        rows = np.repeat(np.arange(12), np.repeat(drawn, 4))
        real = photos if reference == REFERENCE else photos[[*rows, 12, 13, 14, 15]]
        draws.append(frechet_distance(real, a[rows]) - frechet_distance(real, b[rows]))
    low, high = np.quantile(draws, [0.025, 0.975]) + expected - np.mean(draws)
    assert (row["people"], row["method"]) == (3, "A minus B")
    assert (row["fd"].value, row["fd"].low, row["fd"].high) == pytest.approx((expected, low, high))
    vendi = [np.mean([vendi_score(of[k : k + 4]) for k in (0, 4, 8)]) for of in (a, b)]
    assert row["vendi"].value == pytest.approx(vendi[0] - vendi[1])
    own = found.row("B")["fd"]
    assert own.value == pytest.approx(frechet_distance(photos, b)) and own.low < own.value < own.high


def test_kernel_distance_is_the_unbiased_cubic_mmd():
    real, fake = sets((13, 9))
    total = {}
    for name, a, b in (("rr", real, real), ("ff", fake, fake), ("rf", real, fake)):
        kernel = np.array([[(x @ y / 6 + 1) ** 3 for y in b] for x in a])
        total[name] = kernel[~np.eye(len(a), dtype=bool)].mean() if a is b else kernel.mean()
    assert kernel_distance(real, fake) == pytest.approx(total["rr"] + total["ff"] - 2 * total["rf"])


def test_kernel_distance_subsets_are_seeded_and_centre_on_the_whole():
    real, fake = sets((60, 70))
    mean, std = kernel_distance_subsets(real, fake, subsets=60, size=30)
    assert (mean, std) == kernel_distance_subsets(real, fake, subsets=60, size=30)
    assert abs(mean - kernel_distance(real, fake)) < 3 * std / np.sqrt(10)


# k -> precision, recall, density, coverage, as printed by prdc 0.2 (compute_prdc).
PRDC_0_2 = {
    1: [0.6888888888888889, 0.2, 0.9111111111111111, 0.21666666666666667],
    3: [0.9555555555555556, 0.35, 1.125925925925926, 0.5166666666666667],
    5: [1.0, 0.4666666666666667, 1.208888888888889, 0.7],
}


def test_prdc_of_the_authors_package():
    real, fake = fixed(60, 4, 1), 0.7 * fixed(45, 4, 1000) + 0.35
    for k, expected in PRDC_0_2.items():
        assert list(prdc(real, fake, k).values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rows", [(30, 30), (12, 50), (700, 530)])
def test_prdc_is_its_definition(rows):
    real, fake = sets(rows)
    real_radius, fake_radius = (np.sort(cdist(x, x), axis=1)[:, 5] for x in (real, fake))
    distance = cdist(real, fake)
    assert prdc(real.astype(np.float32), fake.astype(np.float32)) == pytest.approx(
        {
            "precision": (distance < real_radius[:, None]).any(0).mean(),
            "recall": (distance < fake_radius).any(1).mean(),
            "density": (distance < real_radius[:, None]).sum(0).mean() / 5,
            "coverage": (distance.min(1) < real_radius).mean(),
        },
        abs=1e-12,
    )


def test_prdc_of_identical_and_far_sets():
    real, _ = sets()
    same = prdc(real, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    assert set(prdc(real, real + 100).values()) == {0.0}
    # All points equal: every ball has radius zero and an empty inside.
    assert set(prdc(np.ones((8, 3)), np.ones((9, 3)), k=2).values()) == {0.0}


def test_vendi_counts_different_rows():
    assert vendi_score(np.ones((7, 5))) == pytest.approx(1.0)
    assert vendi_score(np.eye(6)) == pytest.approx(6.0)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3.0)
    wide, tall = fixed(9, 40, 1), fixed(40, 9, 1)
    for features in (wide, tall):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        share = np.linalg.eigvalsh(unit @ unit.T / len(unit))
        share = share[share > 1e-14]
        assert vendi_score(features) == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_vendi_per_identity_draws_equal_sizes():
    features, labels = fixed(12, 5, 1), list("aaaaabbbbbcc")
    scores = vendi_per_identity(features, labels, size=4)
    assert set(scores) == {"a", "b"} and scores == vendi_per_identity(features, labels, size=4)
    assert vendi_per_identity(features, labels)["c"] == pytest.approx(vendi_score(features[10:]))
    assert smallest_identity([labels, list("aaabbbbd")]) == 2 and smallest_identity([labels[:10]]) == 5
    assert smallest_identity([list("ab")]) == 0 and vendi_per_identity(features, labels, size=0) == {}


def test_authpct_by_hand():
    train = np.array([[0.0], [1.0], [5.0]])
    # 0.1 copies 0 (fellow at 1); 3.2 is 1.8 from 5, whose fellow is 4 away; 9.5 is 4.5 from 5: authentic.
    assert authpct(train, np.array([[0.1], [3.2], [9.5]])) == pytest.approx(100 / 3)
    assert authpct(train, train) == 0.0
    real, fake = sets((30, 20))
    own = cdist(real, real)
    np.fill_diagonal(own, np.inf)
    distance = cdist(real, fake)
    expected = 100 * (own.min(1)[distance.argmin(0)] < distance.min(0)).mean()
    assert authpct(real, fake) == pytest.approx(expected)


def test_cmmd_is_the_biased_gaussian_mmd_of_unit_rows():
    real, fake = sets((13, 9))
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (real, fake)]
    kernels = [np.exp(-cdist(a, b, "sqeuclidean") / 200) for a in units for b in units]
    expected = 1000 * (kernels[0].mean() + kernels[3].mean() - 2 * kernels[1].mean())
    assert cmmd(real, 3 * fake) == pytest.approx(expected, rel=1e-9)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-9)
    # Two opposite points: 1 + 1 - 2 exp(-4 / 200).
    assert cmmd([[1.0, 0.0]], [[-2.0, 0.0]]) == pytest.approx(2000 * (1 - np.exp(-0.02)))


def test_bad_features_are_refused():
    real, fake = sets()
    broken = fake.copy()
    broken[4, 1] = np.nan
    for metric in (frechet_distance, kernel_distance, prdc, authpct):
        with pytest.raises(MetricError, match="row 4"):
            metric(real, broken)
        with pytest.raises(MetricError, match="6 and 5 dimensions"):
            metric(real, fake[:, :5])
        with pytest.raises(MetricError, match="rows"):
            metric(real, fake[:0])
    with pytest.raises(MetricError, match="at least 6"):
        prdc(real, fake[:5])
    with pytest.raises(MetricError):
        frechet_distance(real, fake[:1])


def test_equal_sizes_are_seeded_subsets():
    first, second = equal_sizes(range(10), range(4), seed=5)
    assert len(first) == len(second) == 4 and len(set(first)) == 4
    np.testing.assert_array_equal(first, equal_sizes(range(10), range(4), seed=5)[0])
