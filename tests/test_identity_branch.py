"""From latents to embeddings: windows, crops and gradient."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from arcface_files.faces import Face, box_crop, crop_face
from id_booth.training.identity_branch import IdentityBranch
from id_booth.training.photos import alignment_matrices, face_windows
from tests.conftest import PROJECT_ROOT

FACTOR = 8


class Upsampler:
    """A decoder without context: each latent becomes an 8 x 8 block of its first three channels."""

    config = type("Config", (dict,), {"scaling_factor": 0.5})()
    decoder = nn.Linear(1, 1)  # by which the precision is known

    def decode(self, latents):
        return SimpleNamespace(sample=F.interpolate(latents[:, :3], scale_factor=FACTOR))


class Flatten(nn.Module):
    """A recogniser whose embedding is the crop itself."""

    embedding_size = 3 * 112 * 112

    def forward(self, crops):
        return crops.flatten(1)


def branch(decode="full", crop="aligned", analyser=None, saturated="straight-through"):
    config = SimpleNamespace(identity_decode=decode, face_crop=crop, saturated_pixels=saturated)
    return IdentityBranch(config, Upsampler(), FACTOR, Flatten(), analyser)


def inputs(count=3, side=16):
    generator = torch.Generator().manual_seed(0)
    latents = torch.rand(count, 4, side, side, generator=generator) - 0.5
    centre = np.array([[52.0, 50], [76, 50], [64, 64], [54, 76], [74, 76]])
    landmarks = np.stack([centre + (4 * i - 4, 3 * i - 3) for i in range(count)])
    matrices = alignment_matrices(landmarks)
    return latents, matrices, face_windows(matrices, side, FACTOR, 1)


def test_face_window_gives_the_crop_of_the_full_decode():
    latents, matrices, windows = inputs()
    assert (windows[:, 2:] < 16).all()
    full, _ = branch("full").embeddings(latents, matrices, windows)
    face, found = branch("face").embeddings(latents, matrices, windows)
    assert found.all() and torch.allclose(full, face, atol=1e-4)


def test_windows_of_several_sizes_keep_their_items():
    latents, matrices, windows = inputs()
    windows[1] = torch.tensor([0, 0, 16, 16])
    full, _ = branch("full").embeddings(latents, matrices, windows)
    face, _ = branch("face").embeddings(latents, matrices, windows)
    assert torch.allclose(full, face, atol=1e-4)


def test_windows_lie_inside_and_contain_the_crop():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scale, shift = rng.uniform(0.2, 1.6), rng.uniform(-40, 60, 2)
        landmarks = np.array([[[38.0, 51], [73, 51], [56, 71], [41, 92], [70, 92]]]) * scale + shift
        matrices = alignment_matrices(landmarks)
        top, left, height, width = face_windows(matrices, 16, FACTOR, 1)[0].tolist()
        assert 0 <= top <= 16 - height and 0 <= left <= 16 - width and height % 2 == width % 2 == 0
        inside = np.clip(landmarks[0], 0, 127)
        assert (inside[:, 0] >= left * FACTOR).all() and (inside[:, 0] <= (left + width) * FACTOR).all()
        assert (inside[:, 1] >= top * FACTOR).all() and (inside[:, 1] <= (top + height) * FACTOR).all()


def test_unknown_landmarks_take_the_whole_image():
    matrices = alignment_matrices(np.full((2, 5, 2), np.nan))
    assert torch.isnan(matrices).all()
    assert face_windows(matrices, 16, FACTOR, 2).tolist() == [[0, 0, 16, 16]] * 2


@pytest.mark.parametrize("saturated", ["clamp", "straight-through"])
def test_saturated_pixels_lose_their_gradient_as_published_or_keep_it(saturated):
    latents = torch.full((1, 4, 16, 16), 3.0, requires_grad=True)
    _, matrices, windows = inputs(1)
    embedding, _ = branch(saturated=saturated).embeddings(latents, matrices, windows)
    assert embedding.max() <= 1
    embedding.sum().backward()
    assert (latents.grad[:, :3].abs().sum() > 0) == (saturated == "straight-through")


class OneFace:
    """Finds a face in bright images only."""

    def detect(self, images):
        box = np.array([20.7, 30.2, 90.9, 110.4], np.float32)
        face = Face(box, np.zeros((5, 2), np.float32), 0.9)
        return [[face] if image.mean() > 127 else [] for image in images]


def test_detect_crops_the_truncated_box_and_skips_images_without_a_face():
    latents, matrices, windows = inputs(2)
    latents = torch.stack([latents[0].abs(), -latents[1].abs()])
    embeddings, found = branch(crop="detect", analyser=OneFace()).embeddings(latents, matrices, windows)
    assert found.tolist() == [True, False] and not embeddings[1].any()
    image = F.interpolate(latents[:1, :3] / 0.5, scale_factor=FACTOR)
    expected = F.interpolate(image[:, :, 30:110, 20:90], (112, 112), mode="bilinear")
    assert torch.allclose(embeddings[0], expected.flatten(), atol=1e-5)


def test_no_face_at_all():
    latents, matrices, windows = inputs(1)
    dark = -latents.abs()
    embeddings, found = branch(crop="detect", analyser=OneFace()).embeddings(dark, matrices, windows)
    assert embeddings.shape == (1, Flatten.embedding_size)
    assert not embeddings.any() and not found.any()


@pytest.mark.parametrize(
    "box, expected",
    [
        ((-5.5, 3.2, 10.9, 20), (0, 3, 10, 20)),
        ((5, 5, 6.5, 20), None),
        ((200, 5, 220, 20), None),
        ((-30, -30, -10, -10), None),
        ((90, 90, 300, 300), (90, 90, 128, 128)),
    ],
)
def test_degenerate_boxes_are_no_faces(box, expected):
    rows = torch.arange(128.0)[:, None].expand(128, 128)
    crop = box_crop(torch.stack([rows, rows.T])[None], box)
    if expected is None:
        assert crop is None
    else:
        left, top, right, bottom = expected
        assert (crop[0, 0].min(), crop[0, 0].max()) == (top, bottom - 1)
        assert (crop[0, 1].min(), crop[0, 1].max()) == (left, right - 1)


def test_extraction_and_training_cut_the_same_box():
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    box = np.array([10.9, -3.2, 70.1, 59.7], np.float32)
    stored = crop_face(image, Face(box, np.zeros((5, 2), np.float32), 0.9), "box")
    piece = torch.from_numpy(image[0:59, 10:70]).permute(2, 0, 1)[None].float()
    expected = F.interpolate(piece, (112, 112), mode="bilinear")[0].permute(1, 2, 0).numpy()
    assert np.abs(stored - expected).max() <= 0.5


def test_face_decode_agrees_with_full_decode_on_the_mini_base():
    """The window costs the decoder some context: embeddings must stay within a cosine of 0.98."""
    base, pack = PROJECT_ROOT / "mini/weights/base", PROJECT_ROOT / "mini/weights/pack"
    from diffusers import AutoencoderKL

    from arcface_files.faces import FaceAnalyser
    from arcface_files.recogniser import load_recogniser
    from mini.face_world import render, sample_identity, sample_view

    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).requires_grad_(False)
    recogniser = load_recogniser(FaceAnalyser(pack, device="cpu").models["recognition"])
    shots = [render(sample_identity(2_000_000 + i), sample_view(i, "lab")) for i in range(8)]
    pixels = torch.from_numpy(np.stack([shot.image for shot in shots])).permute(0, 3, 1, 2) / 127.5 - 1
    matrices = alignment_matrices(np.stack([shot.landmarks for shot in shots]).astype(float))
    windows = face_windows(matrices, 16, FACTOR, 2)
    embeddings = []
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        for decode in ("full", "face"):
            config = SimpleNamespace(identity_decode=decode, face_crop="aligned", saturated_pixels="clamp")
            one = IdentityBranch(config, vae, FACTOR, recogniser)
            embeddings.append(one.embeddings(latents, matrices, windows)[0])
    assert F.cosine_similarity(*embeddings).min() > 0.98
