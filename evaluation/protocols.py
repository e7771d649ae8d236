"""Which pairs are compared: all, which is the default, or those of the published sub-sampled protocol.

The ID-Booth evaluation shuffles the identities and draws impostor pairs from every `stride`-th other one,
eight by eight images. Its scores are few and strongly dependent; it is here for comparison with published
tables. It pairs identities by their position in a list, which is a defect: here they are matched by name.

"id-booth" takes all genuine pairs, as its authors meant it. "id-booth-code" takes those that their code
takes: against real photos only photos that come later in their list than the sample in its own.
"""

import numpy as np

from evaluation.identity import cross_scores, pair_scores
from evaluation.inputs import as_features, as_labels, same_width, unit_rows
from utils.seeding import derive_seed

PROTOCOLS = ("all", "id-booth", "id-booth-code")
STRIDE_SAMPLES, STRIDE_REAL, IMAGES_PER_IDENTITY = 18, 17, 8


class Pairs:
    """The pairs of a protocol, of samples among themselves or of samples and real photos.

    Args:
        protocol: one of PROTOCOLS. embeddings, labels: (N, D), (N,) of the samples. other, other_labels: of
        the real photos, or None. seed: of what is drawn.
        most: of protocol "all" take so many random impostor pairs where there are more; None takes all.

    names: the identities. first_codes, second_codes: the place in `names` of each row. genuine, impostor:
    row numbers (i, j); within one set each unordered pair stands once.
    """

    def __init__(self, protocol, embeddings, labels, other=None, other_labels=None, seed=0, most=None):
        self.within, self.seed = other is None, seed
        self.first = unit_rows(as_features(embeddings, "sample"), "sample")
        self.second, labels = self.first, as_labels(labels, len(self.first), "sample")
        second_labels = labels
        if other is not None:
            self.second = unit_rows(as_features(other, "real"), "real")
            same_width(self.first, self.second, ("sample", "real"))
            second_labels = as_labels(other_labels, len(self.second), "real")
        self.names, codes = np.unique(np.concatenate([labels, second_labels]), return_inverse=True)
        self.first_codes, self.second_codes = codes[: len(labels)], codes[-len(second_labels) :]
        self.genuine = self.genuine_pairs(later_only=protocol == "id-booth-code" and not self.within)
        self.impostor = self.all_impostors(most) if protocol == "all" else self.strided_impostors()

    def genuine_pairs(self, later_only):
        """All pairs of one identity; or those whose second image has a later place among the person's own."""
        members = {code: np.flatnonzero(self.second_codes == code) for code in np.unique(self.first_codes)}
        i = np.concatenate([np.full(len(members[c]), row) for row, c in enumerate(self.first_codes)])
        j = np.concatenate([members[code] for code in self.first_codes])
        i, j = i.astype(np.int64), j.astype(np.int64)
        keep = slice(None)
        if self.within:
            keep = i < j
        elif later_only:
            keep = places(self.first_codes)[i] < places(self.second_codes)[j]
        return i[keep], j[keep]

    def all_impostors(self, most):
        """All pairs of different identities, or a uniform random part of them when they are too many."""
        first, second = self.first_codes, self.second_codes
        if most is None or len(first) * len(second) <= 2 * most:
            i, j = np.nonzero(first[:, None] != second)
            keep = i < j if self.within else slice(None)
            return i[keep], j[keep]
        rng = np.random.default_rng(self.seed)
        i, j = rng.integers(0, len(first), 2 * most), rng.integers(0, len(second), 2 * most)
        different = np.flatnonzero(first[i] != second[j])[:most]
        return i[different], j[different]

    def strided_impostors(self):
        """Identity p, in a seeded order, against p + 1, p + 1 + stride, ...: eight random images of the one,
        each against eight random images of the other, drawn anew."""
        rng = np.random.default_rng(derive_seed("id-booth protocol", self.seed))
        stride = STRIDE_SAMPLES if self.within else STRIDE_REAL
        people = [code for code in dict.fromkeys(self.first_codes) if code in set(self.second_codes)]
        rng.shuffle(people)
        first, second = (
            [np.flatnonzero(c == p) for p in people] for c in (self.first_codes, self.second_codes)
        )
        pairs = [np.zeros((2, 0), np.int64)]
        for p in range(len(people)):
            for q in range(p + 1, len(people), stride):
                for i in rng.permutation(first[p])[:IMAGES_PER_IDENTITY]:
                    j = rng.permutation(second[q])[:IMAGES_PER_IDENTITY]
                    pairs.append(np.stack([np.full(len(j), i), j]))
        return tuple(np.concatenate(pairs, 1))

    def scores(self, rows, block=1 << 16):
        """Cosine similarities, float32, of the pairs (i, j) in `rows`."""
        i, j = rows
        chunks = [slice(k, k + block) for k in range(0, len(i), block)]
        parts = [np.einsum("nd,nd->n", self.first[i[chunk]], self.second[j[chunk]]) for chunk in chunks]
        return np.concatenate([np.zeros(0, np.float32), *parts])


def places(codes):
    """The place of each row among the rows of its own identity, from 0."""
    result = np.zeros(len(codes), np.int64)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        result[rows] = np.arange(len(rows))
    return result


def scores(protocol, embeddings, labels, other=None, other_labels=None, seed=0):
    """(genuine, impostor) scores under a named protocol; arguments as for :class:`Pairs`."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; one of {', '.join(PROTOCOLS)}")
    sides = (embeddings, labels) if other is None else (embeddings, labels, other, other_labels)
    if protocol == "all":  # in blocks, without row numbers, which take more memory than scores
        return (pair_scores if other is None else cross_scores)(*sides)
    pairs = Pairs(protocol, *sides, seed=seed)
    return pairs.scores(pairs.genuine), pairs.scores(pairs.impostor)
