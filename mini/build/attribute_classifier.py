"""A small network that says what a miniature picture shows: gender, age, background, pose.

It judges whether samples follow their prompts (the miniature's stand-in for a CLIP score), and its features
measure diversity of what is shown rather than of who is shown.

    python -m mini.build.attribute_classifier          trains on the build's renders, into mini/weights
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from mini.build.render_sets import load_set, missing_shards
from mini.paths import WEIGHTS, build_dir
from mini.world.backgrounds import BACKGROUNDS, STUDIO
from mini.world.identity import AGES
from mini.world.views import PORTRAIT_MAX_YAW, SIDE_MIN_YAW
from utils.errors import UserError, run
from utils.files import atomic_path
from utils.progress import log, progress
from utils.seeding import torch_generator

CLASSIFIER = WEIGHTS / "attributes.safetensors"
CLASSES = {
    "gender": ("male", "female"),
    "age": tuple(AGES),
    "background": (*BACKGROUNDS, STUDIO),
    "pose": ("frontal", "side"),
}
WIDTHS = (16, 32, 64, 96)
IGNORE = -100


class AttributeClassifier(nn.Module):
    """float (N, 3, 128, 128) RGB in [0, 1] -> {attribute: logits (N, classes)}."""

    def __init__(self):
        super().__init__()
        layers, channels = [nn.AvgPool2d(2)], 3
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels, len(of)) for name, of in CLASSES.items()})

    def pooled(self, x):
        """Features (N, 192): mean and maximum over the picture of the last layer."""
        maps = self.trunk(x)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, x):
        features = self.pooled(x)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.inference_mode()
    def predict(self, images):
        """What uint8 RGB pictures (any square size) show: one dict attribute -> class name each."""
        logits = self(as_batch(images))
        best = {name: values.argmax(1).tolist() for name, values in logits.items()}
        return [{name: CLASSES[name][best[name][i]] for name in CLASSES} for i in range(len(images))]

    @torch.inference_mode()
    def features(self, images):
        """Features of uint8 RGB pictures, float32 (N, 192)."""
        return self.pooled(as_batch(images)).numpy()


def as_batch(images):
    """uint8 RGB pictures as a float batch of 128 pixels in [0, 1]."""
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 for image in images]
    sized = [
        one if one.shape[-2:] == (128, 128) else functional.interpolate(one, (128, 128), mode="area")
        for one in tensors
    ]
    return torch.cat(sized)


def targets(attributes):
    """Class numbers of one picture's ground truth; -100 (ignored) for a pose between frontal and side."""
    turn = abs(attributes["yaw"])
    pose = 1 if turn >= SIDE_MIN_YAW else 0 if turn <= PORTRAIT_MAX_YAW else IGNORE
    named = {name: CLASSES[name].index(attributes[name]) for name in ("gender", "age", "background")}
    return named | {"pose": pose}


def load_classifier(path=CLASSIFIER):
    """The trained classifier in eval mode; UserError when the file is missing or holds other weights."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no attribute classifier; python -m mini.build.attribute_classifier makes it"
        )
    network = AttributeClassifier()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: not the attribute classifier; make it again") from error
    return network.eval().requires_grad_(False)


def ensure_classifier(weights_dir, build_dir):
    """Path of the bundle's classifier; where it has none, of one trained now, in the build folder."""
    shipped, made = (Path(folder) / CLASSIFIER.name for folder in (weights_dir, build_dir))
    if shipped.is_file():
        return shipped
    if not made.is_file():
        train_classifier(ClassifierConfig(build_dir=Path(build_dir), output=made))
    return made


def save_classifier(network, path):
    """Write the weights in half precision, whole or not at all."""
    state = {name: v.half() if v.is_floating_point() else v for name, v in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)


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
    """Where the weights go."""
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
    """Train on a rendered set; returns the network and its accuracy per attribute on the last tenth."""
    torch.manual_seed(config.seed)
    pictures = load_set(config.build_dir / "renders", config.images)
    truth = [targets(attributes) for attributes in pictures.attributes]
    wanted = {name: torch.tensor([one[name] for one in truth]) for name in CLASSES}
    images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2)
    split = len(images) - max(1, len(images) // 10)
    network = AttributeClassifier()
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
    network.eval()
    return network, accuracy(network, pictures.images[split:], truth[split:])


def accuracy(network, images, truth):
    """{attribute: share of pictures classified rightly}, undecided poses left out."""
    batches = [images[start : start + 256] for start in range(0, len(images), 256)]
    seen = [one for batch in batches for one in network.predict(batch)]
    pairs = {
        name: [(s[name], t[name]) for s, t in zip(seen, truth, strict=True) if t[name] != IGNORE]
        for name in CLASSES
    }
    return {name: float(np.mean([CLASSES[name][t] == s for s, t in of])) for name, of in pairs.items()}


def train_classifier(config):
    """Train, report the accuracy on pictures not trained on, and write the weights; {attribute: accuracy}."""
    renders = config.build_dir / "renders"
    if missing_shards(renders, config.images):
        raise UserError(f"{renders}: pictures are missing; run python -m mini.build --stage render")
    network, scores = train(config)
    save_classifier(network, config.output)
    log(", ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items()))
    log(f"wrote {config.output}")
    return scores


def main():
    """Entry point."""
    train_classifier(tyro.cli(ClassifierConfig, description=__doc__))


if __name__ == "__main__":
    run(main)
