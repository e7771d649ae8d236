"""The published sub-sampled verification protocol, beside all pairs, which are the default.

The ID-Booth evaluation draws impostor scores from every `stride`-th other identity, eight by eight images,
after shuffling the identities. Its scores are few and strongly dependent; it is here for comparison with
published tables. Its pairing of identities by list position and its loss of half of the genuine pairs against
real photos are defects that are not repeated: identities are matched by name, and all genuine pairs count.
"""

import numpy as np

from evaluation.identity import cross_scores, pair_scores
from evaluation.inputs import as_features, as_labels, unit_rows
from utils.seeding import derive_seed

PROTOCOLS = ("all", "id-booth")
STRIDE_SAMPLES, STRIDE_REAL, IMAGES_PER_IDENTITY = 18, 17, 8


def scores(protocol, embeddings, labels, other=None, other_labels=None, seed=0):
    """(genuine, impostor) under a named protocol, of samples among themselves or against real photos.

    "all": every pair. "id-booth": all genuine pairs; impostors of identity p (in a seeded order) against
    p + 1, p + 1 + stride, ..., 8 x 8 random images each; stride 18 among samples, 17 against real photos.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; one of {', '.join(PROTOCOLS)}")
    pair = (embeddings, labels) if other is None else (embeddings, labels, other, other_labels)
    genuine, impostor = (pair_scores if other is None else cross_scores)(*pair)
    if protocol == "id-booth":
        impostor = strided_impostors(embeddings, labels, other, other_labels, seed)
    return genuine, impostor


def strided_impostors(embeddings, labels, other=None, other_labels=None, seed=0):
    """The published impostor scores, float32; see :func:`scores`."""
    rng = np.random.default_rng(derive_seed("id-booth protocol", seed))
    stride = STRIDE_SAMPLES if other is None else STRIDE_REAL
    first, first_labels = rows_by_identity(embeddings, labels)
    second, second_labels = (first, first_labels) if other is None else rows_by_identity(other, other_labels)
    names = [name for name in first_labels if name in second_labels]
    rng.shuffle(names)
    found = []
    for p, name in enumerate(names):
        for q in range(p + 1, len(names), stride):
            a, b = first_labels[name], second_labels[names[q]]
            a, b = (rng.permutation(rows)[:IMAGES_PER_IDENTITY] for rows in (a, b))
            found.append((first[a] @ second[b].T).ravel())
    return np.concatenate([np.zeros(0, np.float32), *found])


def rows_by_identity(embeddings, labels):
    """Unit rows, and {identity: row numbers} in order of first appearance."""
    unit = unit_rows(as_features(embeddings, "protocol"), "protocol")
    labels = as_labels(labels, len(unit), "protocol").astype(str)
    return unit, {name: np.flatnonzero(labels == name) for name in dict.fromkeys(labels.tolist())}
