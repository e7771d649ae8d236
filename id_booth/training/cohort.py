"""One training step of a cohort: C identities in one batch, each with its own adapter (C = 1 ordinarily).

Every random draw of a step is a function of (seed, identity, step), so nothing depends on the objective, on
the other identities or on how often the run was interrupted.
"""

import importlib
from dataclasses import dataclass, fields

import torch

from configs.train_config import OPTIONAL_OPTIMIZERS
from id_booth.diffusion.noise_schedule import add_noise, min_snr_weight, predict_x0, training_target
from id_booth.diffusion.stacked_lora import reset_slot
from id_booth.objectives import OBJECTIVES, denoising_loss, timestep_weight
from id_booth.training.photos import PhotoStore
from utils.devices import to_device
from utils.seeding import torch_generator

TERMS = ("Reconstruction", "Prior", "ID", "Combined")
BANDS = 10  # equal ranges of timesteps in which items with an identity term are counted


@dataclass
class Batch:
    """Every random choice of a micro-step: B items, instance items of all identities first.

    Drawn on the CPU, where it stays the same for every device; :meth:`to` gives the copy for the arithmetic.

    ``slots``: (B,) int64, whose adapter an item uses; ``rows``: (B,) int64, its picture in the PhotoStore;
    ``negatives``: (B,) int64, row of the negatives, for instance items; ``chances``: (B,) float32 in [0, 1),
    which decide whether an item has an identity term; ``timesteps``: (B,) int64; ``noise``,
    ``posterior_noise``: (B, C, h, w) float32.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    negatives: torch.Tensor
    chances: torch.Tensor
    noise: torch.Tensor
    posterior_noise: torch.Tensor
    timesteps: torch.Tensor

    @staticmethod
    def joined(parts):
        """The items of several batches, in order."""
        return Batch(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Batch)))

    def to(self, device):
        """The same on another device."""
        return Batch(*(to_device(getattr(self, f.name), device) for f in fields(self)))


class Cohort:
    """Identities that train together for one objective.

    Args:
        config: TrainConfig; objective: a name of OBJECTIVES; models: FrozenModels.
        branch: IdentityBranch; None where the objective needs no faces.
        photos: list of C Photos; class_photos: Photos or None; negatives: (M, D) float32 or None.
    """

    def __init__(self, config, objective, models, branch, photos, class_photos, negatives):
        self.config, self.models, self.branch = config, models, branch
        self.objective, self.term = objective, OBJECTIVES[objective]
        self.photos, self.class_photos = photos, class_photos
        self.negatives = None if negatives is None else negatives.to(models.device)
        self.store = PhotoStore([*photos, *([class_photos] if class_photos else [])], models)
        self.names = [photo.name for photo in photos]
        self.instances = len(photos) * config.train_batch_size
        self.items = [max(len(each), len(class_photos or ())) for each in photos]  # of an epoch
        self.steps_per_epoch = config.steps_per_epoch(max(self.items))
        self.total_steps = config.total_steps(max(self.items))
        self.active = [True] * len(photos)
        self.adapters = models.adapters
        self.adapters.weights.grad.zero_()
        self.updates = [Update(config, row, self.total_steps, models) for row in self.adapters.rows]
        for slot, name in enumerate(self.names):
            generator = torch_generator(config.seed, name, "lora")
            for layers in models.lora.values():
                reset_slot(layers, slot, generator)

    # ------------------------------------------------------------------------------------------ one step

    def step(self, step):
        """One optimiser step (numbered from 0) for all identities.

        Returns:
            (terms, bands): (C, 4) float32 losses in the order of TERMS (NaN where a term does not exist), and
            (C, BANDS, 2) instance items by timestep band: all, and those with an identity term.
        """
        terms, bands, parts = 0, 0, self.config.gradient_accumulation_steps
        for part in range(parts):
            drawn = self.draw(step * parts + part)
            batch = drawn.to(self.models.device)
            latents = self.latents(batch)
            noisy, output = self.predict(latents, batch)
            losses, counts = self.losses(latents, noisy, output, batch, drawn)
            scaled = zip(self.updates, losses[:, -1] / parts, strict=True)
            sum(update.scaler.scale(loss) for update, loss in scaled).backward()
            terms, bands = terms + losses.detach() / parts, bands + counts
        self.update()
        return terms, bands

    def draw(self, micro_step):
        """All random choices of a micro-step: instance items of each identity, then class items of each."""
        drawn = [self.draw_identity(slot, micro_step) for slot in range(len(self.photos))]
        return Batch.joined([part for parts in zip(*drawn, strict=True) for part in parts])

    def draw_identity(self, slot, micro_step):
        """One identity's draws, [instance Batch, class Batch], from its own stream (seed, identity, step)."""
        size, name = self.config.train_batch_size, self.names[slot]
        generator = torch_generator(self.config.seed, name, "step", micro_step)
        shape, parts = (size, *self.models.latent_shape), []
        for what, owner in (("instance", slot), ("class", len(self.photos))):
            if what == "class" and not self.class_photos:
                continue
            parts.append(
                Batch(
                    slots=torch.full((size,), slot),
                    rows=self.rows(what, owner, slot, micro_step * size),
                    negatives=torch.zeros(size, dtype=torch.int64),
                    chances=torch.zeros(size),
                    noise=torch.randn(shape, generator=generator),
                    posterior_noise=torch.randn(shape, generator=generator),
                    timesteps=torch.randint(0, self.models.train_timesteps, (size,), generator=generator),
                )
            )
        count = 1 if self.negatives is None else len(self.negatives)
        parts[0].negatives = torch.randint(0, count, (size,), generator=generator)
        parts[0].chances = torch.rand(size, generator=generator)
        return parts

    def rows(self, what, owner, slot, first):
        """Rows of the store at the positions ``first``, ... of an identity's shuffled epochs, (size,)."""
        items, seed, name = self.items[slot], self.config.seed, self.names[slot]
        positions = range(first, first + self.config.train_batch_size)
        epochs = {position // items for position in positions}
        orders = {epoch: epoch_order(seed, name, what, epoch, items) for epoch in epochs}
        drawn = torch.stack([orders[p // items][p % items] for p in positions])
        return drawn % self.store.counts[owner] + self.store.first[owner]

    def latents(self, batch):
        """A fresh sample of each item's VAE posterior, scaled: (B, C, h, w) float32 on the device."""
        mean, std = self.store.posterior(batch.rows)
        return self.models.scale_latents(mean + std * batch.posterior_noise)

    def predict(self, latents, batch):
        """The noised latents (B, C, h, w) and what the UNet says of them."""
        noisy = add_noise(latents, batch.noise, batch.timesteps, self.models.alphas_cumprod)
        graphed = self.config.cuda_graph
        return noisy, self.models.predict(noisy, batch.timesteps, batch.slots, self.instances, graphed)

    def losses(self, latents, noisy, output, batch, drawn):
        """Losses of a micro-batch: (C, 4) in the order of TERMS, and (C, BANDS, 2) counts on the CPU.

        Args:
            batch, drawn: the same Batch on the device and on the CPU, where choices cost no waiting.
        """
        config, people = self.config, len(self.photos)
        per_item = self.denoising_losses(latents, output, batch).view(-1, people, config.train_batch_size)
        combined = reconstruction = per_item[0].mean(1)
        prior = identity = torch.full_like(reconstruction, torch.nan)
        present = torch.zeros(self.instances, dtype=torch.bool)
        if self.class_photos:
            prior = per_item[1].mean(1)
            combined = combined + config.prior_loss_weight * prior
        if self.term.needs_faces:
            values, present = self.identity_terms(noisy, output, batch, drawn)
            identity = values.view(people, -1).mean(1)
            combined = combined + config.identity_loss_weight * identity
        return torch.stack([reconstruction, prior, identity, combined], 1), self.band_counts(drawn, present)

    def denoising_losses(self, latents, output, batch):
        """The reconstruction loss of every item, (B,)."""
        models, gamma, timesteps = self.models, self.config.snr_gamma, batch.timesteps
        schedule = (models.alphas_cumprod, models.prediction_type)
        target = training_target(latents, batch.noise, timesteps, *schedule)
        weight = None if gamma is None else min_snr_weight(timesteps, schedule[0], gamma, schedule[1])
        return denoising_loss(output, target, weight)

    def identity_terms(self, noisy, output, batch, drawn):
        """The weighted identity term of each instance item, (n,), zero without one; and which have one, (n,).

        Items without an embedding, whose timestep or chance gives none, or without a detected face have none.
        """
        models, config, device = self.models, self.config, noisy.device
        rows, timesteps = drawn.rows[: self.instances], drawn.timesteps[: self.instances]
        weight = self.identity_weights(timesteps, drawn.chances[: self.instances])
        present = self.store.has_embedding[rows] & (weight > 0)
        chosen = present.nonzero().flatten()
        terms = torch.zeros(self.instances, device=device)
        if not len(chosen):
            return terms, present
        items = to_device(chosen, device)
        places = batch.rows[items]
        schedule = (models.alphas_cumprod, models.prediction_type)
        x0 = predict_x0(noisy[items], output[items], batch.timesteps[items], *schedule)
        windows = self.store.windows[rows[chosen]]
        anchor, found = self.branch.embeddings(x0, self.store.matrices[places], windows)
        positive, negative = self.store.embeddings[places], None
        if self.term.needs_negatives:
            negative = self.negatives[batch.negatives[items]]
        values = self.term.identity_values(anchor, positive, negative, config.triplet_margin)
        present[chosen] = found
        return terms.index_put((items,), to_device(weight[chosen] * found, device) * values), present

    def identity_weights(self, timesteps, chances):
        """The weights of identity terms, (n,): zero for items that are to have none.

        Where terms are sampled, a term has the chance p = min(1, f w) to be there, and is weighted by w / p.
        """
        config, count = self.config, self.models.train_timesteps
        weight = timestep_weight(timesteps, count, config.timestep_weighting)
        probability = identity_probability(config, timesteps, count)
        return torch.where(chances < probability, weight / probability, 0)

    def band_counts(self, drawn, present):
        """(C, BANDS, 2): instance items per timestep band, and those among them with an identity term."""
        bands = drawn.timesteps[: self.instances] * BANDS // self.models.train_timesteps
        counts = torch.zeros(len(self.photos), BANDS, 2)
        for kind, mask in enumerate((torch.ones_like(present), present)):
            counts[..., kind].scatter_add_(1, bands.view(len(counts), -1), mask.view(len(counts), -1).float())
        return counts

    # ------------------------------------------------------------------------------------------ update

    def update(self):
        """Clip each identity on its own and let its own optimiser move it."""
        active = [update for update, active in zip(self.updates, self.active, strict=True) if active]
        for update in active:
            update.scaler.unscale_(update.optimizer)
        self.adapters.clip(self.config.max_grad_norm)
        for update in active:
            update.step()
        self.adapters.weights.grad.zero_()  # in place: the optimisers see views of it

    def retire(self, slot):
        """Stop training one identity; zero weights keep its items harmless while the others go on."""
        self.active[slot] = False
        with torch.no_grad():
            self.adapters.weights[slot] = 0


def identity_probability(config, timesteps, num_train_timesteps):
    """The chance that items at ``timesteps`` (n,) have an identity term, (n,) float32 in [0, 1]."""
    weight = timestep_weight(timesteps, num_train_timesteps, config.timestep_weighting)
    always = config.identity_sampling == "always"
    chance = torch.ones_like(weight) if always else (config.identity_sampling_factor * weight).clamp(max=1)
    return chance * (timesteps < config.identity_max_timestep)


class Update:
    """What moves one identity: optimiser, learning rate and, in float16, the scale of its loss.

    Each identity has its own, so that an overflow, or a state of the optimiser, is nobody else's business.

    Args:
        config: TrainConfig. weights: nn.Parameter (P,) with a gradient. steps: of the whole training.
        models: FrozenModels.
    """

    def __init__(self, config, weights, steps, models):
        from diffusers.optimization import get_scheduler

        self.optimizer = make_optimizer(config, [weights])
        self.scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=steps,
        )
        self.scaler = torch.amp.GradScaler(models.device.type, enabled=models.dtype == torch.float16)

    def step(self):
        """Move the weights, or skip the step where their gradient overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()

    def state_dict(self):
        """What a run that goes on needs."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state, step):
        """Take up a state after ``step`` steps."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.scheduler.last_epoch = step


def epoch_order(seed, name, what, epoch, length):
    """The (length,) order in which an identity's items come in an epoch, known from the epoch alone."""
    return torch.randperm(length, generator=torch_generator(seed, name, what, epoch))


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
