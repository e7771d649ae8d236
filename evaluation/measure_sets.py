"""Sections of single sets: usable faces, quality, pose, and whether the prompt was followed."""

from pathlib import Path

import numpy as np

from configs.evaluation_config import SOURCES
from evaluation import plots
from evaluation.adherence import ClipScorer, attribute_agreement, clip_scores, looks_kept, seen_in
from evaluation.attributes import AttributeClassifier
from evaluation.bootstrap import mean_interval, pooled_interval
from evaluation.encoders import CLIP_LICENCE
from evaluation.image_sets import REAL, REFERENCE
from evaluation.pose import ANGLES, pose_statistics
from evaluation.pose_networks import POSE_LICENCES, face_pose, pose_source
from evaluation.quality import LICENCE, SOURCE, face_quality, load_quality_network, published_sample
from evaluation.sections import Section
from evaluation.tables import Column, Table, Value
from id_booth.prompts import PROMPTED
from utils.errors import UserError
from utils.files import sha256_file
from utils.progress import log_once

METHOD = Column("method", "method")
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
    for faces in comparison.all_sets:
        people = len(faces.images.identities) if faces.name != REFERENCE else None
        row = {"method": faces.name, "people": people, "images": len(faces.images)}
        row["unreadable"] = len(faces.unreadable)
        if len(faces.has_face):
            row["share"] = pooled_value(faces.has_face, faces.readable.labels, comparison.config)
        row["score"] = float(faces.detection_scores.mean()) if len(faces.index) else None
        rows.append(row)
    note = "All figures below are of images with a face only, so a method that loses many looks better there."
    table = Table("faces", "Images with a usable face", columns, rows, note, comparison.no_rivals)
    detector, threshold = comparison.analyser.models["detection"].name, comparison.config.detection_threshold
    return Section("Usable faces", f"Detector {detector}, threshold {threshold}.", [table])


def pooled_value(values, labels, config, ddof=None):
    """The mean over images with its interval over identities, and its deviation when `ddof` is given."""
    spread = float(np.std(values, ddof=ddof)) if ddof is not None and len(values) > ddof else float("nan")
    return Value(*pooled_interval(values, labels, config.replicates, config.seed), spread=spread)


def quality_section(comparison):
    """CR-FIQA of every face, or of as many as the config says; UserError when its weights are absent."""
    config = comparison.config
    if config.quality_weights is None:
        raise UserError(f"quality_weights: none given; get {SOURCE}")
    name = load_quality_network(config.quality_weights).published_name
    options = (config.quality_weights, config.quality_colour, config.cache_folder, config.batch_size)
    rows, values = [], {}
    for faces in comparison.all_sets:
        chosen = published_sample(len(faces.index), config.quality_images)
        scores = face_quality(faces, *options, chosen, comparison.device)
        row = {"method": faces.name, "faces": len(scores), "quality": None}
        if len(scores):
            row["quality"] = pooled_value(scores, faces.labels[chosen], config, ddof=1)
            values[faces.name] = scores[:, None]
        rows.append(row)
    columns = [METHOD, Column("faces", "faces"), Column("quality", name, "high")]
    note = quality_note(config)
    table = Table("quality", "Quality of the faces", columns, rows, note, comparison.no_rivals)
    weights = f"{name}, weights {sha256_file(config.quality_weights)[:8]}"
    section = Section("Face image quality", f"{weights}.", [table], networks={weights: LICENCE})
    if values:
        section.figures.append(("Quality", plots.densities(values, [name], "quality", "")))
        section.figures.append(("Histogram", plots.histograms(values, name, "quality-histogram")))
    return section


def quality_note(config):
    """What the quality table says of its figures."""
    note = f"Mean and deviation (ddof 1) over faces; {config.quality_colour} input."
    if config.quality_images is not None:
        note += f" Of more than {config.quality_images:,} faces as many, drawn with seed 7."
    if config.quality_colour == "BGR":
        note += " Red and blue are swapped as in the published values; not what the network was trained on."
    return note


def pose_section(comparison):
    """Yaw, pitch and roll: how far heads turn, over images and within an identity."""
    config = comparison.config
    options, rows, angles, spreads = pose_options(config), [], {}, {}
    for faces in comparison.all_sets:
        values = face_angles(comparison, faces)
        row = {"method": faces.name, "faces": len(values)}
        if len(values):
            angles[faces.name] = values
            statistics = pose_statistics(values, faces.labels)
            row |= pose_cells(statistics, config)
            own = [list(of["per_identity"].values()) for of in statistics.values()]
            spreads |= {faces.name: np.transpose(own)} if own[0] else {}
        rows.append(row)
    columns = [METHOD, Column("faces", "faces")]
    columns += [Column(name, f"{name}, degrees", digits=1) for name in ANGLES]
    columns += [Column(f"{name}_spread", f"{name} spread per identity", digits=1) for name in ANGLES]
    note = "Mean ± deviation over images; the spread per identity as mean ± deviation over identities, with "
    note += "an interval. All with ddof 0. + yaw: nose to the image's left, + pitch: up, + roll: clockwise."
    method = pose_method(config)
    source, licence = pose_source(method, **options), POSE_LICENCES[method]
    section = Section("Head pose", f"From: {source}.", networks={source: licence} if licence else {})
    section.tables.append(Table("pose", "Head pose", columns, rows, note, comparison.no_rivals))
    captions = {"Head pose": (angles, "pose"), "Spread of the pose within an identity": (spreads, "spread")}
    for caption, (values, salt) in captions.items():
        if values:
            section.figures.append((caption, plots.densities(values, list(ANGLES), salt, "(degrees)")))
    return section


def pose_options(config):
    """What decides how poses are measured, as evaluation/pose_networks.py takes it."""
    return dict(weights=config.pose_weights, pack=config.pack, border=config.pose_border)


def pose_method(config):
    """The configured one; where 6DRepNet's weights are not there the five landmarks, which need none."""
    weights = config.pose_weights
    if config.pose != "6drepnet" or (weights and Path(weights).expanduser().is_file()):
        return config.pose
    get = SOURCES["pose_weights"]
    log_once(f"pose_weights: no file {weights}, so poses are those of five landmarks; get {get}")
    return "five_point"


def face_angles(comparison, faces):
    """Yaw, pitch and roll (M, 3) of a FaceSet's faces; kept with it, as the report asks twice."""
    if "pose" not in faces.measured:
        config = comparison.config
        options = pose_options(config) | dict(batch_size=config.batch_size, device=comparison.device)
        faces.measured["pose"] = face_pose(faces, pose_method(config), **options)
    return faces.measured["pose"]


def pose_cells(statistics, config):
    """The cells of a row of the pose table."""
    cells = {}
    for name, of in statistics.items():
        cells[name] = Value(of["mean"], spread=of["std"])
        if spreads := of["per_identity"]:
            interval = mean_interval(spreads, config.replicates, config.seed)
            cells[f"{name}_spread"] = Value(*interval, spread=float(np.std(list(spreads.values()))))
    return cells


def clip_section(comparison):
    """CLIP score of samples and their prompts."""
    config = comparison.config
    if config.clip_folder is None:
        raise UserError("clip_folder: none given, so no CLIP score; name a local folder of a CLIP model")
    scorer, rows = ClipScorer(config.clip_folder, comparison.device), []
    for faces in comparison.methods:
        scores, labels = clip_scores(faces.readable, scorer, config.batch_size)
        row = {"method": faces.name, "images": len(scores), "score": None}
        if len(scores):
            row["score"] = pooled_value(scores, labels, config, ddof=0)
        rows.append(row)
    columns = [METHOD, Column("images", "images"), Column("score", "CLIP score", "high", digits=2)]
    title, note = "Prompt and picture, by CLIP", "100 x cosine, at least 0."
    table = Table("clip_score", title, columns, rows, note, comparison.no_rivals)
    return Section("Prompt adherence", "", [table], networks={scorer.name: CLIP_LICENCE})


def attribute_section(comparison):
    """How often a classifier of attributes sees what the prompt says, and the looks of the photos."""
    config = comparison.config
    if config.attributes_file is None:
        raise UserError(
            "attributes_file: none given; name a classifier's ONNX file (evaluation/attributes.py)"
        )
    classifier = AttributeClassifier(config.attributes_file)
    seen = {faces.name: attributes_seen(comparison, faces, classifier) for faces in comparison.sets}
    counts = {name: len(of) for name, of in seen.items()}
    said = {of.name: attribute_agreement(of.readable, seen[of.name]) for of in comparison.methods}
    photos = comparison.real.readable, seen[REAL]
    kept = {of.name: looks_kept(of.readable, seen[of.name], *photos) for of in comparison.sets}
    tables = [
        share_table(
            "attributes",
            f"Prompt and picture, by {classifier.name}",
            {name: name for name in PROMPTED if name in classifier.classes},
            said,
            counts,
            comparison,
            "Share of images in which the classifier sees what the prompt says.",
        )
    ]
    looks = {name: name for name in classifier.classes if name not in PROMPTED}
    if looks:
        title = f"The person's looks in picture and photos, by {classifier.name}"
        note = (
            "Share of images that show what most photos of the person show; for photos, most of the others."
        )
        looks = {"kept": "looks kept (hair and skin)"} | looks if {"hair", "skin"} <= looks.keys() else looks
        tables.append(share_table("looks", title, looks, kept, counts, comparison, note))
    return Section("Prompt adherence", "", tables, networks={classifier.name: classifier.licence})


def share_table(name, title, wanted, shares, counts, comparison, note):
    """A Table of shares of images, a row per set.

    Args:
        wanted: dict key -> title of a column. shares: dict set -> dict key -> (hits (N,) bool, labels (N,)).
        counts: dict set -> its images.
    """
    config, rows = comparison.config, []
    for method, of in shares.items():
        row = {"method": method, "images": counts[method]}
        row |= {key: pooled_value(*of[key], config) for key in wanted if key in of and len(of[key][0])}
        rows.append(row)
    columns = [METHOD, Column("images", "images")]
    columns += [Column(key, heading, "high", **PERCENT) for key, heading in wanted.items()]
    return Table(name, title, columns, rows, note, comparison.no_rivals)


def attributes_seen(comparison, faces, classifier):
    """What the classifier sees in a FaceSet's readable images; kept with it, as the report asks twice."""
    if "attributes" not in faces.measured:
        faces.measured["attributes"] = seen_in(faces.readable, classifier, comparison.config.batch_size)
    return faces.measured["attributes"]
