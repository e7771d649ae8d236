"""Photos to embeddings: one after another as published, ours, and the bare networks.

    python -m benchmarks.extraction                     the miniature world's photos and pack
    python -m benchmarks.extraction --geometry sd21     512-pixel photos, iresnet100 with random weights
    python -m benchmarks.extraction --geometry sd21 --device cuda       the same on a GPU

All ways use the same detector and recogniser. The floor runs them on pictures and crops that are already in
memory, in batches. The detector runs where onnxruntime can: its provider is in the result.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.extraction")

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from safetensors.torch import save_file

from arcface_files.extraction import embed_images
from arcface_files.faces import FaceAnalyser, align
from arcface_files.recogniser import embed_crops, load_recogniser
from benchmarks.literal import extract_literally
from benchmarks.measure import alternate, describe_runs, report, speed_rows
from benchmarks.sd21_geometry import calibrated_recogniser
from mini.lab_photos import write_lab_photos
from utils.devices import pick_device
from utils.errors import run
from utils.identities import image_files
from utils.images import load_image

WAYS = {"literal": "published way", "ours": "ours", "floor": "networks alone"}


@dataclass
class ExtractionBenchmark:
    """What to measure."""

    geometry: Literal["mini", "sd21"] = "mini"
    """128-pixel photos with the miniature pack, or 512-pixel photos with an iresnet100."""
    device: str = "cpu"
    """cpu or cuda; what is not there is refused."""
    photos: int = 64
    """Photos of one person."""
    different: int = 0
    """Render only so many and copy them to the number of photos; 0 renders all."""
    rounds: int = 5
    """Times each way embeds them all."""
    workers: int = 2
    """Threads of ours that decode photos."""


def main():
    """Render photos, embed them in all ways, report."""
    options = tyro.cli(ExtractionBenchmark, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        ways, provider = prepare(options, Path(temporary))
        runs = alternate(ways, options.rounds, device=options.device)
    report_extraction(options, runs, provider)


def prepare(options, folder):
    """Render the photos; see :func:`make_ways`."""
    size = 128 if options.geometry == "mini" else 512
    write_lab_photos(folder / "faces", 1, options.different or options.photos, size=size)
    copy_photos(folder / "faces/ID_1/images", options.photos)
    return make_ways(options, folder)


def copy_photos(folder, count):
    """Copy the photos of a folder until there are ``count``."""
    paths = image_files(folder)
    for number in range(len(paths), count):
        shutil.copy(paths[number % len(paths)], folder / f"copy_{number}.png")


def make_ways(options, folder):
    """(dict of name -> function that embeds all photos anew, the provider that the detector runs on)."""
    paths, device = image_files(folder / "faces/ID_1/images"), pick_device(options.device)
    analyser, single = (FaceAnalyser("mini/weights/pack", batch_size=size, device=device) for size in (32, 1))
    recogniser = load_network(options, analyser, folder)
    images = [load_image(path) for path in paths]
    faces = analyser.detect(images)
    crops = np.stack(
        [align(image, found[0].landmarks) for image, found in zip(images, faces, strict=True) if found]
    )
    embeds = folder / "embeds"

    def anew(work):
        def way(_):
            shutil.rmtree(embeds, ignore_errors=True)
            embeds.mkdir()
            work()

        return way

    def floor(_):
        detector = analyser.detector.session
        for start in range(0, len(images), 32):
            blob = np.stack(images[start : start + 32]).transpose(0, 3, 1, 2).astype(np.float32)
            detector.run(None, {detector.get_inputs()[0].name: np.ascontiguousarray(blob)})
        embed_crops(crops, recogniser)

    ways = {
        "literal": anew(lambda: extract_literally(paths, embeds, single, recogniser)),
        "ours": anew(lambda: embed_images(paths, embeds, analyser, recogniser, workers=options.workers)),
        "floor": floor,
    }
    return ways, analyser.detector.session.get_providers()[0]


def load_network(options, analyser, folder):
    """The pack's recogniser, or an iresnet100 of random weights."""
    if options.geometry == "mini":
        return load_recogniser(analyser.models["recognition"], pick_device(options.device))
    path = folder / "iresnet100.safetensors"
    save_file(calibrated_recogniser().state_dict(), path)
    return load_recogniser(path, pick_device(options.device))


def report_extraction(options, runs, provider):
    """Print the table and keep the figures."""
    figures = {name: describe_runs(run) for name, run in runs.items()}
    rows = speed_rows(figures, WAYS, "extraction", "ms per photo", 1000 / options.photos, 2)
    result = {"options": vars(options), "detector": provider, "figures": figures}
    report(f"extraction_{options.geometry}", result, rows, device=options.device)


if __name__ == "__main__":
    run(main)
