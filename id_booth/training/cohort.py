"""The training loop of a cohort: C identities in one batch, each with its own adapter (C = 1 ordinarily).

Every random draw of a step is a function of (seed, identity, step), so nothing depends on the objective, on
the other identities or on how often the run was interrupted.
"""

import importlib

import torch
from diffusers.optimization import get_scheduler

from configs.train_config import OPTIONAL_OPTIMIZERS
from id_booth.diffusion.noise_schedule import add_noise, min_snr_weight, predict_x0, training_target
from id_booth.diffusion.stacked_lora import clip_per_slot, reset_slot
from id_booth.objectives import denoising_loss, identity_loss, timestep_weight, triplet_identity_loss
from id_booth.training.photos import epoch_order
from utils.seeding import torch_generator

TERMS = ("Reconstruction", "Prior", "ID", "Combined")
BANDS = 10


class Cohort:
    """Identities that train together for one objective.

    Args:
        models: BaseModels (unet, lora groups, vae, prompt embeddings).
        branch: IdentityBranch, or None for DreamBooth.
        photos: list of C Photos; class_photos: Photos or None; negatives: (M, D) float32 or None.
    """

    def __init__(self, config, objective, models, branch, photos, class_photos, negatives):
        self.config, self.objective, self.models, self.branch = config, objective, models, branch
        self.photos, self.class_photos, self.negatives = photos, class_photos, negatives
        self.names = [photo.name for photo in photos]
        self.active = [True] * len(photos)
        self.parameters = models.lora_parameters()
        self.clear_gradients()
        self.optimizer = make_optimizer(config, self.parameters)
        self.scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=self.total_steps,
        )
        self.scaler = torch.amp.GradScaler(
            models.device.type, enabled=config.mixed_precision == "fp16" and models.device.type == "cuda"
        )
        for slot, name in enumerate(self.names):
            generator = torch_generator(config.seed, name, "lora")
            for layers in models.lora_groups().values():
                reset_slot(layers, slot, generator)

    # ------------------------------------------------------------------------------------------ schedule

    def epoch_items(self, photos):
        """Items an epoch goes over: the longer of the photos and the class images."""
        return max(len(photos), len(self.class_photos) if self.class_photos else 0)

    @property
    def steps_per_epoch(self):
        """Optimiser steps per epoch; the cohort's identities share it (see :func:`epoch_steps`)."""
        return epoch_steps(self.config, max(self.epoch_items(photos) for photos in self.photos))

    @property
    def total_steps(self):
        """Optimiser steps of the whole training."""
        return self.config.max_train_steps or self.config.num_train_epochs * self.steps_per_epoch

    # ------------------------------------------------------------------------------------------ one step

    def step(self, step):
        """One optimiser step (numbered from 0) for all identities.

        Returns:
            (terms, bands): (C, 4) float32 losses in the order of TERMS (NaN where a term does not exist), and
            (C, BANDS, 2) item counts by timestep band: all, and those with an identity term. On the device.
        """
        terms = bands = 0
        for micro in range(self.config.gradient_accumulation_steps):
            batch = self.draw(step * self.config.gradient_accumulation_steps + micro)
            losses, micro_bands = self.losses(batch)
            total = losses[:, -1].sum() / self.config.gradient_accumulation_steps
            self.scaler.scale(total).backward()
            terms = terms + losses.detach() / self.config.gradient_accumulation_steps
            bands = bands + micro_bands
        self.update()
        return terms, bands

    def update(self):
        """Clip each identity on its own and let the optimiser move all of them."""
        self.scaler.unscale_(self.optimizer)
        clip_per_slot(self.parameters, len(self.photos), self.config.max_grad_norm)
        for slot, active in enumerate(self.active):
            if not active:
                for parameter in self.parameters:
                    parameter.grad[slot] = 0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.clear_gradients()

    def clear_gradients(self):
        """Zero the gradients in place: the layers' own are views of them (``flatten_adapters``)."""
        for parameter in self.parameters:
            parameter.grad.zero_()

    def retire(self, slot):
        """Stop training one identity; zero weights keep its items harmless while the others go on."""
        self.active[slot] = False
        with torch.no_grad():
            for parameter in self.parameters:
                parameter[slot] = 0

    def draw(self, micro_step):
        """All random choices of a micro-step, identity by identity, gathered into one batch."""
        per_identity = [self.draw_identity(photos, micro_step) for photos in self.photos]
        parts = ["instance"] + (["class"] if self.class_photos else [])
        gather = {}
        for key in ("index", "noise", "posterior_noise", "timesteps", "slots"):
            gather[key] = torch.cat(
                [
                    torch.full((self.config.train_batch_size,), slot) if key == "slots" else draws[part][key]
                    for part in parts
                    for slot, draws in enumerate(per_identity)
                ]
            )
        gather["negatives"] = torch.stack([draws["negative"] for draws in per_identity])
        return gather

    def draw_identity(self, photos, micro_step):
        """One identity's draws: its stream depends on (seed, identity, micro-step) alone."""
        size, seed = self.config.train_batch_size, self.config.seed
        items = self.epoch_items(photos)
        first = micro_step * size
        positions = range(first, first + size)
        generator = torch_generator(seed, photos.name, "step", micro_step)
        shape = (size, *self.models.latent_shape)
        draws = {}
        for part, owner in (("instance", photos), ("class", self.class_photos)):
            if owner is None:
                continue
            epochs = {position // items for position in positions}
            orders = {epoch: epoch_order(seed, photos.name, part, epoch, items) for epoch in epochs}
            draws[part] = {
                "index": torch.stack([orders[p // items][p % items] for p in positions]) % len(owner),
                "noise": torch.randn(shape, generator=generator),
                "posterior_noise": torch.randn(shape, generator=generator),
                "timesteps": torch.randint(0, self.models.train_timesteps, (size,), generator=generator),
            }
        count = 1 if self.negatives is None else len(self.negatives)
        draws["negative"] = torch.randint(0, count, (size,), generator=generator)
        return draws

    def losses(self, batch):
        """Losses of a micro-batch: (C, 4) in the order of TERMS, and (C, BANDS, 2) counts."""
        models, config = self.models, self.config
        count = len(self.photos) * config.train_batch_size
        timesteps, noise = self.to_device(batch["timesteps"]), self.to_device(batch["noise"])
        latents = self.latents(batch, count)
        noisy = add_noise(latents, noise, timesteps, models.alphas_cumprod)
        output = models.predict(noisy, timesteps, batch["slots"], count)
        target = training_target(latents, noise, timesteps, models.alphas_cumprod, models.prediction_type)
        weight = None
        if config.snr_gamma is not None:
            weight = min_snr_weight(
                timesteps, models.alphas_cumprod, config.snr_gamma, models.prediction_type
            )
        per_item = denoising_loss(output, target, weight).view(-1, len(self.photos), config.train_batch_size)
        combined = reconstruction = per_item[0].mean(1)
        prior = identity = torch.full_like(reconstruction, torch.nan)
        if self.class_photos:
            prior = per_item[1].mean(1)
            combined = combined + config.prior_loss_weight * prior
        counts = self.band_counts(batch["timesteps"][:count])
        if self.branch:
            identity, counts[..., 1] = self.identity_terms(noisy[:count], output[:count], batch)
            combined = combined + config.identity_loss_weight * identity
        return torch.stack([reconstruction, prior, identity, combined], 1), counts

    def latents(self, batch, count):
        """A fresh sample of each item's VAE posterior, scaled: (B, C, h, w) float32 on the device."""
        owners = [self.photos[s] for s in batch["slots"][:count]] + [self.class_photos] * (
            len(batch["slots"]) - count
        )
        pairs = list(zip(owners, batch["index"].tolist(), strict=True))
        if self.config.cache_latents:
            mean = torch.stack([owner.mean[index] for owner, index in pairs])
            std = torch.stack([owner.std[index] for owner, index in pairs])
        else:
            pixels = torch.stack([owner.pixels[index] for owner, index in pairs])
            mean, std = self.models.encode(pixels)
        mean, std, noise = (self.to_device(each) for each in (mean, std, batch["posterior_noise"]))
        return self.models.scale_latents(mean + std * noise)

    def to_device(self, tensor):
        """The tensor on the device; from pinned memory, so that the copy does not wait for the GPU."""
        if self.models.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.models.device, non_blocking=True)

    # ------------------------------------------------------------------------------------------ identity

    def bands(self, timesteps):
        """The timestep band, 0 to BANDS - 1, of each item."""
        return timesteps * BANDS // self.models.train_timesteps

    def band_counts(self, timesteps):
        """(C, BANDS, 2) with the instance items per band in [..., 0] and zeros beside."""
        counts = torch.zeros(len(self.photos), BANDS, 2)
        bands = self.bands(timesteps).view(len(self.photos), -1)
        counts[..., 0].scatter_add_(1, bands, torch.ones(bands.shape))
        return counts

    def identity_terms(self, noisy, output, batch):
        """(C,) weighted identity loss, mean over each identity's items, and (C, BANDS) items that have one.

        Items without an embedding, at or above identity_max_timestep, or without a detected face have none.
        """
        timesteps, slots, index = (batch[key][: len(noisy)] for key in ("timesteps", "slots", "index"))
        known = torch.stack([self.photos[s].has_embedding[i] for s, i in zip(slots, index, strict=True)])
        chosen = (known & (timesteps < self.config.identity_max_timestep)).nonzero().flatten()
        terms = torch.zeros(len(noisy), device=noisy.device)
        counts = torch.zeros(len(self.photos), BANDS)
        if len(chosen):
            values, found = self.identity_values(noisy, output, batch, chosen)
            kept = chosen[found]
            if len(kept):
                terms = terms.index_put((kept.to(noisy.device),), values)
                counts.index_put_(
                    (slots[kept], self.bands(timesteps[kept])), torch.ones(len(kept)), accumulate=True
                )
        return terms.view(len(self.photos), -1).mean(1), counts

    def identity_values(self, noisy, output, batch, chosen):
        """Weighted identity losses of the chosen items that show a face, and which of them do."""
        models, config, device = self.models, self.config, noisy.device
        rows, timesteps = chosen.to(device), batch["timesteps"][chosen].to(device)
        x0 = predict_x0(noisy[rows], output[rows], timesteps, models.alphas_cumprod, models.prediction_type)
        pick = [(self.photos[batch["slots"][i]], batch["index"][i]) for i in chosen]
        matrices = torch.stack([photos.matrices[i] for photos, i in pick])
        windows = torch.stack([photos.windows[i] for photos, i in pick])
        anchor, found = self.branch.embeddings(x0, matrices, windows)
        if not found.any():
            return None, found
        keep = found.nonzero().flatten()
        anchor = anchor[keep.to(device)]
        positive = torch.stack([photos.embeddings[i] for photos, i in pick])[keep].to(device)
        if self.objective == "ID-Booth":
            negative = self.negatives[batch["negatives"].flatten()[chosen][keep]].to(device)
            loss = triplet_identity_loss(anchor, positive, negative, config.triplet_margin)
        else:
            loss = identity_loss(anchor, positive)
        timesteps = timesteps[keep.to(device)]
        return timestep_weight(timesteps, models.train_timesteps, config.timestep_weighting) * loss, found


def epoch_steps(config, items):
    """Optimiser steps that go once over ``items``."""
    return -(-items // (config.train_batch_size * config.gradient_accumulation_steps))


def make_optimizer(config, parameters):
    """AdamW in float32 (one fused kernel), or the 8-bit and Prodigy ones where they are installed."""
    options = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    package, class_name = OPTIONAL_OPTIMIZERS[config.optimizer]
    module = importlib.import_module(f"{package}.optim" if package == "bitsandbytes" else package)
    return getattr(module, class_name)(parameters, **options)
