"""The miniature autoencoder: 8x smaller, 4 channels, trained on crops; then its decoder alone.

The encoder is trained first and briefly, then frozen so that the latents stay what they are; the decoder can
go on learning beside the UNet. There is no attention in the middle block, so decoding a window of the latents
agrees with decoding all of them (up to the convolutions' reach).
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from mini.training_loop import Schedule, Training, run_training
from utils.progress import log
from utils.seeding import derive_seed, torch_generator

CROP = 64
LATENT_STD = 1 / 0.18215
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
FACE_WEIGHT = 3.0
LATENT_NOISE = 0.05


def new_vae(channels, seed):
    """An AutoencoderKL with seeded weights; ``channels`` of its four levels."""
    torch.manual_seed(derive_seed("vae weights", seed))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1 / LATENT_STD,
        mid_block_add_attention=False,
    )


def to_pixels(images):
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def sample_crops(rendered, batch, rng, step=8):
    """Random crops, half of them around the face, at multiples of ``step`` pixels.

    Returns:
        pixels (batch, 3, 64, 64) in [-1, 1], weight (batch, 1, 64, 64): 1, and FACE_WEIGHT in the face's box,
        and (picture index, row, column) of each crop.
    """
    size = rendered.images.shape[1]
    images, weights, places = [], np.ones((batch, 1, CROP, CROP), np.float32), []
    for item in range(batch):
        index = int(rng.integers(len(rendered)))
        corner = rng.integers(0, size - CROP + 1, 2)
        if item % 2 == 0:
            middle = rendered.landmarks[index].mean(0)[::-1] + rng.normal(0, 8, 2)
            corner = np.clip(middle - CROP / 2, 0, size - CROP)
        row, column = (int(v) // step * step for v in corner)
        images.append(rendered.images[index, row : row + CROP, column : column + CROP])
        x1, y1, x2, y2 = (int(v) for v in rendered.boxes[index] - np.float32([column, row, column, row]))
        weights[item, 0, max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = FACE_WEIGHT
        places.append((index, row, column))
    return to_pixels(np.stack(images)), torch.from_numpy(weights), places


def reconstruction_loss(output, target, weight):
    """Weighted L1 of pixels, of their horizontal and vertical differences, and of half-size pictures."""
    difference = output - target
    loss = (weight * difference.abs()).mean()
    for axis in (2, 3):
        inner = weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + EDGE_WEIGHT * (inner * difference.diff(dim=axis).abs()).mean()
    small = F.avg_pool2d(difference, 2)
    return loss + EDGE_WEIGHT * (F.avg_pool2d(weight, 2) * small.abs()).mean()


def psnr(output, target):
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], mean over pictures of (N, 3, H, W)."""
    error = (output.clamp(-1, 1) - target).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error)).mean()


def train_autoencoder(folder, rendered, config, deadline):
    """Train encoder and decoder together; the AutoencoderKL with averaged weights and normalised latents."""
    vae = new_vae(config.vae_channels, config.seed)
    schedule = Schedule(config.vae_steps, config.vae_lr, decay=0.25, ema=0.99, weight_decay=0.0)
    training = Training(folder, {"vae": vae}, schedule)

    def loss_of_step(step):
        rng = np.random.default_rng(derive_seed("vae", config.seed, step))
        pixels, weight, _ = sample_crops(rendered, config.vae_batch, rng, step=1)
        if rng.random() < 0.5:
            pixels, weight = pixels.flip(3), weight.flip(3)
        posterior = vae.encode(pixels).latent_dist
        noise = torch_generator("vae noise", config.seed, step)
        output = vae.decode(posterior.sample(noise)).sample
        loss = reconstruction_loss(output, pixels, weight) + KL_WEIGHT * posterior.kl().mean() / (4 * 64)
        return loss, {"psnr": psnr(output.detach(), pixels)}

    run_training(training, loss_of_step, deadline, "vae")
    training.use_average()
    normalise_latents(vae, rendered.images[:256])
    return vae.eval()


@torch.no_grad()
def normalise_latents(vae, images):
    """Give each latent channel mean 0 and standard deviation 1/scaling_factor; pictures stay the same.

    The change is folded into the 1x1 convolutions after the encoder and before the decoder.
    """
    channels = vae.config.latent_channels
    mean = torch.cat(
        [vae.encode(to_pixels(images[i : i + 32])).latent_dist.mean for i in range(0, len(images), 32)]
    )
    shift, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3)) / LATENT_STD
    last, first = vae.quant_conv, vae.post_quant_conv
    last.weight[:channels] /= spread[:, None, None, None]
    last.bias[:channels] = (last.bias[:channels] - shift) / spread
    last.bias[channels:] -= 2 * spread.log()
    first.bias += (first.weight[:, :, 0, 0] * shift).sum(1)
    first.weight *= spread[None, :, None, None]


def train_decoder(folder, vae, rendered, latents, config, deadline):
    """Train the decoder further on the frozen encoder's latents; puts averaged weights into ``vae``.

    Args:
        latents: mini.latents.Latents of the same pictures. The decoder also learns to bear small errors,
            since what the UNet hands it is never exact.
    """
    vae.requires_grad_(False)
    parts = {
        "decoder": vae.decoder.requires_grad_(True),
        "post_quant_conv": vae.post_quant_conv.requires_grad_(True),
    }
    schedule = Schedule(config.decoder_steps, config.decoder_lr, decay=0.5, ema=0.995, weight_decay=0.0)
    training = Training(folder, parts, schedule)

    def loss_of_step(step):
        rng = np.random.default_rng(derive_seed("decoder", config.seed, step))
        pixels, weight, places = sample_crops(rendered, config.vae_batch, rng)
        inputs = latents.windows(places, CROP)
        inputs = inputs + torch.from_numpy(
            rng.normal(0, LATENT_NOISE * LATENT_STD, inputs.shape).astype(np.float32)
        )
        output = vae.decode(inputs).sample
        return reconstruction_loss(output, pixels, weight), {"psnr": psnr(output.detach(), pixels)}

    run_training(training, loss_of_step, deadline, "decoder")
    training.use_average()
    return vae.eval()


@torch.no_grad()
def report_quality(vae, images):
    """Mean PSNR in dB of whole pictures, uint8 (N, H, W, 3), coded and decoded; printed and returned."""
    pixels = to_pixels(images)
    pairs = [(vae.decode(vae.encode(part).latent_dist.mean).sample, part) for part in pixels.split(32)]
    value = float(torch.stack([psnr(output, part) for output, part in pairs]).mean())
    log(f"vae: {value:.2f} dB on {len(images)} whole pictures")
    return value
