"""The frozen base model as training sees it: one copy in memory for all identities and objectives."""

import contextlib
import gc

import torch
from diffusers import AutoencoderTiny

from id_booth.diffusion.base_model import base_model_fingerprint, encode_prompts, load_base_model
from id_booth.diffusion.lean_layers import make_lean
from id_booth.diffusion.stacked_lora import add_stacked_lora, flatten_adapters, remove_stacked_lora

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class TrainingModels:
    """UNet, VAE and text encoder with stacked adapters, the noise schedule, and cached prompt embeddings.

    Args:
        config: TrainConfig.
        device: torch.device.
    """

    def __init__(self, config, device):
        self.config, self.device = config, device
        self.dtype = DTYPES[config.mixed_precision]
        self.pipe = load_base_model(config.base_model, self.dtype, device, revision=config.revision)
        self.fingerprint = base_model_fingerprint(config.base_model, revision=config.revision)
        self.unet, self.vae, self.text_encoder = self.pipe.unet, self.pipe.vae, self.pipe.text_encoder
        for network in (self.unet, self.vae, self.text_encoder):
            network.requires_grad_(False)
        if config.lean_layers:
            make_lean(self.unet)
            make_lean(self.vae)
        # Half precision can overflow when a prediction far from the data is decoded; bf16 has the range.
        if self.dtype == torch.float16:
            self.vae.float()
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
            self.unet.compile_repeated_blocks()
        schedule = self.pipe.scheduler
        self.alphas_cumprod = schedule.alphas_cumprod.to(device)
        self.train_timesteps = schedule.config.num_train_timesteps
        self.prediction_type = schedule.config.prediction_type
        self.latent_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = config.resolution // self.latent_factor
        self.latent_shape = (self.unet.config.in_channels, side, side)
        self.embedding_size = None
        self.unet_lora, self.text_lora, self.cohort_size = {}, {}, 0
        self.prompts = (config.instance_prompt, config.class_prompt)
        # A clone, since the encoder runs in inference mode, whose tensors autograd refuses.
        self.prompt_embeds = encode_prompts(self.pipe, list(self.prompts)).clone()

    # ------------------------------------------------------------------------------------------ adapters

    def set_cohort_size(self, size):
        """Give every target layer ``size`` stacked adapters."""
        if size == self.cohort_size:
            return
        remove_stacked_lora(self.unet, self.unet_lora)
        remove_stacked_lora(self.text_encoder, self.text_lora)
        shape = {
            "cohort_size": size,
            "rank": self.config.lora_rank,
            "alpha": self.config.lora_alpha,
            "dora": self.config.use_dora,
        }
        self.unet_lora, self.unet_slots = add_stacked_lora(self.unet, self.config.lora_targets, **shape)
        if self.config.train_text_encoder:
            self.text_lora, self.text_slots = add_stacked_lora(self.text_encoder, TEXT_TARGETS, **shape)
        self.flat_lora = flatten_adapters([*self.unet_lora.values(), *self.text_lora.values()])
        self.cohort_size = size
        # Only a network in training mode recomputes activations; ours have no dropout to switch on.
        self.unet.train(self.recomputes)

    def lora_groups(self):
        """dict of prefix in the file -> adapter layers."""
        groups = {"unet": self.unet_lora}
        return groups | ({"text_encoder": self.text_lora} if self.text_lora else {})

    def lora_parameters(self):
        """What the optimiser moves: all adapter weights in one (C, P) float32, C the cohort size."""
        return [self.flat_lora]

    @contextlib.contextmanager
    def adapter(self, slot):
        """All items of the calls inside the block use the adapter of ``slot``; None gives the base model."""
        groups = [self.unet_slots] + ([self.text_slots] if self.text_lora else []) if self.cohort_size else []
        for slots in groups:
            slots.enabled, slots.index = slot is not None, None if slot is None else torch.tensor([slot])
        try:
            yield
        finally:
            for slots in groups:
                slots.enabled, slots.index = True, None

    # ------------------------------------------------------------------------------------------ calls

    def predict(self, noisy, timesteps, slots, instance_count):
        """The UNet's output for a batch, (B, C, h, w).

        Args:
            noisy: (B, C, h, w) float32; timesteps: (B,); slots: (B,) int64, each item's adapter;
            instance_count: the first so many items have the instance prompt, the others the class prompt.
        """
        slots = slots.to(self.device)
        self.unet_slots.index = slots
        which = (torch.arange(len(noisy)) >= instance_count).long().to(self.device)
        context = self.trained_prompt_embeds(slots, which) if self.text_lora else self.prompt_embeds[which]
        with self.autocast():
            return self.unet(noisy.to(self.dtype), timesteps, context.to(self.dtype)).sample

    def trained_prompt_embeds(self, slots, which):
        """Prompt embeddings with gradient to the text encoder's adapters, (B, L, D)."""
        self.text_slots.index = slots
        tokens = self.pipe.tokenizer(
            list(self.prompts),
            padding="max_length",
            return_tensors="pt",
            max_length=self.pipe.tokenizer.model_max_length,
        )
        with self.autocast():
            return self.text_encoder(tokens.input_ids.to(self.device)[which])[0]

    def autocast(self):
        """Half precision products around float32 adapters; nothing in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def scale_latents(self, latents):
        """Latents of the VAE as the UNet sees them."""
        shift = self.vae.config.get("shift_factor") or 0
        return (latents - shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode(self, pixels):
        """Mean and standard deviation of the VAE posterior, float32 on the device (the uncached way)."""
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    # ------------------------------------------------------------------------------------------ memory

    def offload_encoders(self):
        """Once everything is cached, the VAE encoder and the text encoder leave the device."""
        if self.device.type == "cpu" or not self.config.cache_latents:
            return
        self.vae.encoder.to("cpu")
        self.vae.quant_conv.to("cpu")
        if not self.config.train_text_encoder:
            self.text_encoder.to("cpu")
        torch.cuda.empty_cache()

    def recall_encoders(self):
        """Bring them back to encode the next photos."""
        self.vae.to(self.device)
        self.text_encoder.to(self.device)

    @contextlib.contextmanager
    def recomputing(self):
        """Gradient checkpointing in the UNet and the VAE meanwhile: slower, the same result, less memory."""
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
        taesd = AutoencoderTiny.from_pretrained(
            self.config.taesd_model, use_safetensors=True, dtype=self.vae.dtype
        )
        return taesd.to(self.device).requires_grad_(False).eval()
