"""LoRA files on disk, and putting one into the base model after another, without reloading the base.

What a file holds is read in ``lora_reading``.
"""

import contextlib
import re
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from id_booth.diffusion.families import family_by_width
from id_booth.diffusion.lora_reading import DOWN, MAGNITUDE, UP, lora_file, read_lora
from id_booth.diffusion.stacked_lora import LORA_FILE
from utils.errors import UserError, one_line
from utils.files import read_json
from utils.identities import natural_key, readable

ADAPTER = "identity"
# What training notes of the recogniser behind the identity term: content hash, or "none" without such a term.
LOSS_RECOGNISER, NO_RECOGNISER = "loss_recogniser_sha256", "none"


@readable()
def checkpoints(folder):
    """Complete checkpoint folders of an identity, oldest first; a LoRA right in the folder counts too."""
    found = [path for path in Path(folder).glob("checkpoint-*") if (path / LORA_FILE).is_file()]
    if found:
        return sorted(found, key=lambda path: natural_key(path.name))
    return [Path(folder)] if (Path(folder) / LORA_FILE).is_file() else []


def target_layer(model, module):
    """The layer called ``module``, also under the text encoder's other names; None if there is none."""
    layer = named_layer(model, module)[1]
    return getattr(layer, "base_layer", layer)


def named_layer(model, module):
    """(name, layer) in a network of what a file calls ``module``; (None, None) if there is none."""
    for name in (module, module.removeprefix("text_model."), "text_model." + module):
        with contextlib.suppress(AttributeError):
            return name, model.get_submodule(name)
    return None, None


def check_fits(base, lora):
    """Refuse a LoRA that belongs to another base model, naming both."""
    family = lora.base_family or getattr(family_by_width(width_of_texts(lora)), "family", None)
    trained_on = training_record(lora.path).get("base_model") or "another base model"
    trained_on = f"another model called {base.name}" if trained_on == base.name else trained_on
    trained_on += f" ({family})" if family else ""
    if lora.base_family not in (None, base.family):
        raise UserError(
            f"{lora.path}: a LoRA of {trained_on}, and {base.name} is a {base.family} model; use the base "
            "model it was trained on"
        )
    for part, modules in lora.layers.items():
        for module, weights in modules.items():
            layer = target_layer(base.parts.get(part), module)
            if why := misfit(getattr(layer, "weight", None), weights):
                raise UserError(
                    f"{lora.path}: a LoRA of {trained_on}, does not fit {base.name} ({base.family}; "
                    f"{part}.{module}: {why}); use the base model it was trained on"
                )
    check_fingerprint(base, lora, trained_on)


def width_of_texts(lora):
    """The width of the texts that the UNet of a LoRA attends to; None for one without cross attention."""
    layers = lora.layers.get("unet", {}).items()
    keys = (weights[DOWN] for name, weights in layers if re.search(r"attn2[._]to_k$", name))
    return next((down.shape[1] for down in keys), None)


def misfit(weight, weights):
    """Why a LoRA's matrices do not fit a layer's weight, "" when they do."""
    if weight is None or weight.ndim < 2:
        return "no such layer"
    need, have = weight.flatten(1).shape, (len(weights[UP]), weights[DOWN].flatten(1).shape[1])
    if need != torch.Size(have):
        return f"{tuple(need)} here, {have} in the file"
    if len(weights[DOWN]) != weights[UP].flatten(1).shape[1]:
        return "its two matrices are of different ranks"
    if MAGNITUDE in weights and weights[MAGNITUDE].numel() != need[0]:
        return "its magnitudes are of another size"
    return ""


def training_record(file):
    """What training noted beside the LoRA (``training_config.json`` in its folder or the one above)."""
    for folder in (file.parent, file.parent.parent):
        if (folder / "training_config.json").is_file():
            record = read_json(folder / "training_config.json")
            return record if isinstance(record, dict) else {}
    return {}


def person_of(path):
    """The identity a LoRA is of: by its file's metadata, else by training's record; None if neither says."""
    return noted(path, "identity")


def loss_recogniser_of(path):
    """Hash of the recogniser that a LoRA was trained to please, "none", or "" where nobody noted it."""
    return noted(path, LOSS_RECOGNISER) or ""


def noted(path, key):
    """What a LoRA file's metadata, or else training's record, says under ``key``; None if neither does."""
    file = lora_file(path)
    value = None
    with contextlib.suppress(SafetensorError, OSError, ValueError), safe_open(file, "pt") as stream:
        value = (stream.metadata() or {}).get(key)
    return value or training_record(file).get(key)


def check_person(path, name):
    """Refuse a LoRA that lies in the folder of ``name`` and is of somebody else."""
    person = person_of(path)
    if person not in (None, name):
        raise UserError(f"{path}: is a LoRA of {person!r}, in the folder of {name!r}; move it to its own")


def check_fingerprint(base, lora, trained_on):
    """Refuse a LoRA whose noted base has the same shapes but other weights."""
    noted = lora.base_fingerprint or training_record(lora.path).get("base_fingerprint")
    here = base.fingerprint
    comparable = noted and ":" in noted and noted.partition(":")[0] == here.partition(":")[0]
    if comparable and noted != here:
        raise UserError(
            f"{lora.path}: a LoRA of {trained_on} ({noted}), the base model here is {base.name} "
            f"({here}); use the base model it was trained on"
        )


def load_lora(base, path, fuse=None):
    """Put a LoRA into the base model, in place of the one that is in it; the base itself stays loaded.

    Args:
        base: BaseModel.
        path: checkpoint folder or .safetensors file.
        fuse: add the products to the weights (exactly restored by :func:`unload_lora`), which costs nothing
            while sampling; or attach them as peft layers, as a plain diffusers script does. None fuses in
            float32 only: half precision would round small updates away.

    Returns:
        :class:`Lora`.

    Raises:
        UserError: missing or broken file, LoRA of another base model. The base is then as it was before.
    """
    lora = read_lora(path, base)
    check_fits(base, lora)
    unload_lora(base)
    if fuse is None:
        fuse = base.unet.dtype == torch.float32
    (fuse_lora if fuse else attach_lora)(base, lora)
    if base.text_encoders.keys() & lora.layers.keys():
        base.forget_prompts()
        base.undo.callback(base.forget_prompts)
    return lora


def unload_lora(base):
    """Bring the base model's own weights back, to the bit."""
    base.undo.close()


def attach_lora(base, lora):
    """Put the LoRA beside the weights as peft layers, as diffusers does, at the strength that its file means.

    Left to read kohya's files itself, diffusers would drop DoRA and mistake alphas that differ by layer.
    """
    base.undo.callback(base.pipe.unload_lora_weights)
    try:
        for part, modules in lora.layers.items():
            attach_part(base.parts[part], modules, {m: lora.scales[part, m] for m in modules})
    except Exception as error:  # peft trusts its input, and fails in any way
        unload_lora(base)
        raise UserError(f"{lora.path}: peft cannot attach it ({one_line(error)[:200]})") from error


def attach_part(network, modules, scales):
    """:func:`attach_lora` for one network; ``scales``: factor of each module's update."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    state, ranks, alphas = {}, {}, {}
    for module, weights in modules.items():
        name, layer = named_layer(network, module)
        ranks[name], alphas[name] = len(weights[DOWN]), scales[module] * len(weights[DOWN])
        for kind, tensor in weights.items():
            key = f"{name}.{kind}" + ("" if kind == MAGNITUDE else ".weight")
            state[key] = tensor.reshape(peft_shape(kind, layer.weight, ranks[name]))
    (rank, rank_pattern), (alpha, alpha_pattern) = by_pattern(ranks), by_pattern(alphas)
    options = {"r": rank, "rank_pattern": rank_pattern, "lora_alpha": alpha, "alpha_pattern": alpha_pattern}
    options |= {"target_modules": list(ranks), "use_dora": any(MAGNITUDE in w for w in modules.values())}
    inject_adapter_in_model(LoraConfig(**options), network, ADAPTER, low_cpu_mem_usage=True)
    set_peft_model_state_dict(network, state, ADAPTER, low_cpu_mem_usage=True)


def peft_shape(kind, weight, rank):
    """The shape that peft wants of a LoRA's tensor beside a linear layer's or a convolution's weight."""
    ones = [1] * (weight.ndim - 2)
    shapes = {DOWN: (rank, *weight.shape[1:]), UP: (len(weight), rank, *ones)}
    return shapes.get(kind, (1, len(weight), *ones) if ones else (len(weight),))


def by_pattern(values):
    """(usual value, {pattern: value} of the others) of a dict by module, as peft's settings take them."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(module)}": value for module, value in values.items() if value != usual}


@torch.no_grad()
def fuse_lora(base, lora):
    """Add the LoRA to the weights in place, keeping a copy of each weight it touches."""
    for part, modules in lora.layers.items():
        for module, weights in modules.items():
            weight = target_layer(base.parts[part], module).weight
            base.undo.callback(restore, weight, weight.clone())
            weight.copy_(fused_weight(weight, weights, lora.scales[part, module]))


@torch.no_grad()
def restore(weight, original):
    """Put a weight back."""
    weight.copy_(original)


def fused_weight(weight, weights, scale):
    """W + scale * B A in float32 (Hu et al. 2022); rows rescaled for DoRA (Liu et al. 2024)."""
    down, up = (weights[kind].to(weight.device, torch.float32) for kind in (DOWN, UP))
    fused = weight.float() + scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    if MAGNITUDE in weights:
        magnitude = weights[MAGNITUDE].to(weight.device, torch.float32).flatten()
        factor = magnitude / fused.flatten(1).norm(dim=1)
        fused = fused * factor.view(-1, *[1] * (weight.dim() - 1))
    return fused
