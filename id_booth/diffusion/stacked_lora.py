"""LoRA for a cohort: every item of a batch goes through the adapter of its own identity.

A wrapped linear layer holds the low-rank matrices of C identities stacked, (C, r, in) and (C, out, r), and
each batch item picks its own by slot. Nothing else in the networks mixes items, so C identities trained in
one batch get the LoRAs they would get alone. C = 1 is the ordinary case. Files are diffusers' own format
(Hu et al. 2022 for LoRA, Liu et al. 2024 for DoRA).
"""

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import nn
from torch.nn import functional

LORA_FILE = "pytorch_lora_weights.safetensors"


class Slots:
    """Which adapter each item of the coming batch uses; shared by all wrapped layers of a model.

    ``index`` is a (B,) int64 tensor, (1,) where all items use the same, or None for item i's adapter i (and
    always adapter 0 when there is only one). ``enabled`` False gives the base.
    """

    def __init__(self):
        self.index = None
        self.enabled = True


class StackedLoRALinear(nn.Module):
    """A frozen linear layer plus the stacked low-rank updates of C identities."""

    def __init__(self, base, slots, cohort_size, rank, alpha, dora=False):
        super().__init__()
        self.base, self.slots, self.scale, self.dora = base, slots, alpha / rank, dora
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
        down, up = self.per_item(self.down), self.per_item(self.up)
        if self.dora:
            update = x.reshape(x.shape[0], -1, x.shape[-1]) @ down.mT @ up.mT
            return self.renormalise(result, update.reshape(result.shape) * self.scale)
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
        if self.down.shape[0] == 1:
            return stacked[0]
        if index is None or len(index) == 1:
            return stacked if index is None else stacked[index][0]
        # The backward pass of index_select adds in place; that of stacked[index] sorts first.
        return stacked.index_select(0, index)

    def renormalise(self, result, update):
        """DoRA: m (W x + s B A x) / ||W + s B A||, the norm per output row and without gradient."""
        with torch.no_grad():
            weight = self.base.weight.float()
            norm = (weight + self.scale * (self.up @ self.down)).norm(dim=-1)
        ratio = self.per_item(self.magnitude / norm)
        ratio = ratio.reshape(ratio.shape[:-1] + (1,) * (result.ndim - 2) + ratio.shape[-1:])
        bias = 0 if self.base.bias is None else self.base.bias
        return (ratio * (result - bias + update) + bias).to(result.dtype)


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
        if isinstance(module, nn.Linear) and any(name == t or name.endswith("." + t) for t in targets)
    ]
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


def flatten_adapters(layers):
    """Move all weights of some adapters into one buffer; their gradients gather in one buffer too.

    Clipping and the optimiser then need a few kernels instead of a few for each of hundreds of small
    matrices. The layers' own parameters become views, so that everything else sees them as before.

    Args:
        layers: StackedLoRALinear modules of one cohort size C.

    Returns:
        nn.Parameter (C, P) float32 with ``grad`` (C, P) zero; clear it in place, never set it to None.
    """
    # Views of a cohort's buffer have gaps; torch wonders whether that was meant.
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
    parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    flat = nn.Parameter(torch.cat([p.detach().flatten(1) for p in parameters], 1))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        width = parameter[0].numel()
        place = (slice(None), slice(start, start + width))
        parameter.data = flat.detach()[place].view(parameter.shape)
        parameter.grad = flat.grad[place].view(parameter.shape)
        start += width
    return flat


def reset_slot(layers, slot, generator):
    """Start one identity afresh; the draws depend on the generator alone (layers in name order)."""
    for name in sorted(layers):
        layers[name].reset(slot, generator)


def slot_gradient_norm(parameters, slot_count):
    """The gradient norm of each identity over all its adapters, (C,)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return sum(g.float().square().reshape(slot_count, -1).sum(1) for g in gradients).sqrt()


def clip_per_slot(parameters, slot_count, max_norm):
    """Clip every identity's gradient to ``max_norm`` on its own, as torch's clip_grad_norm_ does for one.

    Returns:
        (C,) norms before clipping.
    """
    norms = slot_gradient_norm(parameters, slot_count)
    factor = (max_norm / (norms + 1e-6)).clamp(max=1)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor.view(-1, *(1,) * (parameter.ndim - 1)))
    return norms


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


def all_finite(layers, slot):
    """Whether every weight of one identity is finite; one look at the device for all of them."""
    sums = [layer.up[slot].sum() + layer.down[slot].sum() for layer in layers.values()]
    return bool(torch.stack(sums).isfinite().all())
