"""Ten-fold accuracy against the published definition written out, and TAR by hand."""

import numpy as np
import pytest

from fr_training.verification import evaluate_pairs, far_name, fold_bounds, tar_at_far, ten_fold_accuracy
from utils.errors import UserError


def straightforward(first, second, same):
    """The published definition with loops: folds, thresholds, counting of hits."""
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    distances = np.sum(np.square(first - second), 1)
    folds = np.array_split(np.arange(len(same)), 10)
    accuracies = []
    for fold in folds:
        others = np.setdiff1d(np.arange(len(same)), fold)
        best, chosen = -1.0, None
        for threshold in np.arange(0, 4, 0.01):
            accuracy = np.mean((distances[others] < threshold) == same[others])
            if accuracy > best:
                best, chosen = accuracy, threshold
        accuracies.append(np.mean((distances[fold] < chosen) == same[fold]))
    return np.mean(accuracies), np.std(accuracies)


def random_pairs(pairs, seed, noise=1.5, size=16):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(pairs, size))
    same = rng.random(pairs) < 0.5
    second = np.where(
        same[:, None], first + noise * rng.normal(size=first.shape), rng.normal(size=first.shape)
    )
    return first * rng.uniform(1, 9, (pairs, 1)), second, same


@pytest.mark.parametrize("pairs,seed", [(200, 0), (237, 1), (10, 2), (600, 3)])
def test_equals_the_definition_to_the_last_digit(pairs, seed):
    first, second, same = random_pairs(pairs, seed)
    mean, std = ten_fold_accuracy(first, second, same)
    expected = straightforward(first, second, same)
    assert mean == expected[0] and std == expected[1]


def test_folds_are_those_of_kfold():
    assert list(np.diff(fold_bounds(25))) == [3, 3, 3, 3, 3, 2, 2, 2, 2, 2]


def test_a_perfect_recogniser_and_a_useless_one():
    first, _, same = random_pairs(400, 4)
    assert ten_fold_accuracy(first, np.where(same[:, None], first, -first), same) == (1.0, 0.0)
    assert 0.35 < ten_fold_accuracy(first, np.random.default_rng(5).normal(size=first.shape), same)[0] < 0.65


def test_torch_tensors_do_as_well():
    torch = pytest.importorskip("torch")
    first, second, same = random_pairs(100, 6)
    assert ten_fold_accuracy(*map(torch.tensor, (first, second, same))) == ten_fold_accuracy(
        first, second, same
    )


@pytest.mark.parametrize(
    "same,word", [([True] * 20, "same person"), ([False] * 20, "different"), ([True, False] * 3, "too few")]
)
def test_pairs_that_give_no_accuracy_are_refused(same, word):
    x = np.eye(20)[: len(same)]
    with pytest.raises(UserError, match=word):
        ten_fold_accuracy(x, x, same)


def test_tar_at_far_by_hand():
    impostor = np.array([0.9, 0.5, 0.4, 0.3])
    genuine = np.array([0.95, 0.9, 0.6, 0.45, 0.2])
    assert tar_at_far(genuine, impostor, 0.0) == pytest.approx(0.2)  # 0.9 would accept an impostor too
    assert tar_at_far(genuine, impostor, 0.25) == pytest.approx(0.6)
    assert tar_at_far(genuine, impostor, 0.5) == pytest.approx(0.8)
    assert tar_at_far(genuine, impostor, 1.0) == 1.0


def test_tar_never_spends_more_than_the_far():
    rng = np.random.default_rng(7)
    impostor = np.round(rng.normal(size=1000), 1)  # many ties
    lowest_accepted = np.sort(impostor)[::-1][10]
    assert tar_at_far(impostor, impostor, 0.01) == np.mean(impostor > lowest_accepted) <= 0.01


def test_all_figures_of_a_benchmark():
    first, second, same = random_pairs(400, 8, noise=0.8)
    figures = evaluate_pairs(first, second, same)
    assert figures["accuracy"] == ten_fold_accuracy(first, second, same)[0]
    assert 0.9 < figures["auc"] <= 1 and 0 <= figures["eer"] < 0.2 and figures["pairs"] == 400
    assert figures["roc"]["tar"] == sorted(figures["roc"]["tar"])
    assert figures["tar@far=1e-4"] <= figures["tar@far=1e-3"] <= figures["auc"] + 0.1
    assert far_name(1e-3) == "tar@far=1e-3"
