"""How far samples are from reference photos, and how diverse: our comparison, and the two published runs.

Ours takes equally many images of every set, since most of these figures move with their number, and says what
it cut. The published runs (dgm-eval as the ID-Booth evaluation changed it) treat each set by itself: only one
that has more than 2,000 images beyond `nsample` is cut, to `nsample`.
"""

from dataclasses import dataclass

import numpy as np

from evaluation.bootstrap import mean_interval
from evaluation.diversity import (
    authpct,
    cmmd,
    frechet_distance,
    kernel_distance,
    kernel_distance_subsets,
    prdc,
    smallest_identity,
    vendi_per_identity,
)
from evaluation.encoders import FROM_FILES, encode_set, make_encoder
from evaluation.image_sets import REAL, REFERENCE, published_rows
from evaluation.inputs import MetricError
from evaluation.measure_sets import METHOD, NO_RIVALS
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value

KD_SUBSETS, KD_SUBSET = 100, 1_000
PRDC_IMAGES = 10_000


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
    table = Table(name, title, diversity_columns(config, kind == "cmmd"), rows, sets.note(), NO_RIVALS)
    networks = {encoder.name: encoder.licence}
    return Section(f"Diversity: {title[0].lower()}{title[1:]}", "", [table], networks=networks)


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

    def equal_rows(self, size, wanted):
        """Seeded row numbers, ascending; those of two sets of one size are the same."""
        return np.sort(np.random.default_rng([self.config.seed, size]).permutation(size)[:wanted])

    def compared(self, name):
        """The features of a set that distances are computed on."""
        return self.features[name][0][self.kept[name]]

    def row(self, name, with_cmmd=False):
        """The figures of a set."""
        found, labels = self.features[name]
        row = {"method": name, "images": len(found)}
        if len(found):
            row |= self.vendi_cell(name, found, labels)
        if name == self.reference or len(found) < 2:
            return row
        pair = self.compared(self.reference), self.compared(name)
        row |= {"compared": len(pair[1])} | distance_cells(*pair, self.config)
        if with_cmmd:
            row["cmmd"] = cmmd(*pair)
        train = pair[0] if self.published else self.features[REAL][0]
        if len(train) >= 2 and not (name == REAL and not self.published):
            row["authentic"] = authpct(train, pair[1] if self.published else found)
        return row

    def vendi_cell(self, name, found, labels):
        """Vendi per identity: mean, interval, and deviation over identities (ddof 0); or nothing."""
        if self.published and name in self.kept:
            found, labels = found[self.kept[name]], labels[self.kept[name]]
        values = vendi_per_identity(found, labels, self.vendi_images, self.config.seed)
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
        if self.published:
            note += (
                f"Cut: {', '.join(cut) or 'nothing'}. Vendi on all images of an identity; AuthPct against "
            )
            return note + f"the reference; PRDC on at most {PRDC_IMAGES:,} images of each set."
        note += f"Distances on {size} seeded images of each set, as many as {self.smallest} has"
        note += f"; cut to them: {', '.join(cut)}. " if cut else ". "
        return f"{note}Vendi on {self.vendi_images} images of each identity; AuthPct against the real photos."


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
