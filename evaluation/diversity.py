"""Distances between feature distributions, and diversity: each metric by its published definition.

Features are (N, D) arrays or tensors of one encoder. Computation is in float64 and in blocks, so that memory
stays near that of the features. Sets of different size are allowed; where size biases a metric (Frechet
distance, PRDC) :func:`equal_sizes` draws equal ones.
"""

import numpy as np
import scipy  # its parts load when they are used

from evaluation.inputs import MetricError, as_features, same_width, unit_rows

BLOCK_ROWS = 512
# Squared distances below this share of the points' squared norms are rounding noise of float32 features:
# the points are the same.
SAME_POINT = 1e-12


def frechet_distance(real, fake):
    """Frechet distance of the Gaussians fitted to two feature sets (Heusel et al., 2017), 0 when equal.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), covariances with ddof 1 as in the reference code. The trace
    of the root is the nuclear norm of A B^T where S1 = A^T A, S2 = B^T B: exact, real, and free of the
    imaginary parts and the jitter of a general matrix root, singular covariances (N <= D) included.
    """
    real, fake = feature_pair(real, fake, at_least=2)
    mean_real, mean_fake = real.mean(0), fake.mean(0)
    a, b = covariance_root(real - mean_real), covariance_root(fake - mean_fake)
    root_trace = scipy.linalg.svdvals(a @ b.T, overwrite_a=True).sum()
    difference = mean_real - mean_fake
    return float(max(0.0, difference @ difference + (a**2).sum() + (b**2).sum() - 2 * root_trace))


def covariance_root(centred):
    """A matrix A with A^T A = covariance (ddof 1): the scaled data, or its triangular factor if smaller."""
    scaled = centred / np.sqrt(len(centred) - 1)
    return np.linalg.qr(scaled, mode="r") if len(scaled) > scaled.shape[1] else scaled


def frechet_of_moments(first, second):
    """Frechet distances of stacks of Gaussians, each (means (R, D), covariances (R, D, D)); (R,)."""
    (mean, covariance), (other_mean, other_covariance) = first, second
    shares, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(shares.clip(0))[:, None]
    common = np.linalg.eigvalsh(root.swapaxes(1, 2) @ other_covariance @ root)
    traces = np.trace(covariance, axis1=1, axis2=2) + np.trace(other_covariance, axis1=1, axis2=2)
    return ((mean - other_mean) ** 2).sum(1) + traces - 2 * np.sqrt(common.clip(0)).sum(1)


def on_main_axes(sets, most):
    """Feature sets on the `most` main axes of all their rows, centred; up to `most` columns lose nothing."""
    sets = [*sets]
    rows = np.concatenate(sets).astype(np.float64)
    centre, width = rows.mean(0), rows.shape[1]
    rows -= centre
    axes = scipy.linalg.eigh(rows.T @ rows, subset_by_index=(max(0, width - most), width - 1))[1]
    return [(one - centre) @ axes for one in sets]


def kernel_distance(real, fake):
    """Unbiased squared MMD with the cubic kernel (x.y / D + 1)^3 (Binkowski et al., 2018), over all rows.

    May be slightly negative for equal distributions; that is what makes it unbiased.
    """
    real, fake = feature_pair(real, fake, at_least=2)
    within_real, within_fake = kernel_sum(real, real), kernel_sum(fake, fake)
    own_real, own_fake = (cubic((x * x).sum(1), x.shape[1]).sum() for x in (real, fake))
    m, n = len(real), len(fake)
    return float(
        (within_real - own_real) / (m * (m - 1))
        + (within_fake - own_fake) / (n * (n - 1))
        - 2 * kernel_sum(real, fake) / (m * n)
    )


def kernel_distance_subsets(real, fake, subsets=100, size=1000, seed=0):
    """(mean, standard deviation) of :func:`kernel_distance` over random subsets, the published protocol.

    `size` rows of each set without replacement per subset, fewer when a set is smaller.
    """
    real, fake = feature_pair(real, fake, at_least=2)
    size = min(size, len(real), len(fake))
    rng = np.random.default_rng(seed)
    values = [
        kernel_distance(
            real[rng.choice(len(real), size, replace=False)], fake[rng.choice(len(fake), size, replace=False)]
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def cubic(products, dimensions):
    """The kernel (x.y / D + 1)^3 of inner products."""
    return (products / dimensions + 1) ** 3


def kernel_sum(first, second):
    """Sum of the cubic kernel over all pairs of rows."""
    blocks = (first[i : i + BLOCK_ROWS] @ second.T for i in range(0, len(first), BLOCK_ROWS))
    return sum(float(cubic(block, first.shape[1]).sum()) for block in blocks)


def cmmd(real, fake, sigma=10.0, scale=1000.0):
    """CMMD (Jayasumana et al., CVPR 2024) of CLIP embeddings: squared MMD of unit rows, times `scale`.

    Gaussian kernel of width `sigma`; the biased estimate, a row's similarity to itself included, as in the
    authors' code. So it is 0 for equal sets, and never negative but for rounding.
    """
    real, fake = (unit_rows(rows, "CMMD", np.float64) for rows in feature_pair(real, fake, at_least=1))
    means = [gaussian_mean(*pair, sigma) for pair in ((real, real), (fake, fake), (real, fake))]
    return float(scale * (means[0] + means[1] - 2 * means[2]))


def gaussian_mean(first, second, sigma):
    """Mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs of rows."""
    blocks = (np.exp(-squared / (2 * sigma**2)).sum() for _, squared in squared_distances(first, second))
    return sum(blocks) / (len(first) * len(second))


def prdc(real, fake, k=5):
    """Precision, recall (Kynkaanniemi et al., 2019), density, coverage (Naeem et al., 2020).

    A point's ball reaches to its k-th nearest neighbour in its own set, itself not counted; points on the
    surface are outside, as in the authors' package `prdc`.

    Returns:
        dict: precision (share of fakes in any real ball), recall (share of reals in any fake ball), density
        (real balls per fake, over k), coverage (share of reals with a fake in their ball).

    Raises:
        MetricError: a set has k rows or fewer.
    """
    real, fake = feature_pair(real, fake, at_least=k + 1)
    real_radii, fake_radii = (nearest_distances(x, k) for x in (real, fake))
    in_real = np.zeros(len(fake), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for start, squared in squared_distances(real, fake):
        rows = slice(start, start + len(squared))
        inside = squared < real_radii[rows, None]
        in_real += inside.sum(0)
        covered[rows] = inside.any(1)
        recalled[rows] = (squared < fake_radii).any(1)
    return {
        "precision": float((in_real > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(in_real.mean() / k),
        "coverage": float(covered.mean()),
    }


def vendi_score(features):
    """Effective number of different rows (Friedman and Dieng, 2023): exp of the entropy of the eigenvalues.

    Cosine kernel, order q = 1. From 1 (all rows equal) to N (all orthogonal); it grows with N, so compare
    sets of equal size only.
    """
    unit = unit_rows(as_features(features, "features"), "Vendi", np.float64)
    # X X^T and X^T X share their non-zero eigenvalues: take the smaller.
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    share = scipy.linalg.eigvalsh(gram / len(unit))
    share = share[share > 1e-12]
    return float(np.exp(-(share * np.log(share)).sum()))


def vendi_per_identity(features, labels, size=None, seed=0):
    """{identity: Vendi score}, of `size` seeded rows each (None: all); smaller identities are left out.

    A `size` of 0, which :func:`smallest_identity` gives for want of any, leaves out all.
    """
    if size == 0:
        return {}
    features, labels = as_features(features, "features"), np.asarray(labels)
    scores = {}
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        if size is not None:
            if len(rows) < size:
                continue
            rows = np.random.default_rng(seed).permutation(rows)[:size]
        scores[name.item() if hasattr(name, "item") else name] = vendi_score(features[rows])
    return scores


def smallest_identity(label_sets):
    """The number of images that every identity with two or more has, in all sets of labels; 0 if none has."""
    counts = [count for labels in label_sets for count in np.unique(labels, return_counts=True)[1]]
    return int(min((count for count in counts if count >= 2), default=0))


def authpct(train, generated):
    """Percentage of authentic samples (Alaa et al., 2022): those not nearer to a training image than that
    image's nearest fellow is. 0 to 100; low values mean copies.

    For each generated row its nearest training row; authentic when the distance to it is larger than that
    training row's distance to its own nearest neighbour in the training set.
    """
    train, generated = feature_pair(train, generated, at_least=1, names=("train", "generated"))
    if len(train) < 2:
        raise MetricError("train features: 1 row, authenticity needs at least 2")
    neighbour = nearest_distances(train, 1)
    authentic = 0
    for _, squared in squared_distances(generated, train):
        nearest = squared.argmin(1)
        authentic += int((neighbour[nearest] < squared[np.arange(len(squared)), nearest]).sum())
    return 100.0 * authentic / len(generated)


def feature_pair(real, fake, at_least, names=("real", "fake")):
    """Two checked float64 feature sets of one width."""
    real = as_features(real, names[0], at_least).astype(np.float64)
    fake = as_features(fake, names[1], at_least).astype(np.float64)
    same_width(real, fake, names)
    return real, fake


def squared_distances(first, second, itself=False):
    """Yield (first row, squared Euclidean distances (rows, N)) block by block.

    With `itself` the sets are one and a point's distance to itself is infinite, so that it is no neighbour.
    """
    centre = second.mean(0)  # distances do not care, and cancellation in |x|^2 - 2xy + |y|^2 does
    first, second = first - centre, second - centre
    first_norms, norms = (first**2).sum(1), (second**2).sum(1)
    for start in range(0, len(first), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        squared = first[rows] @ second.T
        squared *= -2
        squared += first_norms[rows, None]
        squared += norms
        squared[squared < SAME_POINT * (first_norms[rows, None] + norms)] = 0
        if itself:
            squared[np.arange(len(squared)), start + np.arange(len(squared))] = np.inf
        yield start, squared


def nearest_distances(points, k):
    """Squared distance of each point to its k-th nearest other point, (N,)."""
    blocks = squared_distances(points, points, itself=True)
    return np.concatenate([np.partition(squared, k - 1, axis=1)[:, k - 1] for _, squared in blocks])


def equal_sizes(first, second, seed=0):
    """Row indices (for each set) of seeded random subsets of equal size, in ascending order."""
    size = min(len(first), len(second))
    return tuple(
        np.sort(np.random.default_rng([seed, place]).permutation(len(items))[:size])
        for place, items in enumerate((first, second))
    )
