"""What a unit of work takes: measured where it was, computed from the arithmetic where it was not.

A step or an image has a known number of floating point operations; a device reaches some share of what it
does on a large matrix product. So one short product on the device at hand tells the time within a factor of
about two, without loading a model. A run that has begun tells it better (--status).
"""

import time

import torch

# Billions of multiply-adds of one forward pass, as torch.utils.flop_counter counts them on the networks
# themselves: Stable Diffusion 2.1 at 512 pixels with iresnet100, the miniature at 128.
GIGA_MACS = {
    "sd21": {"unet": 402.1, "encode": 558.3, "decode": 1257.3, "recogniser": 12.1},
    "mini": {"unet": 0.338, "encode": 0.286, "decode": 0.968, "recogniser": 0.040},
}
# Share of the product's speed that is reached. CPU: one ID-Booth step of SD 2.1 took 78 s on two cores of an
# AMD EPYC (Zen 3). CUDA: published for an A100, 12 % of its peak at batch 1 and 39 % at batch 16.
UTILISATION = {"cpu": {"step": 0.5, "image": 0.5}, "cuda": {"step": 0.15, "image": 0.45}}
# Seconds a step takes however small the networks are; measured on the miniature, one core of the same CPU.
OVERHEAD = {"cpu": {"step": 0.09, "image": 0.02}, "cuda": {"step": 0.05, "image": 0.02}}
DTYPES = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def scale_of(resolution):
    """The cost class of a run and the factor of its area to the measured one."""
    name, side = ("mini", 128) if resolution <= 192 else ("sd21", 512)
    return name, (resolution / side) ** 2


def training_macs(config, objective):
    """Multiply-adds of one training step of one identity.

    A backward pass through frozen layers costs one more forward pass: gradients of activations only.
    """
    name, area = scale_of(config.resolution)
    macs = GIGA_MACS[name]
    items = config.train_batch_size * (2 if config.with_prior_preservation else 1)
    unet = 2 * items * macs["unet"] * (1.5 if config.gradient_checkpointing else 1)
    if objective == "DreamBooth":
        return 1e9 * unet * area * config.gradient_accumulation_steps
    share = {"full": 1.0, "face": 0.35, "taesd": 0.05}[config.identity_decode]
    drawn = min(1.0, config.identity_max_timestep / 1000)
    identity = 2 * config.train_batch_size * drawn * (macs["decode"] * share * area + macs["recogniser"])
    return 1e9 * (unet * area + identity) * config.gradient_accumulation_steps


def sampling_macs(config):
    """Multiply-adds of one sampled image."""
    name, area = scale_of(config.resolution)
    passes = config.steps * (2 if config.guidance > 1 else 1)
    return 1e9 * area * (passes * GIGA_MACS[name]["unet"] + GIGA_MACS[name]["decode"])


def device_speed(device, dtype, seconds=0.3):
    """Multiply-adds a second of a large matrix product, measured for about ``seconds``."""
    side = 4096 if device.type == "cuda" else 768
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def timed(count):
        started = time.perf_counter()
        for _ in range(count):
            first @ second
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    timed(1)
    count = max(1, min(1000, int(seconds / max(timed(1), 1e-6))))
    return count * side**3 / timed(count)


def seconds_each(macs, kind, device, dtype):
    """Estimated seconds of a unit (``kind``: "step" or "image") of so many multiply-adds on a device."""
    speed = device_speed(device, dtype)
    return macs / (speed * UTILISATION[device.type][kind]) + OVERHEAD[device.type][kind]


def duration(seconds):
    """A length of time in words a person reads at once."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
