"""The frozen base model as training sees it: one copy in memory for all identities and objectives."""

import contextlib
import gc

import torch

from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.denoising import compile_blocks, decoder_dtype
from id_booth.diffusion.families import TEXT_TARGETS
from id_booth.diffusion.stacked_lora import Adapters, add_stacked_lora, remove_stacked_lora
from id_booth.training.graphed_call import GraphedCall
from utils.devices import pick_dtype
from utils.errors import UserError


class FrozenModels:
    """UNet, VAE and text encoders with stacked adapters, the noise schedule, and cached conditioning.

    ``lora``: name of each network that is trained -> its adapter layers; ``slots``: likewise their Slots.

    Args:
        config: TrainConfig.
        device: torch.device.
        base: BaseModel on the device, in the precision of the config; None loads the one that config names.
    """

    def __init__(self, config, device, base=None):
        if config.cuda_graph and device.type != "cuda":
            raise UserError("cuda_graph: needs a GPU and none is in use; leave it off")
        self.config, self.device = config, device
        self.dtype = pick_dtype(config.mixed_precision, device, "mixed_precision")
        self.base = base or load_base_model(config.base_model, self.dtype, device, config.revision)
        self.unet, self.vae = self.base.unet, self.base.vae
        if config.lean_layers:
            from id_booth.diffusion.lean_layers import make_lean

            make_lean(self.unet)
            make_lean(self.vae)
        self.set_vae_precision()
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        self.recomputes = config.gradient_checkpointing
        if self.recomputes:
            self.unet.enable_gradient_checkpointing()
        if config.vae_gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        if config.compile_unet:
            compile_blocks(self.unet)
        self.graphed_unet = GraphedCall(self.call_unet)
        schedule = self.base.pipe.scheduler
        self.alphas_cumprod = schedule.alphas_cumprod.to(device)
        self.train_timesteps = schedule.config.num_train_timesteps
        self.prediction_type = schedule.config.prediction_type
        side = config.resolution // self.base.latent_factor
        self.latent_shape = (self.unet.config.in_channels, side, side)
        self.lora, self.slots, self.cohort_size = {}, {}, 0
        prompts = (config.instance_prompt, config.class_prompt)
        self.conditioning = self.base.encode(prompts, config.resolution)
        self.tokens = self.base.tokens(prompts)
        if config.validation_images:  # while the text encoders are still on the device
            self.base.encode([config.validation_prompt, ""])

    def set_vae_precision(self):
        """The encoder in float32, since its posteriors are kept; the decoder in one that cannot overflow.

        A prediction far from the data can exceed float16, but not bfloat16, where the GPU has it.
        """
        self.vae.float()
        half = self.dtype == torch.bfloat16
        if self.dtype == torch.float16:
            half = torch.cuda.is_bf16_supported(including_emulation=False)
        for part in (self.vae.decoder, self.vae.post_quant_conv):
            if part is not None and half:
                part.to(torch.bfloat16)

    # ------------------------------------------------------------------------------------------ adapters

    def set_cohort_size(self, size):
        """Give every target layer ``size`` stacked adapters."""
        if size == self.cohort_size:
            return
        for part, layers in self.lora.items():
            remove_stacked_lora(self.base.parts[part], layers)
        self.graphed_unet.forget()
        config, parts = self.config, self.base.parts
        shape = (size, config.lora_rank, config.lora_alpha, config.use_dora)
        targets = {"unet": config.lora_targets}
        if config.train_text_encoder:
            targets |= dict.fromkeys(self.base.text_encoders, TEXT_TARGETS)
        for part, names in targets.items():
            self.lora[part], self.slots[part] = add_stacked_lora(parts[part], names, *shape)
        self.adapters = Adapters([layer for layers in self.lora.values() for layer in layers.values()])
        self.cohort_size = size
        # Only a network in training mode recomputes activations; ours have no dropout to switch on.
        self.unet.train(self.recomputes)

    @contextlib.contextmanager
    def adapter(self, slot):
        """All items of the calls inside the block use the adapter of ``slot``; None gives the base model."""
        for slots in self.slots.values():
            slots.enabled, slots.index = slot is not None, slot
        if slot is not None:
            self.adapters.activate(self.adapters.weights.to(self.dtype))
        if self.config.train_text_encoder:
            self.base.forget_prompts()
        try:
            yield
        finally:
            for slots in self.slots.values():
                slots.enabled, slots.index = True, None
            if self.config.train_text_encoder:
                self.base.forget_prompts()

    # ------------------------------------------------------------------------------------------ calls

    def predict(self, noisy, timesteps, slots, instance_count, graphed=False):
        """The UNet's output for a batch, (B, C, h, w).

        Args:
            noisy: (B, C, h, w) float32. timesteps: (B,). slots: (B,) int64, whose adapter each item uses.
            instance_count: items with the instance prompt, which come first; the rest are class items.
            graphed: replay the call as a CUDA graph; the output must be used before the next one.
        """
        weights = self.adapters.weights.to(self.dtype)
        counts = (instance_count, len(noisy) - instance_count)
        if self.config.train_text_encoder:
            self.adapters.activate(weights)
            conditioning = self.encode_trained(slots, counts)
        else:
            conditioning = self.conditioning.repeat(counts)
        call = self.graphed_unet if graphed and not self.recomputes else self.call_unet
        return call(weights, noisy.to(self.dtype), timesteps, slots, conditioning.unet_arguments())

    def call_unet(self, weights, noisy, timesteps, slots, conditioning):
        """:meth:`predict` as a function of tensors alone: adapters, batch and what conditions it."""
        self.adapters.activate(weights)
        self.slots["unet"].index = slots
        return self.unet(noisy, timesteps, **conditioning).sample

    def encode_trained(self, slots, counts):
        """Conditioning with gradient to the text encoders' adapters; ``counts``: items of each prompt."""
        for part in self.base.text_encoders:
            self.slots[part].index = slots
        tokens = [self.tokens[i : i + 1].expand(count, -1, -1) for i, count in enumerate(counts)]
        return self.base.encode_tokens(torch.cat(tokens), self.config.resolution)

    def scale_latents(self, latents):
        """Latents of the VAE as the UNet sees them."""
        shift = self.vae.config.get("shift_factor") or 0
        return (latents - shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode(self, pixels):
        """Mean and standard deviation of the VAE posterior of images (N, 3, H, W) in [-1, 1], unscaled.

        Returns:
            (N, C, h, w) float32 each, on the device.
        """
        posterior = self.vae.encode(pixels.to(self.device, torch.float32)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    # ------------------------------------------------------------------------------------------ memory

    def offload_encoders(self):
        """Once everything is cached, the VAE encoder and the text encoders leave the device."""
        if not self.config.cache_latents:
            return
        networks = [self.vae.encoder, *filter(None, [self.vae.quant_conv])]
        kept = self.config.train_text_encoder
        self.base.offload(*networks, *([] if kept else self.base.text_encoders.values()))

    @contextlib.contextmanager
    def recomputing(self):
        """Gradient checkpointing in the UNet and the VAE meanwhile: slower, the same result, less memory."""
        self.graphed_unet.forget()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.recomputes = True
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()
        self.unet.train()
        try:
            yield
        finally:
            self.recomputes = self.config.gradient_checkpointing
            if not self.recomputes:
                self.unet.disable_gradient_checkpointing()
            if not self.config.vae_gradient_checkpointing:
                self.vae.disable_gradient_checkpointing()
            self.unet.train(self.recomputes)

    def decoder(self):
        """What decodes predictions for the identity branch: the VAE itself or TAESD, frozen."""
        if self.config.identity_decode != "taesd":
            return self.vae
        from diffusers import AutoencoderTiny

        taesd = AutoencoderTiny.from_pretrained(
            self.config.taesd_model, use_safetensors=True, dtype=decoder_dtype(self.vae)
        )
        return taesd.to(self.device).requires_grad_(False).eval()
