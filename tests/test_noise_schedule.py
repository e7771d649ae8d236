"""Closed forms of the forward process against hand-computed numbers and diffusers' own schedulers."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from id_booth.diffusion.noise_schedule import add_noise, min_snr_weight, predict_x0, training_target

ABAR = torch.tensor([0.64, 0.25, 0.04])


def item(value):
    return torch.full((1, 1, 1, 1), float(value))


def test_hand_computed():
    t = torch.tensor([0])
    noisy = add_noise(item(2), item(1), t, ABAR)
    assert noisy.item() == pytest.approx(0.8 * 2 + 0.6)
    assert predict_x0(noisy, item(1), t, ABAR).item() == pytest.approx(2)
    assert predict_x0(item(1), item(0.5), t, ABAR).item() == pytest.approx((1 - 0.3) / 0.8)
    velocity = training_target(item(2), item(1), t, ABAR, "v_prediction")
    assert velocity.item() == pytest.approx(0.8 * 1 - 0.6 * 2)
    assert predict_x0(noisy, velocity, t, ABAR, "v_prediction").item() == pytest.approx(2)
    assert training_target(item(2), item(1), t, ABAR, "sample").item() == 2
    assert predict_x0(noisy, item(0.5), t, ABAR, "sample").item() == 0.5
    assert min_snr_weight(torch.tensor([0, 1]), ABAR, 1.0).tolist() == pytest.approx([1 / (0.64 / 0.36), 1])
    of_samples = min_snr_weight(torch.tensor([0, 1]), ABAR, 1.0, "sample")
    assert of_samples.tolist() == pytest.approx([1, 0.25 / 0.75])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_batches_with_own_timesteps_agree_with_diffusers(prediction_type):
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type=prediction_type,
    )
    generator = torch.Generator().manual_seed(0)
    clean, noise, output = torch.randn(3, 4, 4, 8, 8, generator=generator)
    t = torch.tensor([0, 100, 500, 999])
    noisy = add_noise(clean, noise, t, scheduler.alphas_cumprod)
    assert torch.allclose(noisy, scheduler.add_noise(clean, noise, t), atol=1e-6)
    x0 = predict_x0(noisy, output, t, scheduler.alphas_cumprod, prediction_type)
    for i, step in enumerate(t):
        theirs = scheduler.step(output[i : i + 1], step, noisy[i : i + 1]).pred_original_sample
        assert torch.allclose(x0[i : i + 1], theirs, rtol=1e-4, atol=1e-4)
    target = training_target(clean, noise, t, scheduler.alphas_cumprod, prediction_type)
    theirs = {"epsilon": noise, "v_prediction": scheduler.get_velocity(clean, noise, t), "sample": clean}
    assert torch.allclose(target, theirs[prediction_type], atol=1e-6)


def test_min_snr_is_diffusers():
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(scheduler, t)
    capped = snr.clamp(max=5)
    assert torch.allclose(min_snr_weight(t, scheduler.alphas_cumprod, 5.0), capped / snr)
    velocity = min_snr_weight(t, scheduler.alphas_cumprod, 5.0, "v_prediction")
    assert torch.allclose(velocity, capped / (snr + 1))


def test_half_precision_input_gives_float32_x0_without_overflow():
    abar = torch.tensor([1e-6])
    x0 = predict_x0(item(3).half(), item(-60000).half(), torch.tensor([0]), abar)
    assert x0.dtype == torch.float32 and torch.isfinite(x0).all()


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="flow_prediction"):
        predict_x0(item(1), item(1), torch.tensor([0]), ABAR, "flow_prediction")
