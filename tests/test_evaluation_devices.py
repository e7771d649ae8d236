"""The evaluation's networks on another device than the CPU, without one, and in float32.

A network on torch's "meta" device computes shapes and devices but no values: where anything is left on the
CPU the call fails at once, else only at its end, where the result would be copied back.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from arcface_files.iresnet import IResNet
from evaluation.adherence import ClipScorer
from evaluation.comparison import open_comparison
from evaluation.encoders import make_encoder
from evaluation.judges import RecogniserFile
from evaluation.pose_networks import SixDRepNet, sixdrepnet_pose
from evaluation.quality import QualityNetwork, quality_scores
from tests.evaluation_world import config_for, make_world
from tests.test_device_proof import META, NothingWaits
from tests.tiny_base import make_tokenizer

CROPS = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


def save_dinov2(folder):
    Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **SIZES)).to(torch.float16).save_pretrained(
        folder
    )


def save_mae(folder):
    ViTMAEForPreTraining(ViTMAEConfig(image_size=224, patch_size=16, **SIZES)).save_pretrained(folder)


def save_clip(folder):
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=48, projection_dim=8, **SIZES)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=8, **SIZES)
    parts = dict(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(CLIPConfig(**parts)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def encoder_call(kind, save):
    def call(folder):
        save(folder)
        encoder = make_encoder(kind, folder, device=META)
        assert {p.dtype for p in encoder.network.parameters()} == {torch.float32}
        return lambda: encoder(list(CROPS))

    return call


def scorer_call(folder):
    save_clip(folder)
    scorer = ClipScorer(folder, META)

    def forward(**inputs):  # inside, the library looks at values of the attention mask
        assert {tensor.device for tensor in inputs.values()} == {META}
        raise NotImplementedError("a meta tensor")

    scorer.network.forward = forward
    return lambda: scorer(list(CROPS), ["a", "photo"])


def quality_call(_):
    network = QualityNetwork(IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16)).eval().to(META)
    return lambda: quality_scores(network, CROPS, "BGR")


def pose_call(_):
    network = SixDRepNet((1, 1, 1, 1), (8, 8, 8, 8), 8).eval().to(META)
    return lambda: sixdrepnet_pose(network, CROPS)


def recogniser_call(folder):
    torch.save(IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16).state_dict(), folder / "r.pth")
    judge = RecogniserFile(folder / "r.pth", META)
    return lambda: judge.embed(CROPS)


CALLS = {
    "dinov2": encoder_call("dinov2", save_dinov2),
    "clip": encoder_call("clip", save_clip),
    "cmmd": encoder_call("cmmd", save_clip),
    "mae": encoder_call("mae", save_mae),
    "clip score": scorer_call,
    "cr-fiqa": quality_call,
    "6drepnet": pose_call,
    "recogniser": recogniser_call,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_network_is_used_where_it_lies(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know this device
    call = CALLS[name](tmp_path)
    with NothingWaits(), pytest.raises(NotImplementedError, match="meta"):
        call()


def test_an_evaluation_uses_no_shortened_numbers(tmp_path, monkeypatch):
    """A GPU's TF32 would round what a CPU does not; training, in the same process, allows it."""
    world = make_world(tmp_path, monkeypatch)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    comparison = open_comparison(config_for(world))
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert comparison.device == torch.device("cuda" if torch.cuda.is_available() else "cpu")
