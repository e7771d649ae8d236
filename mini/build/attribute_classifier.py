"""A small network that says what a miniature picture shows: gender, age, background, pose, and looks.

It judges whether samples follow their prompts (the miniature's stand-in for a CLIP score) and whether they
keep what people see of a person at a glance (hair colour, skin, beard, glasses); its features measure
diversity of what is shown rather than of who is shown.

    python -m mini.build.attribute_classifier          trains on the build's renders, into mini/weights
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.build.attribute_classifier")

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
import tyro
from torch import nn
from torch.nn import functional

from evaluation.attributes import FEATURES, AttributeClassifier
from mini.build.captions import BEARDS, HAIR_COLOURS
from mini.build.render_sets import load_set, missing_shards
from mini.paths import WEIGHTS, build_dir
from mini.world.backgrounds import BACKGROUNDS, STUDIO
from mini.world.identity import AGES
from mini.world.views import PORTRAIT_MAX_YAW, SIDE_MIN_YAW
from utils.errors import UserError, run
from utils.files import atomic_path
from utils.progress import log, progress
from utils.seeding import torch_generator

CLASSIFIER = WEIGHTS / "attributes.onnx"
CLASSES = {
    "gender": ("male", "female"),
    "age": tuple(AGES),
    "background": (*BACKGROUNDS, STUDIO),
    "pose": ("frontal", "side"),
    "hair": ("bald", *HAIR_COLOURS),
    "skin": ("pale", "tan", "dark"),
    "beard": ("none", "beard"),
    "glasses": ("none", "glasses"),
}
WIDTHS = (16, 32, 64, 96)
SIZE = 128
IGNORE = -100


class AttributeNetwork(nn.Module):
    """float (N, 3, 128, 128) RGB in [0, 1] -> {attribute: logits (N, classes), "features": (N, 192)}.

    The features are mean and maximum over the picture of the last layer.
    """

    def __init__(self):
        super().__init__()
        layers, channels = [nn.AvgPool2d(2)], 3
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels, len(of)) for name, of in CLASSES.items()})

    def forward(self, x):
        maps = self.trunk(x)
        features = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        return {name: head(features) for name, head in self.heads.items()} | {FEATURES: features}


def targets(attributes):
    """Class numbers of one picture's ground truth; -100 (ignored) for a pose between frontal and side."""
    turn = abs(attributes["yaw"])
    pose = 1 if turn >= SIDE_MIN_YAW else 0 if turn <= PORTRAIT_MAX_YAW else IGNORE
    words = {name: attributes[name] for name in ("gender", "age", "background", "skin")}
    hair = attributes["hair"].split()  # "long curly red hair", or "bald head"
    words["hair"] = "bald" if hair[0] == "bald" else hair[-2]
    words["beard"] = "beard" if attributes["beard"] in BEARDS else "none"
    words["glasses"] = "none" if attributes["glasses"] == "none" else "glasses"
    return {name: CLASSES[name].index(word) for name, word in words.items()} | {"pose": pose}


def ensure_classifier(weights_dir, build_dir):
    """Path of the bundle's classifier; where it has none, of one trained now, in the build folder."""
    shipped, made = (Path(folder) / CLASSIFIER.name for folder in (weights_dir, build_dir))
    if shipped.is_file():
        return shipped
    if not made.is_file():
        train_classifier(ClassifierConfig(build_dir=Path(build_dir), output=made))
    return made


def export_classifier(network, path):
    """Write the network as evaluation/attributes.py reads it, in half precision, whole or not at all."""
    outputs = [*CLASSES, FEATURES]
    with atomic_path(path) as temporary:
        torch.onnx.export(
            network.eval(),
            torch.zeros(2, 3, SIZE, SIZE),
            str(temporary),
            input_names=["pictures"],
            output_names=outputs,
            opset_version=17,
            dynamo=False,
            # Batch norms stay: folded into convolutions, half precision would round the products.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamic_axes={name: {0: "N"} for name in ("pictures", *outputs)},
        )
        model = onnx.load(str(temporary))
        store_half(model.graph)
        onnx.helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
        onnx.save(model, str(temporary))


def store_half(graph):
    """Keep a graph's float weights in half precision, each with a cast to single before its use."""
    casts = []
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            name = weight.name
            half = onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@dataclass
class ClassifierConfig:
    """How the attribute classifier is trained."""

    build_dir: Path = field(default_factory=build_dir)
    """Where python -m mini.build --stage render has put the training pictures."""
    images: int = 16000
    """Pictures used; the last tenth only measures."""
    epochs: int = 8
    """Passes over the pictures."""
    batch_size: int = 64
    """Pictures per step."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, one cycle."""
    output: Path = CLASSIFIER
    """The ONNX file to write."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""


def augmented(batch, generator):
    """Flipped, blurred by half, noisy and relit pictures, so that samples of a generator are no surprise."""
    count = len(batch)
    chance = torch.rand(4, count, 1, 1, 1, generator=generator)
    batch = torch.where(chance[0] < 0.5, batch.flip(3), batch)
    blurred = functional.interpolate(functional.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear")
    batch = torch.where(chance[1] < 0.4, blurred, batch)
    batch = batch * (0.85 + 0.3 * chance[2]) + 0.1 * (chance[3] - 0.5)
    return (batch + 0.02 * torch.randn(batch.shape, generator=generator)).clamp(0, 1)


def loss_of(logits, wanted):
    """Sum of the attributes' cross entropies; pictures with an undecided pose do not count there."""
    return sum(functional.cross_entropy(logits[name], wanted[name], ignore_index=IGNORE) for name in CLASSES)


def train(config):
    """Train on a rendered set and write the file; returns its accuracy per attribute on the last tenth."""
    torch.manual_seed(config.seed)
    pictures = load_set(config.build_dir / "renders", config.images)
    truth = [targets(attributes) for attributes in pictures.attributes]
    wanted = {name: torch.tensor([one[name] for one in truth]) for name in CLASSES}
    images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2)
    split = len(images) - max(1, len(images) // 10)
    network = AttributeNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=0.02)
    steps = config.epochs * -(-split // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps)
    for epoch in range(config.epochs):
        generator = torch_generator("attribute classifier", config.seed, epoch)
        order = torch.randperm(split, generator=generator).split(config.batch_size)
        for rows in progress(order, f"epoch {epoch + 1}/{config.epochs}"):
            batch = augmented(images[rows].float() / 255, generator)
            loss = loss_of(network(batch), {name: values[rows] for name, values in wanted.items()})
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    export_classifier(network, config.output)
    return accuracy(AttributeClassifier(config.output), pictures.images[split:], truth[split:])


def accuracy(classifier, images, truth):
    """{attribute: share of pictures classified rightly}, undecided poses left out."""
    batches = [images[start : start + 256] for start in range(0, len(images), 256)]
    seen = [one for batch in batches for one in classifier.predict(batch)]
    pairs = {
        name: [(s[name], t[name]) for s, t in zip(seen, truth, strict=True) if t[name] != IGNORE]
        for name in CLASSES
    }
    return {name: float(np.mean([CLASSES[name][t] == s for s, t in of])) for name, of in pairs.items()}


def train_classifier(config):
    """Train, write the file, report its accuracy on pictures not trained on; {attribute: accuracy}."""
    renders = config.build_dir / "renders"
    if missing_shards(renders, config.images):
        raise UserError(f"{renders}: pictures are missing; run python -m mini.build --stage render")
    scores = train(config)
    log(", ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items()))
    log(f"wrote {config.output}")
    return scores


def main():
    """Entry point."""
    train_classifier(tyro.cli(ClassifierConfig, description=__doc__))


if __name__ == "__main__":
    run(main)
