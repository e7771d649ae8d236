"""How far samples are from reference photos, and how diverse: our comparison, and the two published runs.

Ours takes equally many images of every set, since most of these figures move with their number, and says what
it cut. The published runs (dgm-eval as the ID-Booth evaluation changed it) treat each set by itself: only one
that has more than 2,000 images beyond `nsample` is cut, to `nsample`.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaluation.bootstrap import frechet_replicates, mean_interval, paired_difference, percentile_interval
from evaluation.diversity import (
    authpct,
    cmmd,
    frechet_distance,
    kernel_distance,
    kernel_distance_subsets,
    on_main_axes,
    prdc,
    smallest_identity,
    vendi_per_identity,
)
from evaluation.encoders import FROM_FILES, encode_set, make_encoder
from evaluation.image_sets import REAL, REFERENCE, published_rows
from evaluation.inputs import MetricError
from evaluation.measure_sets import METHOD
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value

KD_SUBSETS, KD_SUBSET = 100, 1_000
PRDC_IMAGES = 10_000
# Intervals of FD are of the features on so many main axes: of 768 they take seconds instead of minutes.
FD_AXES = 128


@dataclass(frozen=True)
class Run:
    """A published run: its reference set, and the number of images that larger sets are cut to."""

    title: str
    reference: str
    nsample: int


EQUAL = "equal"
RUNS = {
    "ffhq": Run("published run against photos in the wild", REFERENCE, 10_000),
    "lab": Run("published run against the lab photos", REAL, 2_500),
}


def diversity_section(comparison, kind, run=EQUAL):
    """Distances to the reference and diversity, on the features of one encoder, in one of the runs."""
    config = comparison.config
    path = getattr(config, FROM_FILES[kind][0]) if kind in FROM_FILES else None
    crops = config.encoder_input == "crops"
    encoder = make_encoder(kind, path, comparison.recogniser, comparison.device, crops)
    reference = comparison.reference_set(RUNS[run].reference if run in RUNS else None)
    features = {
        faces.name: encode_set(faces, encoder, config.cache_folder, config.batch_size)
        for faces in [*comparison.sets, reference]
    }
    usable = [name for name, (rows, _) in features.items() if len(rows) >= 2]
    if reference.name not in usable or len(usable) < 2:
        raise MetricError(f"diversity on {encoder.name}: too few images of the reference or of the methods")
    sets = Features(features, reference.name, run, config)
    rows = [sets.row(faces.name, with_cmmd=kind == "cmmd") for faces in comparison.sets]
    what = "aligned crops" if encoder.of_faces else "whole images"
    name = f"diversity_{kind}" + ("" if run == EQUAL else f"_{run}")
    title = f"On {encoder.name}, {what}" + ("" if run == EQUAL else f", {RUNS[run].title}")
    columns = diversity_columns(config, kind == "cmmd")
    table = Table(name, title, columns, rows, sets.note(), comparison.no_rivals)
    tables = [table, *difference_tables(sets, [faces.name for faces in comparison.methods], name, title)]
    networks = {encoder.name: encoder.licence}
    return Section(f"Diversity: {title[0].lower()}{title[1:]}", "", tables, networks=networks)


class Features:
    """The features of all sets in one run: which of them are compared, and the figures of each set.

    Args:
        features: set name -> (rows (N, D), labels (N,)). reference: name of the reference.
    """

    def __init__(self, features, reference, run, config):
        self.features, self.reference, self.config = features, reference, config
        self.published = run != EQUAL
        sizes = {name: len(rows) for name, (rows, _) in features.items() if len(rows) >= 2}
        self.smallest = min(sizes, key=sizes.get)
        if self.published:
            self.kept = {n: published_rows(size, RUNS[run].nsample, config.seed) for n, size in sizes.items()}
        else:
            self.kept = {n: self.equal_rows(size, sizes[self.smallest]) for n, size in sizes.items()}
        labels = [of for name, (_, of) in features.items() if name != REFERENCE]
        self.vendi_images = None if self.published else smallest_identity(labels)
        self.draws = {}

    def equal_rows(self, size, wanted):
        """Seeded row numbers, ascending; those of two sets of one size are the same."""
        return np.sort(np.random.default_rng([self.config.seed, size]).permutation(size)[:wanted])

    def compared(self, name):
        """The features of a set that distances are computed on."""
        return self.features[name][0][self.kept[name]]

    def labels(self, name):
        """The people of :meth:`compared`; reference photos are of nobody."""
        of = self.features[name][1][self.kept[name]]
        return [None] * len(of) if name == REFERENCE else of.tolist()

    @cached_property
    def on_axes(self):
        """{set: what FD's intervals are computed on}."""
        return dict(zip(self.kept, on_main_axes(map(self.compared, self.kept), FD_AXES), strict=True))

    def fd_draws(self, name, people):
        """FD of a set for redrawn people less the mean of these, which is biased: fewer are different."""
        key = name, *people
        if key not in self.draws:
            labels = np.array(self.labels(name))
            mine = np.isin(labels, people)
            sides = (
                (self.on_axes[self.reference], self.labels(self.reference)),
                (self.on_axes[name][mine], labels[mine]),
            )
            options = (people, self.config.verification_replicates, self.config.seed)
            draws = frechet_replicates(*sides, *options)
            self.draws[key] = draws - np.nanmean(draws)
        return self.draws[key]

    def difference(self, first, second):
        """The differences of two methods in FD and Vendi, paired by person; {} for fewer than two in both."""
        names, config = (first, second), self.config
        people = sorted(set(self.labels(first)) & set(self.labels(second)))
        if len(people) < 2:
            return {}
        reference = self.compared(self.reference)
        distances = [
            frechet_distance(reference, self.compared(one)[np.isin(self.labels(one), people)])
            for one in names
        ]
        fd, draws = distances[0] - distances[1], self.fd_draws(first, people) - self.fd_draws(second, people)
        row = {"people": len(people), "fd": Value(fd, *percentile_interval(fd + draws, len(people)))}
        vendi = [self.vendi(one) for one in names]
        if vendi[0].keys() & vendi[1].keys():
            paired = paired_difference(*vendi, config.replicates, config.seed)
            row["vendi"] = Value(paired["difference"], paired["low"], paired["high"])
        return row

    def row(self, name, with_cmmd=False):
        """The figures of a set."""
        found = self.features[name][0]
        row = {"method": name, "images": len(found)}
        if len(found):
            row |= self.vendi_cell(name)
        if name == self.reference or len(found) < 2:
            return row
        pair = self.compared(self.reference), self.compared(name)
        row |= {"compared": len(pair[1])} | distance_cells(*pair, self.config)
        people = sorted(set(self.labels(name)))
        draws = np.maximum(0, row["fd"] + self.fd_draws(name, people))
        row["fd"] = Value(row["fd"], *percentile_interval(draws, len(people)))
        if with_cmmd:
            row["cmmd"] = cmmd(*pair)
        train = pair[0] if self.published else self.features[REAL][0]
        if len(train) >= 2 and not (name == REAL and not self.published):
            row["authentic"] = authpct(train, pair[1] if self.published else found)
        return row

    def vendi(self, name):
        """{identity: Vendi score}; it may be empty."""
        found, labels = self.features[name]
        if self.published and name in self.kept:
            found, labels = found[self.kept[name]], labels[self.kept[name]]
        return vendi_per_identity(found, labels, self.vendi_images, self.config.seed)

    def vendi_cell(self, name):
        """Vendi per identity: mean, interval, and deviation over identities (ddof 0); or nothing."""
        values = self.vendi(name)
        if not values:
            return {}
        interval = mean_interval(values, self.config.replicates, self.config.seed)
        return {"vendi": Value(*interval, spread=float(np.std(list(values.values()))))}

    def note(self):
        """What was compared with what, and what was cut."""
        cut = {name: len(rows) for name, (rows, _) in self.features.items() if name in self.kept}
        cut = [f"{name} ({size:,})" for name, size in cut.items() if size > len(self.kept[name])]
        size = f"{len(self.kept[self.smallest]):,}"
        note = f"Reference: {self.reference}, {len(self.kept[self.reference]):,} images. "
        replicates = self.config.verification_replicates
        note += f"Intervals of FD: {replicates} replicates over people on at most {FD_AXES} main axes of the "
        note += "features, moved to the figure; its bias, which the number of images sets, is not in them. "
        if self.published:
            note += (
                f"Cut: {', '.join(cut) or 'nothing'}. Vendi on all images of an identity; AuthPct against "
            )
            return note + f"the reference; PRDC on at most {PRDC_IMAGES:,} images of each set."
        note += f"Distances on {size} seeded images of each set, as many as {self.smallest} has"
        note += f"; cut to them: {', '.join(cut)}. " if cut else ". "
        return f"{note}Vendi on {self.vendi_images} images of each identity; AuthPct against the real photos."


def difference_tables(sets, methods, name, title):
    """[Table of the paired differences of every two methods in FD and Vendi]; [] without any."""
    pairs = itertools.combinations([method for method in methods if method in sets.kept], 2)
    rows = [{"method": f"{a} minus {b}"} | found for a, b in pairs if (found := sets.difference(a, b))]
    if not rows:
        return []
    columns = [METHOD, Column("people", "identities"), Column("fd", "FD"), Column("vendi", "Vendi", digits=2)]
    note = "Over the people of both, 95 % intervals over the same redrawn people (real photos with theirs)."
    return [Table(f"{name}_differences", f"{title}: methods paired by person", columns, rows, note)]


def diversity_columns(config, with_cmmd=False):
    """The columns of a diversity table."""
    k = config.nearest_neighbours
    columns = [
        METHOD,
        Column("images", "images"),
        Column("compared", "compared", help="images that distances are computed on"),
        Column("fd", "FD", "low", help="Frechet distance"),
        Column("kd", "KD", "low", digits=4, help=f"kernel distance, {KD_SUBSETS} subsets of {KD_SUBSET:,}"),
        Column("precision", "precision", "high", help=f"k = {k}"),
        Column("recall", "recall", "high", help=f"k = {k}"),
        Column("density", "density", "high", help=f"k = {k}"),
        Column("coverage", "coverage", "high", help=f"k = {k}"),
        Column("vendi", "Vendi per identity", "high", digits=2, help="effective number of different images"),
        Column("authentic", "AuthPct", "high", digits=1, help="% that are not nearest-neighbour copies"),
    ]
    return columns + ([Column("cmmd", "CMMD", "low", help="sigma 10, scale 1,000")] if with_cmmd else [])


def distance_cells(reference, features, config):
    """FD, KD and PRDC of two sets of features; PRDC on equally many of both."""
    if len(reference) == len(features) <= KD_SUBSET:  # every subset would be the whole set
        kd = Value(kernel_distance(reference, features))
    else:
        subsets = kernel_distance_subsets(reference, features, KD_SUBSETS, KD_SUBSET, config.seed)
        kd = Value(subsets[0], spread=subsets[1])
    cells = {"fd": frechet_distance(reference, features), "kd": kd}
    size = min(PRDC_IMAGES, len(reference), len(features))
    if size > config.nearest_neighbours:
        random = np.random.RandomState(config.seed)
        pair = (rows[random.choice(len(rows), size, replace=False)] for rows in (reference, features))
        cells |= prdc(*pair, config.nearest_neighbours)
    return cells
