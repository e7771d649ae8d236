"""Sampling several identities in one batch: each image goes through the LoRA of its own person.

A handful of images of one person fills a GPU as little as one training step does. Stacked in the layers
(``id_booth.diffusion.stacked_lora``), the LoRAs of several people share a batch; an image is the one its own
LoRA alone would give, up to rounding.
"""

import torch

from id_booth.diffusion.lora_files import check_fits, target_layer, unload_lora
from id_booth.diffusion.lora_reading import read_lora
from id_booth.diffusion.stacked_lora import Slots, StackedLoRALinear, remove_stacked_lora
from utils.errors import UserError

USED_ALONE, USED_TOGETHER, MOST_TOGETHER = 0.75, 0.9, 16


def identities_per_batch(images_each, batch_size):
    """How many people to sample together, so that the last batch is not mostly empty.

    One person alone where at least 75 % of the batches' places are used: the LoRA is then fused into the
    weights, which costs nothing. Otherwise the smallest number of people that uses at least 90 %.

    Args:
        images_each: images per person; batch_size: images per batch.
    """

    def used(people):
        images = people * images_each
        return images / (-(-images // batch_size) * batch_size)

    if not images_each or used(1) >= USED_ALONE:
        return 1
    return next((n for n in range(2, MOST_TOGETHER + 1) if used(n) >= USED_TOGETHER), MOST_TOGETHER)


def can_stack(lora):
    """Whether a LoRA can share a batch: on linear layers of the UNet alone, without DoRA's norms."""
    return set(lora.layers) == {"unet"} and all(
        weights.keys() == {"lora_A", "lora_B"} and weights["lora_A"].ndim == 2
        for weights in lora.layers["unet"].values()
    )


class LoraStack:
    """Several LoRAs in the UNet at once; a context manager that puts the plain layers back at its end.

    Args:
        base: BaseModel; a LoRA that is in it is taken out.
        loras: list of Lora of this base model that :func:`can_stack`; ranks, scales and layers may differ.
    """

    def __init__(self, base, loras):
        self.base, self.loras, self.slots, self.layers = base, loras, Slots(), {}

    def __enter__(self):
        unload_lora(self.base)
        unet, loras = self.base.unet, self.loras
        for name in sorted({name for lora in loras for name in lora.layers["unet"]}):
            linear = target_layer(unet, name)
            rank = max(
                len(lora.layers["unet"][name]["lora_A"]) for lora in loras if name in lora.layers["unet"]
            )
            layer = StackedLoRALinear(linear, self.slots, len(loras), rank, rank)
            for slot, lora in enumerate(loras):
                fill_slot(layer, slot, lora, name)
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, layer.to(linear.weight.dtype).requires_grad_(False))
            self.layers[name] = layer
        return self

    def __exit__(self, *_):
        remove_stacked_lora(self.base.unet, self.layers)

    def choose(self, slots, guided):
        """Say which LoRA each image of the coming batch uses; ``guided`` when it goes through twice."""
        self.slots.index = torch.tensor(list(slots) * (2 if guided else 1), device=self.base.unet.device)


@torch.no_grad()
def fill_slot(layer, slot, lora, name):
    """Put one LoRA's matrices, its scale included, into a slot; zero where it has none or a smaller rank."""
    layer.down[slot].zero_()
    layer.up[slot].zero_()
    weights = lora.layers["unet"].get(name)
    if weights:
        rank = len(weights["lora_A"])
        layer.down[slot, :rank] = weights["lora_A"].float()
        layer.up[slot, :, :rank] = weights["lora_B"].float() * lora.scales["unet", name]


def stackable_groups(base, units):
    """The units in groups that can share batches: those whose LoRAs stack, and each other one by itself.

    A unit whose file is broken or of another base model goes by itself too, and fails there alone.

    Args:
        units: objects with ``lora``, a path, or None for the base model itself.
    """
    if len(units) == 1 or not units[0].lora:
        return [units]
    together, alone = [], []
    for unit in units:
        try:
            lora = read_lora(unit.lora, base)
            check_fits(base, lora)
            stacks = can_stack(lora)
        except UserError:
            stacks = False
        (together if stacks else alone).append(unit)
    return ([together] if together else []) + [[unit] for unit in alone]
