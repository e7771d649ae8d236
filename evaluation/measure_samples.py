"""What every sample and real photo measures: the rows of evaluation/measurements.py.

The networks of the report have run by then, or run through the same caches: nothing is computed twice.
"""

import numpy as np

from evaluation.adherence import parse_prompt, prompts_or_nothing
from evaluation.attributes import AttributeClassifier
from evaluation.encoders import PixelEncoder
from evaluation.error_rates import BLOCK
from evaluation.feature_cache import FeatureCache
from evaluation.image_sets import REAL
from evaluation.inputs import unit_rows
from evaluation.measure_sets import attributes_seen, face_angles
from evaluation.measurements import KEPT, SEEN, Measurements, as_texts
from evaluation.pose import ANGLES
from evaluation.quality import face_quality
from id_booth.prompts import PROMPTED
from utils.errors import UserError


def measure_samples(comparison):
    """The :class:`Measurements` of all samples and real photos of a comparison.

    What lacks its network (quality, pose, the classifier of attributes) stays unknown; the report says so.
    """
    judges = {
        name: {"title": judge.title, **impostor_tail(comparison.real, name)}
        for name, judge in comparison.judges.items()
    }
    parts = [measure_set(comparison, faces) for faces in comparison.sets]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in shared}
    return Measurements(columns, judges)


def measure_set(comparison, faces):
    """The columns of one set."""
    config = comparison.config
    columns = asked(faces.images, faces.hashes) | seen(comparison, faces)
    per_face = {"detection_score": faces.detection_scores, "quality": quality_of(comparison, faces)}
    per_face |= dict(zip(ANGLES, angles_of(comparison, faces).T, strict=True))
    for judge in comparison.judges:
        per_face |= judged(faces, comparison.real, judge)
    features, of_real = (face_pixels(config, one) for one in (faces, comparison.real))
    nearest = {"photo": nearest_of(faces, features, comparison.real, of_real)}
    nearest["sample"] = none_near(faces) if faces is comparison.real else nearest_of(faces, features)
    for kind, (names, likeness) in nearest.items():
        per_face |= {f"nearest_{kind}": names, f"{kind}_likeness": likeness}
    return columns | {name: per_image(faces, values) for name, values in per_face.items()}


def face_pixels(config, faces):
    """The aligned faces as pixels, (M, D) float32; mostly cut already, when they were embedded."""
    encoder = PixelEncoder()
    cache = FeatureCache(config.cache_folder, encoder.identifier)
    return cache.fetch(
        faces.crop_keys, lambda places: encoder(faces.small_crops(places)), desc=f"pixels of {faces.name}"
    )


def per_image(faces, values):
    """Values (M,) of the faces as a column (N,) of all images; unknown where there is no face."""
    values = np.asarray(values)
    column = np.full(len(faces.images), None if values.dtype == object else np.nan)
    column[faces.index] = values
    return column


def asked(images, hashes):
    """The columns that the files, their folders and their prompts say."""
    names = [path.relative_to(images.folder).as_posix() for path in images.paths]
    known = {} if images.name == REAL else prompts_or_nothing(images.folder)
    prompts = [known.get(name) for name in names]
    said = [parse_prompt(prompt) if prompt else {} for prompt in prompts]
    lists = {"method": [images.name] * len(names), "identity": images.labels, "file": names}
    lists |= {"sha256": hashes, "prompt": prompts}
    lists |= {name: [one.get(name) for one in said] for name in PROMPTED}
    return {name: as_texts(values) for name, values in lists.items()}


def seen(comparison, faces):
    """The columns of what the classifier of attributes sees; none without one."""
    path = comparison.config.attributes_file
    if path is None:
        return {}
    try:
        classifier = AttributeClassifier(path)
        found = attributes_seen(comparison, faces, classifier)
    except UserError:
        return {}  # the section on attributes says why
    columns = {SEEN + name: as_texts([None] * len(faces.images)) for name in classifier.classes}
    readable = [place for place, key in enumerate(faces.hashes) if key is not None]
    for place, attributes in zip(readable, found, strict=True):
        for name, value in attributes.items():
            columns[SEEN + name][place] = value
    return columns


def quality_of(comparison, faces):
    """Quality of every face (M,); NaN where the weights are absent or no good."""
    config = comparison.config
    try:
        if config.quality_weights is None or not len(faces.index):
            raise UserError("quality_weights: none given")
        options = (config.quality_weights, config.quality_colour, config.cache_folder, config.batch_size)
        return face_quality(faces, *options, device=comparison.device)
    except UserError:
        return np.full(len(faces.index), np.nan)  # the section on quality says why


def angles_of(comparison, faces):
    """Yaw, pitch and roll (M, 3); NaN where the network is absent."""
    try:
        return face_angles(comparison, faces)
    except UserError:
        return np.full((len(faces.index), 3), np.nan)  # the section on pose says why


def person_similarities(faces, real, judge):
    """(people (P,), mean cosine of each face to each person's real photos (M, P)).

    Of the real photos themselves to the person's other photos; NaN for a person without any (other) photo.
    """
    order = np.argsort(real.labels, kind="stable")
    people, starts, counts = np.unique(real.labels[order], return_index=True, return_counts=True)
    photos = unit_rows(real.embeddings[judge][order], real.name)
    sums, weights = np.zeros((len(faces.index), len(people))), np.tile(counts, (len(faces.index), 1))
    mine = unit_rows(faces.embeddings[judge], faces.name) if len(faces.index) else photos[:0]
    rows = max(1, BLOCK // len(photos))
    for start in range(0, len(mine), rows):
        block = mine[start : start + rows] @ photos.T
        sums[start : start + rows] = np.add.reduceat(block, starts, axis=1, dtype=np.float64)
    if faces is real:
        own = np.arange(len(mine)), np.searchsorted(people, faces.labels)
        sums[own] -= 1
        weights[own] -= 1
    with np.errstate(invalid="ignore"):
        return people, np.where(weights > 0, sums / np.maximum(weights, 1), np.nan)


def judged(faces, real, judge):
    """The judge's columns of a set's faces, (M,) each."""
    people, similarities = person_similarities(faces, real, judge)
    is_own = faces.labels[:, None] == people
    own = np.where(
        is_own.any(1), np.nanmax(np.where(is_own, similarities, -np.inf), 1, initial=-np.inf), np.nan
    )
    own[np.isneginf(own)] = np.nan
    others = np.where(is_own, -np.inf, similarities)
    best = others.max(1, initial=-np.inf)
    known = np.isfinite(best)
    best[~known] = np.nan
    nearest = people[others.argmax(1)].astype(object)
    nearest[~known] = None
    values = {"similarity": own, "other_similarity": best, "margin": own - best}
    return {f"{judge}_{name}": column for name, column in values.items()} | {f"{judge}_other_person": nearest}


def impostor_tail(real, judge):
    """How many comparisons of real photos with other people's photos there are, and the highest scores."""
    people, similarities = person_similarities(real, real, judge)
    scores = np.sort(similarities[real.labels[:, None] != people])[::-1]
    kept = len(scores) // KEPT + 1
    return {"comparisons": len(scores), "highest": scores[:kept].tolist()}


def nearest_of(faces, features, others=None, of_others=None):
    """(file names (M,), correlations (M,)) of the nearest face of the same person in `others`, or in `faces`.

    Args:
        features, of_others: (M, D) pixels of the aligned faces. A face is never its own nearest.
    """
    itself = others is None or others is faces
    others, of_others = (faces, features) if itself else (others, of_others)
    files = [path.relative_to(others.images.folder).as_posix() for path in others.images.paths]
    files = as_texts(files)[others.index]
    mine, theirs = normalised_pixels(features), normalised_pixels(of_others)
    names, likeness = none_near(faces)
    for person in np.unique(faces.labels):
        here, there = np.flatnonzero(faces.labels == person), np.flatnonzero(others.labels == person)
        products = mine[here] @ theirs[there].T
        if itself:
            np.fill_diagonal(products, -np.inf)
        if len(there) > itself:
            likeness[here], names[here] = products.max(1), files[there[products.argmax(1)]]
    return names, likeness


def none_near(faces):
    """:func:`nearest_of` where there is nothing to be near to."""
    return as_texts([None] * len(faces.index)), np.full(len(faces.index), np.nan)


def normalised_pixels(features):
    """Rows without their mean, of length 1, so that products are correlations; a plain row stays zero."""
    centred = features - features.mean(1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
