"""Checks of the renderer: speed, and whether networks trained on real faces work on its faces."""

import time

import cv2
import numpy as np

from arcface_files.faces import align
from evaluation.identity import pair_scores, verification_stats
from mini.build.detector_data import mirror_landmarks
from mini.check.figures import NO_REAL, Figure, most_confident, per_cent, renderer_files
from mini.chunks import chunked
from mini.face_world import render, sample_identity, sample_view
from utils.seeding import derive_seed

# YuNet's landmarks of one picture differ by 5 % of the inter-ocular distance between detector sizes; the mean
# over these sizes is its estimate.
YUNET_SIZES = (256, 320, 384, 512)
YUNET_SIZE = 384
SPEED_BLOCK = 10


def check_renderer(config):
    """The renderer's figures."""
    folder = config.kept("renderer", *renderer_files())
    return [speed_figure(config), *detection_figures(config, folder), recognition_figure(config, folder)]


def speed_figure(config):
    """Pictures per second of processor time: the median over blocks of ten."""
    count = config.count(200, 50)
    first = config.first_person("renderer")
    people = [(sample_identity(first + i), sample_view(first + i, "wild")) for i in range(count)]
    for person in people[:SPEED_BLOCK]:
        render(*person)
    seconds = []
    for start in range(0, count, SPEED_BLOCK):
        began = time.process_time()
        for person in people[start : start + SPEED_BLOCK]:
            render(*person)
        seconds.append((time.process_time() - began) / len(people[start : start + SPEED_BLOCK]))
    value = float(1 / np.median(seconds))
    return Figure("pictures per second of one core", value, f"{count} wild pictures, 128 pixels", at_least=40)


def view_within(limit, *parts):
    """A wild view with |yaw| up to ``limit`` degrees, from any seed parts."""
    for attempt in range(1000):
        view = sample_view(derive_seed("check view", *parts, attempt), "wild")
        if abs(view.yaw) <= limit:
            return view
    raise RuntimeError(f"no view with |yaw| up to {limit} in a thousand")


def detection_figures(config, folder):
    """YuNet on wild pictures with |yaw| up to 45: faces found, and its landmark error."""
    count = config.count(2000)
    sample = f"{count} wild pictures, |yaw| <= 45"
    demands = {
        "found": dict(name="YuNet finds the face", at_least=99, unit=" %"),
        "mean": dict(
            name="YuNet's landmark error, share of the inter-ocular distance",
            at_most=8,
            unit=" %",
            note=f"mean of its detections at {', '.join(map(str, YUNET_SIZES))} pixels, plain and mirrored",
        ),
        "single": dict(name=f"the same, one detection at {YUNET_SIZE} pixels", unit=" %"),
    }
    analysers = config.real_packs(YUNET_SIZES)
    if analysers is None:
        return [Figure(**{**of, "note": NO_REAL}, value=None, sample=sample) for of in demands.values()]
    first = config.first_person("renderer")

    def make(numbers):
        rows = []
        for number in numbers:
            picture = render(sample_identity(first + number), view_within(45, "yunet", first, number))
            rows.append(yunet_row(analysers, picture))
        return {"rows": np.array(rows)}

    rows = chunked(folder, "yunet", count, make)["rows"]
    values = {
        "found": per_cent(rows[:, 0]),
        "mean": per_cent(rows[rows[:, 0] > 0, 2]),
        "single": per_cent(rows[rows[:, 0] > 0, 1]),
    }
    return [Figure(**of, value=values[key], sample=sample) for key, of in demands.items()]


def yunet_row(analysers, picture):
    """(1 if found at YUNET_SIZE, landmark error of that detection, landmark error of the mean over sizes)."""
    mirrored = np.ascontiguousarray(picture.image[:, ::-1])
    answers, single = [], None
    for size, analyser in zip(YUNET_SIZES, analysers, strict=True):
        plain, other = (
            most_confident(faces)
            for faces in (analyser.detect([image])[0] for image in (picture.image, mirrored))
        )
        if plain is not None:
            answers.append(plain.landmarks)
        if other is not None:
            answers.append(mirror_landmarks(other.landmarks, len(mirrored)))
        if size == YUNET_SIZE:
            single = plain
    if single is None:
        return 0.0, np.nan, np.nan
    return 1.0, landmark_error(single.landmarks, picture), landmark_error(np.mean(answers, 0), picture)


def landmark_error(landmarks, picture):
    """Mean distance to a rendering's true landmarks, divided by the inter-ocular distance in the picture."""
    eyes = np.linalg.norm(picture.landmarks[0] - picture.landmarks[1])
    return float(np.linalg.norm(landmarks - picture.landmarks, axis=1).mean() / eyes)


def recognition_figure(config, folder):
    """AUC of SFace on five wild pictures each of many people."""
    people = config.count(200)
    analysers = config.real_packs((YUNET_SIZE,))
    figure = dict(
        name="SFace tells people apart: AUC",
        at_least=0.97,
        sample=f"{people} people x 5 wild pictures, |yaw| <= 30",
    )
    if analysers is None:
        return Figure(**figure, value=None, note=NO_REAL)
    first = config.first_person("renderer")

    def make(numbers):
        views = [(number, view_within(30, "sface", first, number, k)) for number in numbers for k in range(5)]
        pictures = [render(sample_identity(first + number), view).image for number, view in views]
        rows = embeddings(analysers[0], pictures)
        return {"embeddings": rows.reshape(len(numbers), 5, -1)}

    rows = chunked(folder, "sface", people, make, size=10)["embeddings"]
    labels = np.repeat(np.arange(people), 5)
    rows = rows.reshape(len(labels), -1)
    seen = np.isfinite(rows[:, 0])
    stats = verification_stats(*pair_scores(rows[seen], labels[seen]))
    note = "" if seen.all() else f"no face in {int((~seen).sum())} pictures, left out"
    return Figure(**figure, value=stats["auc"], note=note)


def embeddings(analyser, pictures):
    """Embeddings (N, D) of the face with the highest score in each picture; NaN where the pack finds none."""
    cv2.setNumThreads(1)
    faces = [most_confident(found) for found in analyser.detect(pictures)]
    crops = [align(picture, face.landmarks) for picture, face in zip(pictures, faces, strict=True) if face]
    found = analyser.embed(np.stack(crops) if crops else np.zeros((0, 112, 112, 3), np.uint8))
    rows = np.full((len(pictures), found.shape[1]), np.nan, np.float32)
    rows[[place for place, face in enumerate(faces) if face]] = found
    return rows
