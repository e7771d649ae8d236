"""A painted world for tests of whole evaluations: people are colours, so every figure is known."""

import json
from html.parser import HTMLParser

import numpy as np
import torch

from arcface_files.faces import ARCFACE_TEMPLATE, Face
from arcface_files.iresnet import IResNet
from configs.evaluation_config import EvaluationConfig
from evaluation.quality import QualityNetwork
from mini.build.attribute_classifier import AttributeNetwork, export_classifier
from utils.images import save_png

EVIL = "<script>alert('&')</script>"
RED, GREEN, BLUE, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 200), (0, 0, 0)


class ColourAnalyser:
    """A face where the picture is not black; its embedding is the mean colour, in the judge's own order."""

    def __init__(self, folder, name):
        self.models = {"detection": folder / "detector", "recognition": folder / name}
        self.order = [1, 2, 0] if name == "judge" else [0, 1, 2]
        for path in self.models.values():
            path.write_bytes(path.name.encode())
        self.detected = self.embedded = 0

    def detect(self, images):
        self.detected += len(images)
        box, points = np.array([0, 0, 111, 111], np.float32), ARCFACE_TEMPLATE
        return [[Face(box, points, 0.9)] if image.any() else [] for image in images]

    def embed(self, crops):
        self.embedded += len(crops)
        return crops.reshape(len(crops), -1, 3).mean(1).astype(np.float32)[:, self.order]


def paint(folder, colours):
    """Pictures 000.png, 001.png, ... of one colour each, in a new folder."""
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        save_png(folder / f"{number:03d}.png", np.full((112, 112, 3), colour, np.uint8))


def shades(colour, count):
    """`count` slightly different pictures of one colour."""
    return [tuple(max(0, c - 3 * k) for c in colour) for k in range(count)]


def make_world(tmp_path, monkeypatch):
    """Three people, two methods, an analyser that needs no network, small weights for the others."""

    def analyser(pack, **_):
        return ColourAnalyser(tmp_path, pack)

    monkeypatch.setattr("evaluation.comparison.FaceAnalyser", analyser)
    people = {"ID_1": RED, "ID_2": GREEN, "ID_3": BLUE}
    for name, colour in people.items():
        paint(tmp_path / "faces" / name / "images", shades(colour, 4))
        paint(tmp_path / "sets" / "one" / "ID-Booth" / name, shades(colour, 3))
        paint(tmp_path / "sets" / "one" / "NonFineTuned" / name, [RED, GREEN, BLACK])
    for method in ("ID-Booth", "NonFineTuned"):
        record = {"file_name": "ID_1/000.png", "prompt": f"face portrait photo of male sks person {EVIL}"}
        (tmp_path / "sets" / "one" / method / "metadata.jsonl").write_text(json.dumps(record) + "\n")
    torch.manual_seed(0)
    network = QualityNetwork(IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16))
    torch.save(network.official_state_dict(), tmp_path / "quality.pth")
    classifier = AttributeNetwork()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # biases too: a black picture must not come out as zeros
    export_classifier(classifier, tmp_path / "attributes.onnx")
    return tmp_path


def config_for(world, **changes):
    options = dict(
        samples_folder=str(world / "sets"),
        real_folder=str(world / "faces"),
        output_folder=str(world / "out"),
        cache_folder=None,
        pack="loss",
        judge_pack="judge",
        encoders=("pixels", "dinov2", "attributes"),
        attributes_file=str(world / "attributes.onnx"),
        quality_weights=str(world / "quality.pth"),
        replicates=50,
        verification_replicates=20,
        nearest_neighbours=2,
        title=f"Title {EVIL}",
        grid_images=2,
    )
    return EvaluationConfig(**(options | changes))


def write_config(file, config):
    """A config file that builds `config`."""
    file.write_text(f"from configs.evaluation_config import EvaluationConfig\nconfig = {config!r}\n")


class Page(HTMLParser):
    """Collects tags, attributes that could fetch something, and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.urls, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]

    def handle_data(self, data):
        self.text += data
