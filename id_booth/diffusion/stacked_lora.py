"""LoRA for a cohort: every item of a batch goes through the adapter of its own identity.

A wrapped linear layer holds the low-rank matrices of C identities stacked, (C, r, in) and (C, out, r), and
each batch item picks its own by slot. Nothing else in the networks mixes items, so C identities trained in
one batch get the LoRAs they would get alone. C = 1 is the ordinary case. Files are diffusers' own format
(Hu et al. 2022 for LoRA, Liu et al. 2024 for DoRA).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from utils.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"


class Slots:
    """Which adapter each item of the coming batch uses; shared by all wrapped layers of a model.

    ``index`` is a (B,) int64 tensor, or a number where all items use the same adapter, or None for item i's
    adapter i (and always adapter 0 when there is only one). ``enabled`` False gives the base.
    """

    def __init__(self):
        self.index = None
        self.enabled = True


class StackedLoRALinear(nn.Module):
    """A frozen linear layer plus the stacked low-rank updates of C identities.

    ``down`` (C, r, in), ``up`` (C, out, r) and for DoRA ``magnitude`` (C, out) are float32; ``active`` holds
    what a call computes with instead, in the network's precision (:meth:`Adapters.activate`).
    """

    def __init__(self, base, slots, cohort_size, rank, alpha, dora=False):
        super().__init__()
        self.base, self.slots, self.scale, self.dora, self.active = base, slots, alpha / rank, dora, None
        device = base.weight.device
        self.down = nn.Parameter(torch.empty(cohort_size, rank, base.in_features, device=device))
        self.up = nn.Parameter(torch.empty(cohort_size, base.out_features, rank, device=device))
        if dora:
            self.magnitude = nn.Parameter(torch.empty(cohort_size, base.out_features, device=device))

    @torch.no_grad()
    def reset(self, slot, generator):
        """Gaussian down (standard deviation 1/r, as peft's init_lora_weights="gaussian"), zero up."""
        rank = self.down.shape[1]
        self.down[slot] = torch.randn(self.down.shape[1:], generator=generator).to(self.down.device) / rank
        self.up[slot].zero_()
        if self.dora:
            self.magnitude[slot] = self.base.weight.float().norm(dim=1)

    def forward(self, x, *args, **kwargs):
        """(B, ..., in) -> (B, ..., out)."""
        result = self.base(x)
        if not self.slots.enabled:
            return result
        weights = self.active or tuple(self.parameters(recurse=False))
        down, up = (self.per_item(matrix) for matrix in weights[:2])
        if self.dora:
            update = x.reshape(x.shape[0], -1, x.shape[-1]) @ down.mT @ up.mT
            return self.renormalise(result, update.reshape(result.shape) * self.scale, weights[2])
        # The product is added where the base's result lies: one kernel, and nothing kept for the backward
        # pass but the narrow hidden values.
        if down.ndim == 2:
            hidden = functional.linear(x.flatten(0, -2), down)
            summed = torch.addmm(result.flatten(0, -2), hidden, up.mT, alpha=self.scale)
        else:
            hidden = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), down.mT)
            summed = torch.baddbmm(result.reshape(*hidden.shape[:2], -1), hidden, up.mT, alpha=self.scale)
        return summed.view_as(result)

    def per_item(self, stacked):
        """The matrices of each item, (B, ...); one without the B where all items use the same."""
        index = self.slots.index
        if len(stacked) == 1:
            return stacked[0]
        if index is None or isinstance(index, int):
            return stacked if index is None else stacked[index]
        # The backward pass of index_select adds in place; that of stacked[index] sorts first.
        return stacked.index_select(0, index)

    def renormalise(self, result, update, magnitude):
        """DoRA: m (W x + s B A x) / ||W + s B A||, the norm per output row and without gradient."""
        with torch.no_grad():
            weight = self.base.weight.float()
            norm = (weight + self.scale * (self.up @ self.down)).norm(dim=-1)
        ratio = self.per_item(magnitude / norm)
        ratio = ratio.reshape(ratio.shape[:-1] + (1,) * (result.ndim - 2) + ratio.shape[-1:])
        bias = 0 if self.base.bias is None else self.base.bias
        return (ratio * (result - bias + update) + bias).to(result.dtype)


class Adapters:
    """All adapters of a cohort in one buffer, so that casting, clipping and updates need few kernels.

    ``weights``: nn.Parameter (C, P) float32, its gradient always there; the layers' own parameters are views
    of it. ``rows``: C nn.Parameter (P,), views of the same with views of the gradient, one for each
    identity's optimiser.

    Args:
        layers: StackedLoRALinear modules of one cohort size C.
    """

    def __init__(self, layers):
        self.layers = list(layers)
        owned = [parameter for layer in self.layers for parameter in layer.parameters(recurse=False)]
        self.shapes = [parameter.shape for parameter in owned]
        self.weights = nn.Parameter(torch.cat([p.detach().flatten(1) for p in owned], 1))
        self.weights.grad = torch.zeros_like(self.weights)
        for parameter, part in zip(owned, self.split(self.weights.detach()), strict=True):
            parameter.data = part
            parameter.requires_grad_(False)
        self.rows = [nn.Parameter(row) for row in self.weights.detach()]
        for row, gradient in zip(self.rows, self.weights.grad, strict=True):
            row.grad = gradient

    def split(self, flat):
        """A (C, P) tensor as views of each layer's matrices, in the layers' order."""
        parts = flat.split([shape[1:].numel() for shape in self.shapes], 1)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def activate(self, weights):
        """Let the layers compute with ``weights`` (C, P): ours, cast at once to the network's precision."""
        parts = iter(self.split(weights))
        for layer in self.layers:
            layer.active = tuple(next(parts) for _ in layer.parameters(recurse=False))

    def clip(self, max_norm):
        """Clip every identity's gradient to ``max_norm`` on its own, as torch's clip_grad_norm_ does for one.

        Returns:
            (C,) norms before clipping.
        """
        norms = self.weights.grad.square().sum(1).sqrt()
        self.weights.grad.mul_((max_norm / (norms + 1e-6)).clamp(max=1)[:, None])
        return norms

    def finite(self):
        """Whether all weights of each identity are finite: list of C bool, one look at the device."""
        return self.weights.detach().isfinite().all(1).tolist()


def add_stacked_lora(model, targets, cohort_size, rank, alpha, dora=False):
    """Wrap the linear layers whose names end in one of ``targets``; freeze everything else.

    Returns:
        (layers, slots): dict of module name -> StackedLoRALinear, and the Slots they share.
    """
    model.requires_grad_(False)
    slots = Slots()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{t}") for t in targets)
    ]
    idle = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in names)]
    if idle:
        raise UserError(f"lora_targets: no linear layer of the {type(model).__name__} is called {idle[0]!r}")
    layers = {}
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layer = StackedLoRALinear(getattr(parent, child), slots, cohort_size, rank, alpha, dora)
        setattr(parent, child, layer)
        layers[name] = layer
    return layers, slots


def remove_stacked_lora(model, layers):
    """Put the plain linear layers back."""
    for name, layer in layers.items():
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, layer.base)


def reset_slot(layers, slot, generator):
    """Start one identity afresh; the draws depend on the generator alone (layers in name order)."""
    for name in sorted(layers):
        layers[name].reset(slot, generator)


# ---------------------------------------------------------------------------------------------- files


def file_keys(layer, name, prefix):
    """dict of parameter name -> its key in a diffusers file; text encoders keep an older spelling."""
    lora = "lora" if prefix == "unet" else "lora_linear_layer"
    keys = {part: f"{prefix}.{name}.{lora}.{part}.weight" for part in ("down", "up")}
    return keys | ({"magnitude": f"{prefix}.{name}.lora_magnitude_vector"} if layer.dora else {})


def slot_state(layers, slot, prefix):
    """One identity's weights under diffusers' names, contiguous float32 on the CPU."""
    return {
        key: getattr(layer, part)[slot].detach().float().cpu().clone()
        for name, layer in layers.items()
        for part, key in file_keys(layer, name, prefix).items()
    }


def load_slot_state(layers, slot, state, prefix):
    """Put one identity's weights (as from :func:`slot_state`) into its slot."""
    with torch.no_grad():
        for name, layer in layers.items():
            for part, key in file_keys(layer, name, prefix).items():
                getattr(layer, part)[slot] = state[key]


def adapter_metadata(groups, rank, alpha, dora):
    """The safetensors metadata from which diffusers restores rank, alpha and targets.

    Args:
        groups: dict of prefix ("unet", "text_encoder") -> layers.
    """
    from peft import LoraConfig

    fields = {}
    for prefix, layers in groups.items():
        targets = sorted(
            {".".join(name.split(".")[-2:]) if name[-1].isdigit() else name.split(".")[-1] for name in layers}
        )
        config = LoraConfig(
            r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets, use_dora=dora
        )
        for key, value in config.to_dict().items():
            fields[f"{prefix}.{key}"] = sorted(value) if isinstance(value, set) else value
    return {"format": "pt", "lora_adapter_metadata": json.dumps(fields, indent=2, sort_keys=True)}


def save_lora(path, groups, slot, rank, alpha, dora, extra_metadata=None):
    """Write one identity's LoRA as diffusers would, loadable by ``pipe.load_lora_weights(folder)``.

    Args:
        path: the file to write; groups: dict of prefix -> layers; extra_metadata: dict of further strings.
    """
    state = {}
    for prefix, layers in groups.items():
        state.update(slot_state(layers, slot, prefix))
    metadata = {**adapter_metadata(groups, rank, alpha, dora), **(extra_metadata or {})}
    Path(path).write_bytes(in_order(save(state, metadata=metadata)))


def in_order(data):
    """A safetensors file with its metadata sorted: the library's own order changes from one save to the next.

    The format: length of the header (8 bytes, little endian), the header in JSON padded with spaces, tensors.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
