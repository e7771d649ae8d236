"""Identity losses and weights against numbers computed by hand."""

import math

import pytest
import torch

from id_booth.objectives import denoising_loss, identity_loss, timestep_weight, triplet_identity_loss

# Unit vectors at 0, 60, 90 and 180 degrees, with lengths that must not matter.
AT = {
    angle: torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]]) * (1 + angle)
    for angle in (0, 60, 90, 180)
}


def test_identity_loss_is_one_minus_cosine():
    loss = [identity_loss(AT[0], AT[angle]).item() for angle in (0, 60, 90, 180)]
    assert loss == pytest.approx([0, 0.5, 1, 2], abs=1e-6)


@pytest.mark.parametrize(
    "positive, negative, margin, expected",
    [
        (60, 90, 1.0, 0.5),
        (90, 60, 1.0, 1.5),
        (0, 90, 1.0, 0.0),
        (0, 180, 1.0, 0.0),
        (60, 90, 0.2, 0.0),
        (90, 60, 0.2, 0.7),
    ],
)
def test_triplet_identity_loss(positive, negative, margin, expected):
    loss = triplet_identity_loss(AT[0], AT[positive], AT[negative], margin)
    assert loss.shape == (1,) and loss.item() == pytest.approx(expected, abs=1e-6)


def test_triplet_with_margin_one_is_identity_loss_plus_repulsion():
    generator = torch.Generator().manual_seed(0)
    a, p, n = torch.randn(3, 50, 512, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(a, n)
    expected = (identity_loss(a, p) + cosine).clamp(min=0)
    assert torch.allclose(triplet_identity_loss(a, p, n), expected, atol=1e-6)


def test_only_the_anchor_side_is_pulled():
    a = torch.tensor([[1.0, 0.2]], requires_grad=True)
    triplet_identity_loss(a, AT[90], AT[0]).sum().backward()
    # Down the gradient the anchor turns away from the negative (x axis) towards the positive (y axis).
    assert -a.grad[0, 0] < 0 < -a.grad[0, 1]


def test_timestep_weight():
    t = torch.tensor([0, 250, 500, 999])
    assert timestep_weight(t, 1000).tolist() == pytest.approx([1, 0.5625, 0.25, 1e-6], rel=1e-4)
    assert timestep_weight(t, 1000, "linear").tolist() == pytest.approx([1, 0.75, 0.5, 1e-3], rel=1e-4)
    assert timestep_weight(t, 1000, "none").tolist() == [1, 1, 1, 1]


def test_denoising_loss_is_per_item():
    output = torch.zeros(2, 1, 2, 2)
    target = torch.stack([torch.full((1, 2, 2), 2.0), torch.tensor([[[1.0, 0], [0, 1]]])])
    assert denoising_loss(output, target).tolist() == [4.0, 0.5]
    assert denoising_loss(output, target, torch.tensor([0.5, 2.0])).tolist() == [2.0, 1.0]
