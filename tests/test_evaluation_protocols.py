"""The pairs of the published protocol: how many, whose, and intervals of the same statistic."""

import numpy as np
import pytest

from evaluation.bootstrap import percentile_interval, verification_replicates
from evaluation.identity import verification_stats
from evaluation.protocols import Pairs, scores

PEOPLE = 107


def people(each, width=4, spread=1.0, count=PEOPLE):
    """Features and labels of `count` people, `each` images of every one around a centre of their own."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(count, width)).repeat(each, 0)
    features = centres + spread * rng.normal(size=centres.shape)
    return features.astype(np.float32), np.repeat([f"ID_{i}" for i in range(count)], each)


def test_the_published_numbers_of_pairs():
    # 107 people of 21 images: 22,470 genuine pairs among samples; 366 and 385 pairs of people of 64 scores.
    features, labels = people(21)
    among = Pairs("id-booth", features, labels)
    assert len(among.genuine[0]) == 22_470 and len(among.impostor[0]) == 366 * 64 == 23_424
    against = Pairs("id-booth", features, labels, features, labels)
    assert len(against.genuine[0]) == PEOPLE * 441 and len(against.impostor[0]) == 385 * 64 == 24_640


def test_the_code_compares_a_sample_with_later_photos_only():
    features, labels = people(21, count=3)
    pairs = Pairs("id-booth-code", features, labels, features, labels)
    assert len(pairs.genuine[0]) == 3 * 210  # of 3 * 441
    i, j = pairs.genuine
    assert (labels[i] == labels[j]).all() and (i % 21 < j % 21).all()
    # Of a hundred samples of a person those from the 21st on are never compared.
    many, names = people(100, count=2)
    i, _ = Pairs("id-booth-code", many, names, *people(21, count=2)).genuine
    assert len(i) == 2 * 210 and (i % 100).max() == 19
    # Among samples nothing differs.
    both = [scores(name, features, labels)[0] for name in ("id-booth", "id-booth-code")]
    np.testing.assert_array_equal(*both)


def test_impostors_are_different_people_eight_images_by_eight():
    features, labels = people(10, count=19)
    pairs = Pairs("id-booth", features, labels)
    i, j = pairs.impostor
    assert (labels[i] != labels[j]).all() and len(set(zip(i, j, strict=True))) == len(i)
    for start in range(0, len(i), 64):
        block = i[start : start + 64]
        assert len(set(block)) == 8 and (block == np.repeat(block[::8], 8)).all()
    few = Pairs("id-booth", features[labels != "ID_0"][::4], labels[labels != "ID_0"][::4])
    assert (
        len(few.impostor[0]) and (few.first_codes[few.impostor[0]] != few.second_codes[few.impostor[1]]).all()
    )


def test_scores_are_cosines_of_the_pairs_and_seeded():
    features, labels = people(3, count=5)
    pairs = Pairs("id-booth", features, labels, features[::-1], labels[::-1], seed=4)
    genuine, impostor = scores("id-booth", features, labels, features[::-1], labels[::-1], seed=4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for rows, found in ((pairs.genuine, genuine), (pairs.impostor, impostor)):
        expected = [unit[i] @ unit[::-1][j] for i, j in zip(*rows, strict=True)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    other = scores("id-booth", features, labels, features[::-1], labels[::-1], seed=5)[1]
    assert not np.array_equal(impostor, other)
    with pytest.raises(ValueError, match="unknown protocol"):
        scores("some", features, labels)


@pytest.mark.parametrize("protocol", ["all", "id-booth", "id-booth-code"])
def test_intervals_are_of_the_statistic_beside_them(protocol):
    """The figure lies in the middle of its replicates, and one replicate is what a repeated sample gives."""
    sides = people(6, width=16, spread=1.5, count=30) * 2
    point = verification_stats(*scores(protocol, *sides, seed=1))
    draws = verification_replicates(*sides, replicates=120, seed=1, protocol=protocol)
    for key in ("eer", "auc", "fmr100", "fmr1000", "genuine_mean"):
        low, high = percentile_interval(draws[key], 30)
        assert low <= point[key] <= high, key


def test_all_pairs_and_part_of_them():
    features, labels = people(5, count=12)
    whole = Pairs("all", features, labels, features, labels)
    assert len(whole.genuine[0]) == 12 * 25 and len(whole.impostor[0]) == 60 * 55
    part = Pairs("all", features, labels, features, labels, most=100)
    assert len(part.impostor[0]) == 100 and (labels[part.impostor[0]] != labels[part.impostor[1]]).all()
