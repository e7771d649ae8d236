"""Margin heads against logits computed by hand, in plain Python numbers."""

import math

import pytest
import torch

from fr_training.heads import AdaFace, ArcFace, CosFace

ANGLES = (0.3, 1.2, 2.9)  # of three embeddings to the first of two orthogonal class centres


def embeddings(norms=(1.0, 1.0, 1.0)):
    return torch.tensor([[n * math.cos(a), n * math.sin(a)] for n, a in zip(norms, ANGLES, strict=True)])


def on_axes(head):
    """Class centres (1, 0) and (0, 1), of other lengths: directions alone count."""
    with torch.no_grad():
        head.kernel.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    return head


@pytest.fixture
def labels():
    return torch.zeros(3, dtype=torch.long)


def check(logits, targets, s):
    for row, (angle, target) in enumerate(zip(ANGLES, targets, strict=True)):
        assert logits[row, 0].item() == pytest.approx(s * target, abs=2e-3)
        assert logits[row, 1].item() == pytest.approx(s * math.sin(angle), abs=2e-3)


def test_cosface(labels):
    logits = on_axes(CosFace(2, 2, s=30.0, m=0.35))(embeddings((2.0, 9.0, 0.1)), labels)
    check(logits, [math.cos(a) - 0.35 for a in ANGLES], 30.0)


def test_arcface(labels):
    logits = on_axes(ArcFace(2, 2, s=30.0, m=0.5))(embeddings((2.0, 9.0, 0.1)), labels)
    # 2.9 + 0.5 is more than pi: there the target falls on linearly.
    targets = [math.cos(0.8), math.cos(1.7), math.cos(2.9) - 0.5 * math.sin(0.5)]
    check(logits, targets, 30.0)


def test_arcface_has_a_gradient_on_a_class_centre():
    head = on_axes(ArcFace(2, 2))
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    head(x, torch.tensor([0])).sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(head.kernel.grad).all()


def test_adaface_by_hand(labels):
    norms, m, h, s, t = (4.0, 6.0, 11.0), 0.4, 0.333, 64.0, 0.25
    head = on_axes(AdaFace(2, 2, m=m, h=h, s=s, t_alpha=t))
    logits = head(embeddings(norms), labels)
    # Running values start at 20 and 100; the batch has mean 7 and variance (9 + 1 + 16) / 2 = 13.
    mean, std = 0.75 * 20 + 0.25 * 7, 0.75 * 100 + 0.25 * math.sqrt(13)
    assert head.batch_mean.item() == pytest.approx(mean, rel=1e-6)
    assert head.batch_std.item() == pytest.approx(std, rel=1e-6)
    z = [max(-1.0, min(1.0, (norm - mean) / (std + 1e-3) * h)) for norm in norms]
    targets = [math.cos(a - m * zi) - (m + m * zi) for a, zi in zip(ANGLES, z, strict=True)]
    check(logits, targets, s)


def test_adaface_takes_a_second_batch_into_account(labels):
    head = on_axes(AdaFace(2, 2, t_alpha=1.0))
    head(embeddings((4.0, 6.0, 11.0)), labels)
    head(embeddings((1.0, 2.0, 3.0)), labels)
    assert head.batch_mean.item() == pytest.approx(2.0)
    assert head.batch_std.item() == pytest.approx(1.0)


def test_adaface_keeps_its_running_values_in_evaluation(labels):
    head = on_axes(AdaFace(2, 2)).eval()
    head(embeddings((4.0, 6.0, 11.0)), labels)
    assert head.batch_mean.item() == 20.0 and head.batch_std.item() == 100.0


def test_adaface_on_unit_embeddings_is_cosface(labels):
    """The published code normalises first: every norm is 1, the margin no longer adapts."""
    ada, cos = on_axes(AdaFace(2, 2, m=0.4, s=64.0, t_alpha=1.0)), on_axes(CosFace(2, 2, s=64.0, m=0.4))
    x = embeddings()
    assert torch.allclose(ada(x, labels), cos(x, labels), atol=0.02)
    assert not torch.allclose(ada(x * torch.tensor([[1.0], [9.0], [2.0]]), labels), cos(x, labels), atol=0.5)


def test_adaface_survives_a_batch_of_one():
    head = on_axes(AdaFace(2, 2, t_alpha=1.0))
    assert torch.isfinite(head(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))).all()
    assert head.batch_std.item() == 100.0


def test_class_centres_start_as_published():
    torch.manual_seed(0)
    for head in (ArcFace, CosFace):  # insightface's arcface_torch
        kernel = head(400, 50).kernel
        assert kernel.std().item() == pytest.approx(0.01, rel=0.02) and abs(kernel.mean().item()) < 1e-3
    kernel = AdaFace(400, 50).kernel  # AdaFace's own: uniform in (-1, 1), then columns of length one
    torch.testing.assert_close(kernel.norm(dim=0), torch.ones(50))
    assert kernel.std().item() == pytest.approx(0.05, rel=0.02)  # 1 / sqrt(400)
    limit = kernel.abs().max().item()
    assert limit == pytest.approx(0.05 * 3**0.5, rel=0.08)  # of a uniform distribution, not of a normal one


@pytest.mark.parametrize("head", [ArcFace, CosFace, AdaFace])
def test_kernel_has_a_column_per_class_and_learns(head):
    module = head(16, 5)
    assert module.kernel.shape == (16, 5)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(
        module(x, torch.tensor([0, 1, 2, 3])), torch.tensor([0, 1, 2, 3])
    ).backward()
    assert torch.isfinite(module.kernel.grad).all() and module.kernel.grad.abs().sum() > 0


def test_logits_are_float32_under_autocast(labels):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = on_axes(CosFace(2, 2, s=30.0, m=0.35))(embeddings(), labels)
    assert logits.dtype == torch.float32
    check(logits, [math.cos(a) - 0.35 for a in ANGLES], 30.0)
