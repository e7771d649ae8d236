"""Reading LoRA files and putting them into the base model, one after another, without reloading the base.

Reads what ``train_id_booth.py`` writes and every diffusers LoRA for Stable Diffusion (the published
checkpoints, older key styles, kohya's), with rank and alpha from the adapter metadata, DoRA included.
"""

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from id_booth.diffusion.base_model import quiet_libraries
from id_booth.diffusion.stacked_lora import LORA_FILE
from utils.errors import UserError, one_line
from utils.files import read_json, sha256_file
from utils.identities import natural_key

ADAPTER = "identity"
PARTS = ("unet", "text_encoder")
MAX_LORA = 4 * 2**30  # bytes; rank 256 in every layer of Stable Diffusion 2.1 takes 0.8 GiB
# What training notes of the recogniser behind the identity term: content hash, or "none" without such a term.
LOSS_RECOGNISER, NO_RECOGNISER = "loss_recogniser_sha256", "none"


@dataclass(frozen=True)
class Lora:
    """A LoRA file in memory.

    ``layers`` maps a part ("unet", "text_encoder") to module name to its tensors: "lora_A" (rank, in),
    "lora_B" (out, rank), and for DoRA "lora_magnitude_vector" (out). ``scales`` has a factor for each module.
    ``base_fingerprint`` is what training noted of its base model, None in files of others.
    """

    path: Path
    sha256: str
    layers: dict
    scales: dict
    base_fingerprint: str | None = None


def checkpoints(folder):
    """Complete checkpoint folders of an identity, oldest first; a LoRA right in the folder counts too."""
    found = [path for path in Path(folder).glob("checkpoint-*") if (path / LORA_FILE).is_file()]
    if found:
        return sorted(found, key=lambda path: natural_key(path.name))
    return [Path(folder)] if (Path(folder) / LORA_FILE).is_file() else []


def lora_file(path):
    """The weight file of a checkpoint folder, or the file itself."""
    path = Path(path)
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such LoRA; train it first or name another checkpoint")
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: only safetensors files are read; save the LoRA as safetensors")
    return file


def read_lora(path):
    """Read and take apart a LoRA file or checkpoint folder.

    Raises:
        UserError: missing, broken, not finite, or not a LoRA.
    """
    file = lora_file(path)
    if file.stat().st_size > MAX_LORA:
        raise UserError(f"{file}: larger than {MAX_LORA // 2**30} GiB, which no LoRA is; name another file")
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as stream:
            header = stream.metadata() or {}
        metadata = json.loads(header.get("lora_adapter_metadata", "{}"))
        good = all(tensor.is_floating_point() and finite(tensor) for tensor in tensors.values())
    except Exception as error:  # SafetensorError, a type of number that torch lacks or cannot convert, ...
        reason = one_line(error)[:200]
        raise UserError(f"{file}: not a readable LoRA file ({reason}); delete it and train again") from error
    if not good:
        raise UserError(f"{file}: holds values that are not finite; delete it and train again")
    layers, alphas = split_layers(tensors, file)
    scales = read_scales(layers, alphas, metadata, file)
    return Lora(file, sha256_file(file), layers, scales, header.get("base_fingerprint"))


def finite(tensor):
    """Whether all values are finite, in any floating type (8-bit ones know no isfinite)."""
    return bool(torch.isfinite(tensor.float()).all())


def read_scales(layers, alphas, metadata, file):
    """(part, module) -> factor of its update; UserError when the file's notes on it make no sense."""
    try:
        scales = {
            (part, module): layer_scale(module, weights["lora_A"].shape[0], part, metadata, alphas)
            for part, modules in layers.items()
            for module, weights in modules.items()
        }
    except (TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise UserError(f"{file}: its adapter metadata is damaged ({one_line(error)[:200]})") from error
    if not all(map(math.isfinite, scales.values())):
        raise UserError(f"{file}: its adapter metadata is damaged (alpha is not finite)")
    return scales


def split_layers(tensors, file):
    """Sort a state dict of any diffusers key style into part -> module -> tensors; kohya's alphas besides."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    layers, alphas = {}, None
    try:
        tensors, alphas = StableDiffusionPipeline.lora_state_dict(dict(tensors))
        converters = (convert_unet_state_dict_to_peft, convert_state_dict_to_peft)
        for part, convert in zip(PARTS, converters, strict=True):
            own = {key[len(part) + 1 :]: t for key, t in tensors.items() if key.startswith(part + ".")}
            for key, tensor in (convert(own) if own else {}).items():
                module, _, kind = key.removesuffix(".weight").rpartition(".")
                if kind not in ("lora_A", "lora_B", "lora_magnitude_vector"):
                    raise ValueError(f"unknown key {part}.{key}")
                layers.setdefault(part, {}).setdefault(module, {})[kind] = tensor
        for modules in layers.values():
            for module, weights in modules.items():
                if not {"lora_A", "lora_B"} <= set(weights):
                    raise ValueError(f"half a layer at {module}")
                pair = weights["lora_A"], weights["lora_B"]
                if any(matrix.ndim not in (2, 4) or not len(matrix) for matrix in pair):
                    raise ValueError(f"no matrices at {module}")
    except Exception as error:  # the library's converters trust their input, and fail in any way
        reason = one_line(error)[:200]
        raise UserError(f"{file}: not a Stable Diffusion LoRA ({reason}); name another file") from error
    if not layers:
        raise UserError(f"{file}: holds no LoRA layers for UNet or text encoder; name another file")
    return layers, alphas or {}


def layer_scale(module, rank, part, metadata, alphas):
    """alpha / rank of a layer (alpha / sqrt(rank) for rank-stabilised LoRA); 1 when the file is silent."""
    for key, alpha in alphas.items():
        if key.startswith(part) and module == key.removeprefix(part + ".").removesuffix(".alpha"):
            return float(alpha) / rank
    options = {key.removeprefix(part + "."): v for key, v in metadata.items() if key.startswith(part + ".")}
    alpha = options.get("lora_alpha", rank)
    for pattern, value in (options.get("alpha_pattern") or {}).items():
        if module == pattern or module.endswith("." + pattern):
            alpha = value
    return float(alpha) / (rank**0.5 if options.get("use_rslora") else rank)


def target_layer(model, module):
    """The layer called ``module``, also under the text encoder's older names; None if there is none."""
    for name in (module, module.removeprefix("text_model."), "text_model." + module):
        with contextlib.suppress(AttributeError):
            layer = model.get_submodule(name)
            return getattr(layer, "base_layer", layer)
    return None


def check_fits(base, lora):
    """Refuse a LoRA that belongs to another base model, naming both."""
    trained_on = training_record(lora.path).get("base_model", "another base model")
    for part, modules in lora.layers.items():
        for module, weights in modules.items():
            layer = target_layer(base.parts[part], module)
            weight = getattr(layer, "weight", None)
            need = None if weight is None or weight.ndim < 2 else weight.flatten(1).shape
            have = (weights["lora_B"].shape[0], weights["lora_A"].flatten(1).shape[1])
            wrong = weights["lora_A"].shape[0] != weights["lora_B"].flatten(1).shape[1]
            magnitude = weights.get("lora_magnitude_vector")
            if need != torch.Size(have) or wrong or (magnitude is not None and magnitude.numel() != need[0]):
                why = "no such layer" if need is None else f"{tuple(need)} here, {have} in the file"
                raise UserError(
                    f"{lora.path}: a LoRA of {trained_on}, does not fit {base.name} ({part}.{module}: "
                    f"{why}); use the base model it was trained on"
                )
    check_fingerprint(base, lora, trained_on)


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
    if noted and noted.split(":")[0] == here.split(":")[0] == "sha256" and noted != here:
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
    lora = read_lora(path)
    check_fits(base, lora)
    unload_lora(base)
    if fuse is None:
        fuse = base.unet.dtype == torch.float32
    (fuse_lora if fuse else attach_lora)(base, lora)
    if "text_encoder" in lora.layers:
        base.forget_prompts()
        base.undo.callback(base.forget_prompts)
    return lora


def unload_lora(base):
    """Bring the base model's own weights back, to the bit."""
    base.undo.close()


def attach_lora(base, lora):
    """Let diffusers put the LoRA beside the weights; UserError for what its own reader cannot take."""
    try:
        with quiet_libraries():
            base.pipe.load_lora_weights(lora.path.parent, weight_name=lora.path.name, adapter_name=ADAPTER)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        base.pipe.unload_lora_weights()
        raise UserError(f"{lora.path}: diffusers cannot attach it ({one_line(error)[:200]})") from error
    base.undo.callback(base.pipe.unload_lora_weights)


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
    down, up = (weights[kind].to(weight.device, torch.float32) for kind in ("lora_A", "lora_B"))
    fused = weight.float() + scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    if "lora_magnitude_vector" in weights:
        magnitude = weights["lora_magnitude_vector"].to(weight.device, torch.float32).flatten()
        factor = magnitude / fused.flatten(1).norm(dim=1)
        fused = fused * factor.view(-1, *[1] * (weight.dim() - 1))
    return fused
