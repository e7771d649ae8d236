"""The other sections: usable faces, quality, diversity, pose, and whether the prompt was followed."""

import numpy as np

from evaluation import plots
from evaluation.adherence import ClipScorer, attribute_agreement, clip_scores
from evaluation.attributes import AttributeClassifier
from evaluation.bootstrap import mean_interval, pooled_interval
from evaluation.diversity import (
    authpct,
    frechet_distance,
    kernel_distance,
    kernel_distance_subsets,
    prdc,
    smallest_identity,
    vendi_per_identity,
)
from evaluation.encoders import CLIP_LICENCE, FROM_FILES, encode_set, make_encoder
from evaluation.image_sets import REAL
from evaluation.inputs import MetricError
from evaluation.pose import ANGLES, pose_statistics
from evaluation.pose_networks import POSE_LICENCES, face_pose, pose_source
from evaluation.quality import LICENCE, SOURCE, face_quality, load_quality_network
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value
from utils.devices import pick_device
from utils.errors import UserError
from utils.files import sha256_file

METHOD = Column("method", "method")
KD_SUBSET = 1000
PERCENT = dict(scale=100.0, unit=" %", digits=1)


def faces_section(comparison):
    """How many images have a face that anything else here can look at."""
    columns = [
        METHOD,
        Column("people", "identities"),
        Column("images", "images"),
        Column("unreadable", "unreadable"),
        Column("share", "with a face", "high", **PERCENT),
        Column("score", "detection score", "high"),
    ]
    rows = []
    for faces in comparison.sets:
        row = {"method": faces.name, "people": len(faces.images.identities), "images": len(faces.images)}
        found = np.zeros(len(faces.images))
        found[faces.index] = 1
        row["share"] = pooled_value(found, faces.images.labels, comparison.config)
        row["unreadable"] = len(faces.unreadable)
        row["score"] = float(faces.detection_scores.mean()) if len(faces.index) else None
        rows.append(row)
    note = "All figures below are of images with a face only, so a method that loses many looks better there."
    table = Table("faces", "Images with a usable face", columns, rows, note, (REAL,))
    detector, threshold = comparison.analyser.models["detection"].name, comparison.config.detection_threshold
    return Section("Usable faces", f"Detector {detector}, threshold {threshold}.", [table])


def pooled_value(values, labels, config, ddof=None):
    """The mean over images with its interval over identities, and its deviation when `ddof` is given."""
    spread = float(np.std(values, ddof=ddof)) if ddof is not None and len(values) > ddof else float("nan")
    return Value(*pooled_interval(values, labels, config.replicates, config.seed), spread=spread)


def quality_section(comparison):
    """CR-FIQA of every face; UserError when its weights are absent."""
    config = comparison.config
    if config.quality_weights is None:
        raise UserError(f"quality_weights: none given; get {SOURCE}")
    name = load_quality_network(config.quality_weights).published_name
    rows, values = [], {}
    for faces in comparison.sets:
        options = dict(cache_folder=config.cache_folder, device=pick_device(config.device))
        scores = face_quality(faces, config.quality_weights, config.quality_colour, **options)
        row = {"method": faces.name, "faces": len(scores), "quality": None}
        if len(scores):
            row["quality"] = pooled_value(scores, faces.labels, config, ddof=1)
            values[faces.name] = scores[:, None]
        rows.append(row)
    columns = [METHOD, Column("faces", "faces"), Column("quality", name, "high")]
    note = f"Mean and deviation (ddof 1) over faces; {config.quality_colour} input."
    if config.quality_colour == "BGR":
        note += " Red and blue are swapped as in the published values; not what the network was trained on."
    weights = f"{name}, weights {sha256_file(config.quality_weights)[:8]}"
    section = Section("Face image quality", f"{weights}.", networks={weights: LICENCE})
    section.tables.append(Table("quality", "Quality of the faces", columns, rows, note, (REAL,)))
    if values:
        section.figures.append(("Quality", plots.densities(values, [name], "quality", "")))
    return section


def diversity_section(comparison, kind):
    """Distances to the reference and diversity, on the features of one encoder."""
    config = comparison.config
    path = getattr(config, FROM_FILES[kind][0]) if kind in FROM_FILES else None
    encoder = make_encoder(kind, path, comparison.analyser, pick_device(config.device))
    reference = comparison.reference or comparison.real
    named = {
        faces.name: encode_set(faces, encoder, config.cache_folder, config.batch_size)
        for faces in [*comparison.sets, reference]
    }
    usable = {name: rows for name, (rows, _) in named.items() if len(rows) >= 2}
    if reference.name not in usable or len(usable) < 2:
        raise MetricError(f"diversity on {encoder.name}: too few images of the reference or of the methods")
    size = min(len(rows) for rows in usable.values())
    vendi_images = smallest_identity(named[faces.name][1] for faces in comparison.sets)
    rows = []
    for faces in comparison.sets:
        features, labels = named[faces.name]
        row = {"method": faces.name, "images": len(features)}
        row |= vendi_cell(features, labels, vendi_images, config)
        if faces.name != reference.name and len(features) >= 2:
            row |= distance_cells(named[reference.name][0], features, size, config)
            if len(named[REAL][0]) >= 2:
                row["authentic"] = authpct(named[REAL][0], features)
        rows.append(row)
    note = (
        f"Reference: {reference.name}. Distances on {size} seeded images of each set; "
        f"Vendi on {vendi_images} of each identity; AuthPct against the real photos."
    )
    table = Table(f"diversity_{kind}", f"On {encoder.name}", diversity_columns(config), rows, note, (REAL,))
    return Section(f"Diversity, by {encoder.name}", "", [table], networks={encoder.name: encoder.licence})


def diversity_columns(config):
    """The columns of a diversity table."""
    k = config.nearest_neighbours
    return [
        METHOD,
        Column("images", "images"),
        Column("fd", "FD", "low", help="Frechet distance"),
        Column("kd", "KD", "low", digits=4, help="kernel distance, over subsets of 1,000"),
        Column("precision", "precision", "high", help=f"k = {k}"),
        Column("recall", "recall", "high", help=f"k = {k}"),
        Column("density", "density", "high", help=f"k = {k}"),
        Column("coverage", "coverage", "high", help=f"k = {k}"),
        Column("vendi", "Vendi per identity", "high", digits=2, help="effective number of different images"),
        Column("authentic", "AuthPct", "high", digits=1, help="% that are not nearest-neighbour copies"),
    ]


def distance_cells(reference, features, size, config):
    """FD, KD and PRDC on equally many seeded rows of both sets."""
    first, second = (
        rows[np.sort(np.random.default_rng([config.seed, len(rows)]).permutation(len(rows))[:size])]
        for rows in (reference, features)
    )
    if size > KD_SUBSET:
        mean, std = kernel_distance_subsets(first, second, size=KD_SUBSET, seed=config.seed)
        kd = Value(mean, spread=std)
    else:  # every subset would be the whole set
        kd = Value(kernel_distance(first, second))
    cells = {"fd": frechet_distance(first, second), "kd": kd}
    if size > config.nearest_neighbours:
        cells |= prdc(first, second, config.nearest_neighbours)
    return cells


def vendi_cell(features, labels, size, config):
    """Vendi per identity with its interval, or nothing."""
    values = vendi_per_identity(features, labels, size, config.seed) if len(features) else {}
    if not values:
        return {}
    return {"vendi": Value(*mean_interval(values, config.replicates, config.seed))}


def pose_section(comparison):
    """Yaw, pitch and roll: how far heads turn, over images and within an identity."""
    config = comparison.config
    options = dict(weights=config.pose_weights, pack=config.pack, border=config.pose_border)
    device = pick_device(config.device)
    rows, angles = [], {}
    for faces in comparison.sets:
        values = face_pose(faces, config.pose, **options, batch_size=config.batch_size, device=device)
        row = {"method": faces.name, "faces": len(values)}
        if len(values):
            angles[faces.name] = values
            for name, of in pose_statistics(values, faces.labels).items():
                row[name] = Value(of["mean"], spread=of["std"])
                if of["per_identity"]:
                    interval = mean_interval(of["per_identity"], config.replicates, config.seed)
                    row[f"{name}_spread"] = Value(*interval)
        rows.append(row)
    columns = [METHOD, Column("faces", "faces")]
    columns += [Column(name, f"{name}, degrees", digits=1) for name in ANGLES]
    columns += [Column(f"{name}_spread", f"{name} spread per identity", digits=1) for name in ANGLES]
    note = "Deviations with ddof 0. + yaw: nose to the image's left, + pitch: up, + roll: clockwise."
    source, licence = pose_source(config.pose, **options), POSE_LICENCES[config.pose]
    section = Section("Head pose", f"From: {source}.", networks={source: licence} if licence else {})
    section.tables.append(Table("pose", "Head pose", columns, rows, note, (REAL,)))
    if angles:
        section.figures.append(("Head pose", plots.densities(angles, list(ANGLES), "pose", "(degrees)")))
    return section


def clip_section(comparison):
    """CLIP score of samples and their prompts."""
    config = comparison.config
    if config.clip_folder is None:
        raise UserError("clip_folder: none given, so no CLIP score; name a local folder of a CLIP model")
    scorer, rows = ClipScorer(config.clip_folder, pick_device(config.device)), []
    for faces in comparison.methods:
        scores, labels = clip_scores(faces.readable, scorer, config.batch_size)
        row = {"method": faces.name, "images": len(scores), "score": None}
        if len(scores):
            row["score"] = pooled_value(scores, labels, config, ddof=0)
        rows.append(row)
    columns = [METHOD, Column("images", "images"), Column("score", "CLIP score", "high", digits=2)]
    table = Table("clip_score", "Prompt and picture, by CLIP", columns, rows, "100 x cosine, at least 0.")
    return Section("Prompt adherence", "", [table], networks={scorer.name: CLIP_LICENCE})


def attribute_section(comparison):
    """How often a classifier of attributes sees what the prompt says."""
    config = comparison.config
    if config.attributes_file is None:
        raise UserError(
            "attributes_file: none given; name a classifier's ONNX file (evaluation/attributes.py)"
        )
    classifier, rows = AttributeClassifier(config.attributes_file), []
    for faces in comparison.methods:
        images = faces.readable
        row = {"method": faces.name, "images": len(images)}
        for name, (right, labels) in attribute_agreement(images, classifier, config.batch_size).items():
            if len(right):
                row[name] = pooled_value(right, labels, config)
        rows.append(row)
    columns = [METHOD, Column("images", "images")]
    columns += [Column(name, name, "high", **PERCENT) for name in classifier.classes]
    note = "Share of images in which the classifier sees what the prompt says."
    table = Table("attributes", f"Prompt and picture, by {classifier.name}", columns, rows, note)
    return Section("Prompt adherence", "", [table], networks={classifier.name: classifier.licence})
