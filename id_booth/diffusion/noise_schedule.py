"""The forward process and what follows from it in closed form, batched, without any random draw."""

import torch


def _coefficients(timesteps, alphas_cumprod, ndim):
    """sqrt(abar) and sqrt(1 - abar) of each item, float32, shaped to broadcast over ``ndim`` dimensions."""
    abar = alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    shape = (-1,) + (1,) * (ndim - 1)
    return abar.sqrt().view(shape), (1 - abar).sqrt().view(shape)


def add_noise(clean, noise, timesteps, alphas_cumprod):
    """z_t = sqrt(abar) z_0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4), each item at its own timestep.

    Args:
        clean, noise: (N, C, H, W); timesteps: (N,) int64; alphas_cumprod: (T,).
    """
    signal, sigma = _coefficients(timesteps, alphas_cumprod, clean.ndim)
    return (signal * clean.float() + sigma * noise.float()).to(clean.dtype)


def training_target(clean, noise, timesteps, alphas_cumprod, prediction_type="epsilon"):
    """What the network is asked for: the noise, z_0 ("sample"), or sqrt(abar) eps - sqrt(1 - abar) z_0.

    The last is the velocity, "v_prediction" (Salimans and Ho 2022, appendix D).
    """
    if prediction_type in ("epsilon", "sample"):
        return noise if prediction_type == "epsilon" else clean
    signal, sigma = _coefficients(timesteps, alphas_cumprod, clean.ndim)
    return (signal * noise.float() - sigma * clean.float()).to(clean.dtype)


def predict_x0(noisy, model_output, timesteps, alphas_cumprod, prediction_type="epsilon"):
    """The clean latents a prediction implies, in float32.

    Args:
        noisy: (N, C, H, W) z_t; model_output: (N, C, H, W); timesteps: (N,) int64;
        alphas_cumprod: (T,) of the scheduler; prediction_type: "epsilon", "v_prediction" or "sample".

    Returns:
        (N, C, H, W) float32: (z_t - sqrt(1 - abar) eps) / sqrt(abar), or sqrt(abar) z_t - sqrt(1 - abar) v,
        or the prediction itself.

    Raises:
        ValueError: for another prediction type.
    """
    signal, sigma = _coefficients(timesteps, alphas_cumprod, noisy.ndim)
    noisy, model_output = noisy.float(), model_output.float()
    if prediction_type == "epsilon":
        return (noisy - sigma * model_output) / signal
    if prediction_type == "v_prediction":
        return signal * noisy - sigma * model_output
    if prediction_type == "sample":
        return model_output
    raise ValueError(f"prediction_type {prediction_type!r} is not 'epsilon', 'v_prediction' or 'sample'")


def min_snr_weight(timesteps, alphas_cumprod, gamma, prediction_type="epsilon"):
    """Min-SNR-gamma loss weights (Hang et al. 2023): min(SNR, gamma)/SNR for noise, /(SNR + 1) for velocity.

    For z_0 itself min(SNR, gamma).

    Returns:
        (N,) float32.
    """
    abar = alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    snr = abar / (1 - abar)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    return snr.clamp(max=gamma) / divisor
