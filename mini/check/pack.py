"""Checks of the face pack: the detector on held-out people, places and real photos; the recogniser."""

import cv2
import numpy as np
import torch

from arcface_files.face_pack import open_network
from arcface_files.recogniser import load_recogniser
from evaluation.identity import pair_scores, verification_stats
from fr_training.networks import embed
from fr_training.verification import normalise
from mini.build.recogniser_data import aligned_crop
from mini.check.figures import Figure, per_cent, renderer_files
from mini.check.renderer import embeddings, landmark_error
from mini.chunks import chunked
from mini.face_world import render, render_background, sample_identity, sample_view
from mini.world.backgrounds import BACKGROUNDS
from utils.errors import UserError
from utils.identities import image_files, subfolders
from utils.images import load_image
from utils.seeding import derive_seed

PHOTO_SIZES = (128, 192, 256, 320)
VIEWS = 10


def check_detector(config):
    """The detector's figures, through insightface's own code at the picture's size, threshold 0.5."""
    path, _ = config.pack_files()
    folder = config.kept("detector", path, *renderer_files())
    detector = open_detector(path)
    faces, places = config.count(2000), config.count(1000)
    first = config.first_person("detector")

    def on_faces(numbers):
        rows = []
        for number in numbers:
            view = sample_view(derive_seed("check detector", first, number), "wild")
            rows.append(detection_row(detector, render(sample_identity(first + number), view)))
        return {"rows": np.array(rows)}

    def on_places(numbers):
        images = [render_background(BACKGROUNDS[n % len(BACKGROUNDS)], first + n) for n in numbers]
        return {"faces": np.array([len(detect(detector, image)[0]) for image in images])}

    rows = chunked(folder, "detector_faces", faces, on_faces)["rows"]
    empty = chunked(folder, "detector_places", places, on_places)["faces"]
    people = f"{faces} held-out people, wild, |yaw| <= 60"
    return [
        Figure("size of the detector", path.stat().st_size / 1e6, "the file", at_most=1, unit=" MB"),
        Figure("faces found at IoU 0.5", per_cent(rows[:, 0]), people, at_least=99, unit=" %"),
        Figure("surplus detections per 100 of them", per_cent(rows[:, 1]), people),
        Figure("false faces per 100 places without a person", per_cent(empty), f"{places} places", at_most=1),
        Figure(
            "landmark error, share of the inter-ocular distance",
            100 * float(np.nanmean(rows[:, 2])),
            people,
            at_most=4,
            unit=" %",
        ),
        *photo_figures(config, detector),
    ]


def open_detector(path):
    """insightface's detector object for a file."""
    detector = open_network(path, "cpu")
    detector.prepare(-1, det_thresh=0.5)
    return detector


def detect(detector, image, size=128):
    """Boxes with scores (F, 5) and landmarks (F, 5, 2) in a uint8 RGB image, by insightface's own code."""
    return detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), input_size=(size, size))


def detection_row(detector, picture):
    """(1 if the face is found, surplus detections, landmark error or NaN) of one rendering."""
    boxes, landmarks = detect(detector, picture.image)
    overlaps = [box_iou(box[:4], picture.box) for box in boxes]
    best = int(np.argmax(overlaps)) if overlaps else None
    if best is None or overlaps[best] < 0.5:
        return 0.0, float(len(boxes)), np.nan
    return 1.0, float(len(boxes) - 1), landmark_error(landmarks[best], picture)


def box_iou(first, second):
    """Intersection over union of two boxes x1, y1, x2, y2."""
    inner = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    intersection = float(np.prod(np.maximum(inner, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return intersection / (sum(areas) - intersection)


def photo_figures(config, detector):
    """In how many AT&T photos the detector finds a face: reported, without a demand."""
    folder = config.real / "images/att_faces" if config.real else None
    if folder is None or not folder.is_dir():
        note = "needs the AT&T photos: set ID_BOOTH_FIXTURES or --real"
        return [Figure("AT&T photos with exactly one face found", None, "400 photos", unit=" %", note=note)]
    images = [load_image(path) for person in [folder, *subfolders(folder)] for path in image_files(person)]
    if not images:
        raise UserError(f"{folder}: no photos in this folder; put .png or .jpg files there")
    figures = []
    for size in PHOTO_SIZES:
        counts = np.array([len(detect(detector, image, size)[0]) for image in images])
        for words, found in (("exactly one face", counts == 1), ("a face", counts > 0)):
            name = f"AT&T photos with {words} found, at {size} pixels"
            figures.append(Figure(name, per_cent(found), f"{len(images)} photos", unit=" %"))
    return figures


def check_recogniser(config):
    """The recogniser's figures."""
    detector, recogniser = config.pack_files()
    folder = config.kept("recogniser", detector, recogniser, *renderer_files())
    people = config.count(200)
    pack = config.mini_pack()
    first = config.first_person("recogniser")

    def through_pack(numbers):
        views = [
            (n, sample_view(derive_seed("check recogniser", first, n, k), "wild"))
            for n in numbers
            for k in range(VIEWS)
        ]
        pictures = [render(sample_identity(first + n), view).image for n, view in views]
        return {"embeddings": embeddings(pack, pictures).reshape(len(numbers), VIEWS, -1)}

    def by_truth(numbers):
        crops = [
            aligned_crop(first + n, derive_seed("check crop", first, n, k), "wild")
            for n in numbers
            for k in range(VIEWS)
        ]
        return {"embeddings": pack.embed(np.stack(crops)).reshape(len(numbers), VIEWS, -1)}

    sample = f"{people} held-out people x {VIEWS} wild pictures, all pairs"
    found = chunked(folder, "recogniser_pack", people, through_pack, size=10)["embeddings"]
    exact = chunked(folder, "recogniser_truth", people, by_truth, size=10)["embeddings"]
    error, missing = equal_error(found)
    note = f"faces as the mini detector finds them; none in {missing} pictures, left out"
    return [
        Figure(
            "size of the recogniser (ONNX)",
            recogniser.stat().st_size / 1e6,
            "the file",
            at_most=6,
            unit=" MB",
        ),
        Figure("equal error rate", error, sample, at_most=2, unit=" %", note=note),
        Figure("equal error rate, faces placed by the renderer", equal_error(exact)[0], sample, unit=" %"),
        twins_figure(config, pack, recogniser),
    ]


def equal_error(rows):
    """(equal error rate in %, rows without a face) of embeddings (people, views, D) with NaN for no face."""
    labels = np.repeat(np.arange(len(rows)), rows.shape[1])
    flat = rows.reshape(len(labels), -1)
    seen = np.isfinite(flat[:, 0])
    if len(np.unique(labels[seen])) < 2:
        raise UserError("recogniser: the detector finds faces of fewer than two people; train it first")
    stats = verification_stats(*pair_scores(flat[seen], labels[seen]))
    return 100 * stats["eer"], int((~seen).sum())


def twins_figure(config, pack, path):
    """The largest difference between the PyTorch and ONNX forms, over unit embeddings of the same crops."""
    first, count = config.first_person("recogniser"), config.count(200, 50)
    crops = np.stack([aligned_crop(first + n, n, "wild") for n in range(count)])
    twin = path.with_suffix(".safetensors")
    source = twin if twin.is_file() else path
    with torch.inference_mode():
        ours = embed(load_recogniser(source).eval(), crops, flip=False)
    difference = float(np.abs(normalise(ours) - normalise(pack.embed(crops))).max())
    return Figure(
        "PyTorch against ONNX, largest difference of unit embeddings",
        difference,
        f"{count} crops",
        at_most=1e-4,
        note=f"PyTorch from {source.name}",
    )
