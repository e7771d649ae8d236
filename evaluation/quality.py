"""Face image quality by CR-FIQA (Boutros et al., CVPR 2023): an IResNet with one more linear layer, `qs`.

CR-FIQA(S) is an IResNet-50 trained on CASIA-WebFace (file 32572backbone.pth), CR-FIQA(L) an IResNet-100 on
MS1MV2 (181952backbone.pth). The score predicts the certainty ratio of a face: how near its embedding is to
its own class centre, over how near it is to the nearest other one. Higher is better, without a fixed range.
"""

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from arcface_files.iresnet import DEPTHS
from arcface_files.recogniser import condensed, iresnet_from_weights, read_pth, read_safetensors
from configs.evaluation_config import SOURCES
from evaluation.feature_cache import FeatureCache
from evaluation.inputs import MetricError
from utils.devices import device_of
from utils.errors import UserError
from utils.files import sha256_file

SOURCE = SOURCES["quality_weights"]
NAMES = {DEPTHS["iresnet50"]: "CR-FIQA(S)", DEPTHS["iresnet100"]: "CR-FIQA(L)"}
LICENCE = "CC BY-NC-SA 4.0 for the published CR-FIQA weights; your own for those of train_fr.py"
COLOURS = ("RGB", "BGR")
RATIOS = ("paper", "code")


class QualityNetwork(nn.Module):
    """IResNet and quality head: float (N, 3, 112, 112) RGB in [-1, 1] -> embedding (N, D), quality (N,)."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.qs = nn.Linear(backbone.embedding_size, 1)

    def forward(self, x):
        embedding = self.backbone(x)
        return embedding, self.qs(embedding)[:, 0]

    @property
    def published_name(self):
        """CR-FIQA(S) or CR-FIQA(L), or "quality network" for another depth."""
        stages = (getattr(self.backbone, f"layer{i}") for i in range(1, 5))
        return NAMES.get(tuple(len(stage) for stage in stages), "quality network")

    def official_state_dict(self):
        """The weights under CR-FIQA's names: the backbone's own, and qs.weight, qs.bias."""
        return official_state_dict(self.backbone, self.qs)


def official_state_dict(backbone, head):
    """The weights of an IResNet and its quality head (a linear layer) under CR-FIQA's names."""
    return backbone.state_dict() | {f"qs.{name}": value for name, value in head.state_dict().items()}


def load_quality_network(path):
    """A QualityNetwork in eval mode from a file in CR-FIQA's format (.pth, weights only, or .safetensors).

    Raises:
        UserError: the file is missing, holds code, or is not an IResNet with exactly the head `qs`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no CR-FIQA weights; get them from {SOURCE}")
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_pth(path)
    head = {name: state.pop(name) for name in ("qs.weight", "qs.bias") if name in state}
    if len(head) < 2:
        raise UserError(f"{path}: no quality head (qs.weight, qs.bias) in it; get the weights from {SOURCE}")
    network = QualityNetwork(iresnet_from_weights(state, path))
    try:
        network.qs.load_state_dict({name.removeprefix("qs."): value.float() for name, value in head.items()})
    except RuntimeError as error:
        raise UserError(f"{path}: its quality head does not fit ({condensed(error)}); get {SOURCE}") from None
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def quality_scores(network, crops, colour="RGB"):
    """Quality of aligned crops, float32 (N,).

    Args:
        crops: uint8 RGB (N, 112, 112, 3).
        colour: "RGB" as CR-FIQA demands, or "BGR": red and blue swapped, as the published ID-Booth figures
            were made (2.189, 2.154, 2.146); comparable with those only.
    """
    if colour not in COLOURS:
        raise UserError(f"quality_colour: {colour!r} is unknown; use RGB, or BGR for the published values")
    pixels = torch.from_numpy(np.require(crops, requirements="CW")).to(device_of(network))
    pixels = pixels.permute(0, 3, 1, 2).float()
    if colour == "BGR":
        pixels = pixels.flip(1)
    return network((pixels / 255 - 0.5) / 0.5)[1].cpu().numpy()


def published_sample(count, most):
    """The places of the faces that count: all, or of more than `most` as many, drawn as published.

    That is Python's random.sample with seed 7 from the faces in natural order.
    """
    if most is None or count <= most:
        return list(range(count))
    return random.Random(7).sample(range(count), most)


def face_quality(
    faces, weights, colour="RGB", cache_folder=None, batch_size=32, positions=None, device="cpu"
):
    """Quality of the faces of a FaceSet at `positions` (all when None), float32 (M,).

    Args:
        weights: file of the network.
    """
    network = load_quality_network(weights).to(device)
    positions = range(len(faces.index)) if positions is None else positions
    cache = FeatureCache(cache_folder, f"cr-fiqa|{sha256_file(weights)}|{colour}")
    keys = faces.crop_keys

    def compute(places):
        return quality_scores(network, faces.crops([positions[p] for p in places]), colour)[:, None]

    rows = cache.fetch([keys[p] for p in positions], compute, batch_size, f"quality of {faces.name}")
    return rows[:, 0]


def certainty_ratio(cosines, labels, form="paper"):
    """The training target of the quality head, (N,), without gradient.

    CCS, the cosine to the own class centre, and NNCCS, the highest cosine to another one, as
    - "paper": CCS / (NNCCS + 1 + 1e-9) (Boutros et al., CVPR 2023, eq. 4), within about 0 and 1;
    - "code": CCS / NNCCS, with NNCCS at least -1e-12, as the authors' training script has it. The published
      weights are of this form (their scores are near 2). It takes thousands of identities: where every other
      centre is at an obtuse angle it divides by nearly nothing.

    Args:
        cosines: (N, C) cosines of embeddings to all class centres. labels: (N,) int64.
    """
    if form not in RATIOS:
        raise UserError(f"quality_ratio: {form!r} is unknown; one of {', '.join(RATIOS)}")
    cosines = cosines.detach()
    if cosines.shape[1] < 2:
        raise MetricError("certainty ratio: one class only, so there is no other class centre")
    own = cosines.gather(1, labels[:, None])[:, 0]
    if form == "code":
        return own / cosines.scatter(1, labels[:, None], -1e-12).amax(1)
    return own / (cosines.scatter(1, labels[:, None], -torch.inf).amax(1) + 1 + 1e-9)
