"""Batched denoising whose every image depends on its own seed alone.

The arithmetic is that of diffusers' StableDiffusionPipeline, call for call, so that a plain diffusers script
with ``generator=torch.Generator().manual_seed(seed)`` makes the same image; each item of a batch draws its
start and its step noise from its own CPU generator, so neither batch size nor company changes it.
"""

import inspect

import torch

from id_booth.diffusion.conditioning import concatenated
from utils.errors import UserError
from utils.progress import progress

MOST_COMPILATIONS = 128
BAR_AFTER = 3  # seconds
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def check_scheduler_name(name):
    """Refuse a scheduler this project does not know, naming those it does."""
    if name not in SCHEDULERS:
        raise UserError(f"scheduler: no {name!r}; choose from {', '.join(SCHEDULERS)}")


def make_scheduler(name, config):
    """A sampler called ``name`` for the noise schedule in ``config`` (``pipe.scheduler.config``).

    "ddpm" is the paper's (ancestral, 30 steps); the others are diffusers' schedulers of that name. Latents
    are not confined to [-1, 1]: a config that is silent on clipping (as PNDM's own is) means none here,
    whereas diffusers' DDPM and DDIM would clip.
    """
    check_scheduler_name(name)
    import diffusers  # here and elsewhere not before it is used: plans and refusals need not wait for it

    class_name, options = SCHEDULERS[name]
    if name in ("ddpm", "ddim"):
        options = {**options, "clip_sample": config.get("clip_sample", False)}
    return getattr(diffusers, class_name).from_config(config, **options)


@torch.inference_mode()
def sample_latents(unet, scheduler, conditioning, negative, seeds, steps, guidance, size=None, label=None):
    """Denoise a batch from noise to latents.

    Args:
        unet: UNet2DConditionModel (LoRA fused or attached).
        scheduler: from :func:`make_scheduler`; reset here, so one object serves all batches.
        conditioning: Conditioning of the N prompts; negative: of the N negative prompts, unused when
            ``guidance`` <= 1.
        seeds: N integers; image i is a function of ``seeds[i]`` and its prompts.
        steps: denoising steps.
        guidance: classifier-free guidance scale (Ho and Salimans 2022); no guidance at 1 or below.
        size: (height, width) of the latents; the UNet's own sample size when None.
        label: of a bar over the steps, shown where they take seconds; None for no bar.

    Returns:
        (N, C, h, w) latents in the dtype of the conditioning, still multiplied by the VAE's scaling factor.
    """
    from diffusers.utils.torch_utils import randn_tensor

    device, dtype = conditioning.text.device, conditioning.text.dtype
    height, width = size or (unet.config.sample_size, unet.config.sample_size)
    shape = (len(seeds), unet.config.in_channels, height, width)
    # CPU generators, so that the same seed gives the same noise on every device.
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    guided = guidance > 1.0
    context = (concatenated([negative, conditioning]) if guided else conditioning).unet_arguments()

    scheduler.set_timesteps(steps, device=device)
    latents = randn_tensor(shape, generator=generators, device=device, dtype=dtype)
    latents = latents * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    noise_source = {"generator": generators} if takes_generator else {}
    options = {"unit": "step", "delay": BAR_AFTER, "leave": False, "disable": label is None}
    for t in progress(scheduler.timesteps, label, **options):
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        prediction = unet(model_input, t, **context, return_dict=False)[0]
        if guided:
            without, with_prompt = prediction.chunk(2)
            prediction = without + guidance * (with_prompt - without)
        latents = scheduler.step(prediction, t, latents, **noise_source, return_dict=False)[0]
    return latents


def decoder_dtype(vae):
    """The precision in which an autoencoder decodes; its encoder may have another."""
    return next(vae.decoder.parameters()).dtype


@torch.inference_mode()
def decode_latents(vae, latents, slice_size=4):
    """Pixels of a batch of latents, ``slice_size`` images at a time to bound the memory.

    Args:
        vae: AutoencoderKL.
        latents: (N, C, h, w), multiplied by the VAE's scaling factor as the UNet sees them.

    Returns:
        uint8 numpy array (N, H, W, 3), RGB, rounded as diffusers' image processor rounds.
    """
    pieces = []
    for piece in latents.split(slice_size):
        pixels = vae.decode(piece.to(decoder_dtype(vae)) / vae.config.scaling_factor, return_dict=False)[0]
        pixels = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
        pieces.append((pixels * 255).round().to(torch.uint8).cpu())
    return torch.cat(pieces).numpy()


def compile_blocks(unet):
    """Compile a UNet's repeated blocks, each shape of a run apart.

    torch goes on without compiling, and without a word, once it has done so eight times; a run has more:
    widths, batch sizes, with and without gradient. Here many more are allowed, and beyond them is an error.
    """
    torch._dynamo.config.recompile_limit = MOST_COMPILATIONS
    torch._dynamo.config.accumulated_recompile_limit = 8 * MOST_COMPILATIONS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    unet.compile_repeated_blocks()
