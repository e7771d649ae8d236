"""The miniature autoencoder: 8 x 8 pixels to a latent of 4 channels, trained on crops.

A pixel loss alone gives blurred, greyish reconstructions; a perceptual and an adversarial loss join in later,
as in Stable Diffusion's own autoencoder (Rombach et al., CVPR 2022). There is no attention in the middle
block, so decoding a window of the latents equals decoding all of them, but for a border as wide as the
receptive field.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from torch.func import functional_call

from mini.build.training_loop import Schedule, Training, run_training
from utils.progress import log
from utils.seeding import derive_seed, torch_generator

CROP = 64
LATENT_STD = 1 / 0.18215
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
FACE_WEIGHT = 3.0
LATENT_NOISE = 0.05
AREA_WEIGHT = 1.0
PERCEPTUAL_WEIGHT = 1.0
ADVERSARIAL_WEIGHT = 0.1
ADVERSARIAL_RISE = 100


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


def to_pixels(images, device="cpu"):
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1], channels last in memory, on the device."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def sample_crops(rendered, batch, rng):
    """Random crops, half of them around the face.

    Returns:
        pixels (batch, 3, 64, 64) in [-1, 1], weight (batch, 1, 64, 64): 1, and FACE_WEIGHT in the face's box.
    """
    size = rendered.images.shape[1]
    images, weights = [], np.ones((batch, 1, CROP, CROP), np.float32)
    for item in range(batch):
        index = int(rng.integers(len(rendered)))
        corner = rng.integers(0, size - CROP + 1, 2)
        if item % 2 == 0:
            middle = rendered.landmarks[index].mean(0)[::-1] + rng.normal(0, 8, 2)
            corner = np.clip(middle - CROP / 2, 0, size - CROP)
        row, column = (int(v) for v in corner)
        images.append(rendered.images[index, row : row + CROP, column : column + CROP])
        x1, y1, x2, y2 = (int(v) for v in rendered.boxes[index] - np.float32([column, row, column, row]))
        weights[item, 0, max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = FACE_WEIGHT
    return to_pixels(np.stack(images)), torch.from_numpy(weights)


def reconstruction_loss(output, target, weight):
    """Weighted L1 of pixels, horizontal and vertical differences, and means over 2 x 2 and 8 x 8 pixels.

    Without the last term the four latent channels encode edges at the expense of hue.
    """
    difference = output - target
    loss = (weight * difference.abs()).mean()
    for axis in (2, 3):
        inner = weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + EDGE_WEIGHT * (inner * difference.diff(dim=axis).abs()).mean()
    for size, share in ((2, EDGE_WEIGHT), (8, AREA_WEIGHT)):
        loss = loss + share * (F.avg_pool2d(weight, size) * F.avg_pool2d(difference, size).abs()).mean()
    return loss


def perceptual_loss(network, output, target, weight):
    """Squared distance of a recogniser's unit-length features, mean over its stem and three stages.

    LPIPS (Zhang et al., CVPR 2018) with equal weights, with the miniature recogniser as network.

    Args:
        network: arcface_files.iresnet.IResNet, frozen, in eval mode.
        output, target: (N, 3, H, W) in [-1, 1].  weight: (N, 1, H, W), resized to each stage.
    """
    loss = 0.0
    with torch.no_grad():
        wanted = stage_features(network, target)
    for found, aim in zip(stage_features(network, output), wanted, strict=True):
        distance = (F.normalize(found, dim=1) - F.normalize(aim, dim=1)).square().sum(1, keepdim=True)
        loss = loss + (F.adaptive_avg_pool2d(weight, distance.shape[2:]) * distance).mean() / len(wanted)
    return loss


def stage_features(network, x):
    """Feature maps after the stem and the first three stages of an IResNet, for pictures of any size."""
    maps = [network.prelu(network.bn1(network.conv1(x)))]
    for stage in (network.layer1, network.layer2, network.layer3):
        maps.append(stage(maps[-1]))
    return maps


def new_critic(seed):
    """Patch discriminator (Isola et al., CVPR 2017): (N, 3, H, W) -> (N, 1, H/4, W/4), higher for renders."""
    torch.manual_seed(derive_seed("vae critic", seed))
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(24, 48, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(48, 96, 3, 1, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(96, 1, 3, 1, 1),
    )


def adversarial_losses(critic, output, target):
    """Hinge losses of generator (the decoder) and discriminator, two scalars.

    Each has a gradient with respect to its own network only, so their sum trains both in one backward pass.
    """
    frozen = {name: weight.detach() for name, weight in critic.named_parameters()}
    generator = -functional_call(critic, frozen, output).mean()
    discriminator = F.relu(1 - critic(target)).mean() + F.relu(1 + critic(output.detach())).mean()
    return generator, discriminator


def psnr(output, target):
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], mean over pictures of (N, 3, H, W)."""
    error = (output.clamp(-1, 1) - target).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error)).mean()


def train_autoencoder(folder, rendered, recogniser, config, deadline, earlier=None):
    """Train encoder and decoder together; the AutoencoderKL with averaged weights and normalised latents.

    Args:
        rendered: mini.build.render_sets.RenderedSet of the training pictures.
        recogniser: IResNet whose features the perceptual loss compares.
        config: BuildConfig; perceptual and adversarial loss begin at its step vae_detail_from.
        earlier: an AutoencoderKL whose decoder is trained on for config.vae_decoder_steps, with all losses
            from the first. Its latents stay as they are, so UNets and LoRAs trained on them remain valid.
    """
    vae, steps, detail_from = earlier, config.vae_decoder_steps, 0
    if earlier is None:
        vae = new_vae(config.vae_channels, config.seed)
        steps, detail_from = config.vae_steps, config.vae_detail_from
    else:
        vae.train()
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
    critic = new_critic(config.seed)
    schedule = Schedule(steps, config.vae_lr, decay=0.25, ema=0.99, weight_decay=0.0)
    training = Training(folder, {"vae": vae, "critic": critic}, schedule)

    def loss_of_step(step):
        rng = np.random.default_rng(derive_seed("vae", config.seed, step))
        pixels, weight = sample_crops(rendered, config.vae_batch, rng)
        if rng.random() < 0.5:
            pixels, weight = pixels.flip(3), weight.flip(3)
        posterior = vae.encode(pixels).latent_dist
        noise = torch_generator("vae noise", config.seed, step)
        latents = posterior.sample(noise)
        # Noise, since the latents that the UNet samples are never exact.
        latents = latents + LATENT_NOISE * LATENT_STD * torch.randn(latents.shape, generator=noise)
        output = vae.decode(latents).sample
        loss = reconstruction_loss(output, pixels, weight) + KL_WEIGHT * posterior.kl().mean() / (4 * 64)
        figures = {"psnr": psnr(output.detach(), pixels)}
        if step >= detail_from:
            perceptual = perceptual_loss(recogniser, output, pixels, weight)
            generator, discriminator = adversarial_losses(critic, output, pixels)
            share = min(1.0, (step - detail_from) / ADVERSARIAL_RISE)
            adversarial = share * generator + discriminator
            loss = loss + PERCEPTUAL_WEIGHT * perceptual + ADVERSARIAL_WEIGHT * adversarial
            figures |= {"perceptual": perceptual.detach(), "critic": discriminator.detach()}
        return loss, figures

    run_training(training, loss_of_step, deadline, "vae")
    training.use_average()
    if earlier is None:
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


@torch.no_grad()
def report_quality(vae, images):
    """Mean PSNR in dB of whole pictures, uint8 (N, H, W, 3), coded and decoded; printed and returned."""
    pixels = to_pixels(images)
    pairs = [(vae.decode(vae.encode(part).latent_dist.mean).sample, part) for part in pixels.split(32)]
    value = float(torch.stack([psnr(output, part) for output, part in pairs]).mean())
    log(f"vae: {value:.2f} dB on {len(images)} whole pictures")
    return value
