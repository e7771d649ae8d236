"""LoRA files of any tool, taken apart: which matrices change which layer, and by how much.

Reads the files of ``train_id_booth.py``, of diffusers (the published checkpoints, older styles of keys) and
of kohya's scripts (OneTrainer, LyCORIS' LoCon), with the strength their own tools give them: alpha / rank by
layer, patterns, rank-stabilised, DoRA. What is no LoRA (LoHa, LoKr, Tucker cores, ...) is refused by name.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from id_booth.diffusion.lora_names import kohya_modules
from id_booth.diffusion.stacked_lora import LORA_FILE
from utils.errors import UserError, one_line
from utils.files import sha256_file

MAX_LORA = 4 * 2**30  # bytes; rank 256 in every layer of Stable Diffusion 2.1 takes 0.8 GiB
DOWN, UP, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
KOHYA_KINDS = {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": MAGNITUDE, "alpha": "alpha"}
# Repeated groups, or many repetitions, can keep a pattern busy for ever.
SLOW_PATTERN = re.compile(r"\)[*+{]|(?:[*+{].*){4}", re.DOTALL)


@dataclass(frozen=True)
class Lora:
    """A LoRA file in memory.

    ``layers`` maps a part ("unet", "text_encoder", ...) to module name to its tensors: "lora_A" (rank, in),
    "lora_B" (out, rank), both with two more dimensions for convolutions, and for DoRA
    "lora_magnitude_vector" (out). ``scales`` has a factor for each (part, module). ``base_fingerprint`` and
    ``base_family`` are what training noted of its base model, None in files of others.
    """

    path: Path
    sha256: str
    layers: dict
    scales: dict
    base_fingerprint: str | None = None
    base_family: str | None = None


def lora_file(path):
    """The weight file of a checkpoint folder, or the file itself."""
    path = Path(path)
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such LoRA; train it first or name another checkpoint")
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: only safetensors files are read; save the LoRA as safetensors")
    return file


def read_lora(path, base=None):
    """Read and take apart a LoRA file or checkpoint folder.

    Args:
        base: BaseModel, whose layers the names in kohya's files are looked up in; None reads none of these.

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
        good = all(usable(key, tensor) for key, tensor in tensors.items())
    except Exception as error:  # SafetensorError, a type of number that torch lacks or cannot convert, ...
        reason = one_line(error)[:200]
        raise UserError(f"{file}: not a readable LoRA file ({reason}); delete it and train again") from error
    if not good:
        raise UserError(f"{file}: holds values that are not finite; delete it and train again")
    layers, alphas = take_apart(tensors, base, file)
    scales = read_scales(layers, alphas, metadata, file)
    notes = (header.get("base_fingerprint"), header.get("base_family"))
    return Lora(file, sha256_file(file), layers, scales, *notes)


def usable(key, tensor):
    """Whether all values are finite floats (8-bit types know no isfinite); an alpha may be an integer."""
    counts = tensor.is_floating_point() or (key.endswith(".alpha") and not tensor.is_complex())
    return counts and bool(torch.isfinite(tensor.float()).all())


def take_apart(tensors, base, file):
    """(layers, alphas) of a state dict in any style: layers as in Lora, alphas by (part, module)."""
    try:
        kohya = all(key.startswith(("lora_unet_", "lora_te")) for key in tensors)
        if kohya and base is None:
            raise ValueError("in kohya's form already")
        layers, alphas = kohya_layers(tensors, base) if kohya else (diffusers_layers(tensors), {})
        for part, modules in layers.items():
            check_layers(part, modules)
    except Exception as error:  # the library's converters trust their input, and fail in any way
        reason = one_line(error)[:200]
        raise UserError(f"{file}: not a Stable Diffusion LoRA ({reason}); name another file") from error
    if not layers:
        raise UserError(f"{file}: holds no LoRA layers for UNet or text encoder; name another file")
    return layers, alphas


def kohya_layers(tensors, base):
    """:func:`take_apart` for kohya's keys; a layer that ``base`` has not keeps its name in the file."""
    known, layers, alphas = kohya_modules(base), {}, {}
    for key, tensor in tensors.items():
        name, _, kind = key.partition(".")
        if kind not in KOHYA_KINDS:
            raise ValueError(f"{key}: a method other than LoRA")
        part, module = known.get(name, ("unet" if name.startswith("lora_unet_") else "text_encoder", name))
        if kind == "alpha":
            alphas[part, module] = float(tensor.item())
            continue
        if kind == "dora_scale" and tensor.ndim > 1 and tensor.shape[0] == 1 < tensor.numel():
            raise ValueError(f"{key}: DoRA along the inputs of a layer")
        layers.setdefault(part, {}).setdefault(module, {})[KOHYA_KINDS[kind]] = tensor
    return layers, {place: alpha for place, alpha in alphas.items() if place[1] in layers.get(place[0], {})}


def diffusers_layers(tensors):
    """:func:`take_apart` for the keys of diffusers and peft, old and new."""
    from diffusers.utils import state_dict_utils

    layers, parts = {}, {key.partition(".")[0] for key in tensors}
    if strange := parts - {"unet", "text_encoder", "text_encoder_2"}:
        raise ValueError(
            f"keys begin with {min(strange)!r}, not with unet or text_encoder: load it with peft or into the "
            "UNet alone, and save it by pipe.save_lora_weights"
        )
    for part in sorted(parts):
        own = {key[len(part) + 1 :]: t for key, t in tensors.items() if key.startswith(part + ".")}
        if part == "unet":
            own = state_dict_utils.convert_unet_state_dict_to_peft(own)
        else:
            own = state_dict_utils.convert_state_dict_to_diffusers(own)
            own = state_dict_utils.convert_state_dict_to_peft(own)
        for key, tensor in own.items():
            module, _, kind = key.removesuffix(".weight").rpartition(".")
            if kind not in (DOWN, UP, MAGNITUDE):
                raise ValueError(f"unknown key {part}.{key}")
            layers.setdefault(part, {}).setdefault(module, {})[kind] = tensor
    return layers


def check_layers(part, modules):
    """Refuse layers that are not whole."""
    for module, weights in modules.items():
        if not {DOWN, UP} <= set(weights):
            raise ValueError(f"half a layer at {module}")
        pair = weights[DOWN], weights[UP]
        if any(matrix.ndim not in (2, 4) or not len(matrix) for matrix in pair):
            raise ValueError(f"no matrices at {module}")
    if len({MAGNITUDE in weights for weights in modules.values()}) > 1:
        raise ValueError(f"DoRA in some layers of {part} and not in others")


# ------------------------------------------------------------------------------------------- strength


def read_scales(layers, alphas, metadata, file):
    """(part, module) -> factor of its update; UserError when the file's notes on it make no sense."""
    scales = {}
    try:
        for part, modules in layers.items():
            notes = {
                key.removeprefix(part + "."): v for key, v in metadata.items() if key.startswith(part + ".")
            }
            noted = NotedAlpha(notes)
            for module, weights in modules.items():
                rank = len(weights[DOWN])
                if (part, module) in alphas:
                    scales[part, module] = (alphas[part, module] or rank) / rank  # kohya: 0 means the rank
                else:
                    scales[part, module] = noted.scale(module, rank)
    except (TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError, re.error) as error:
        raise UserError(f"{file}: its adapter metadata is damaged ({one_line(error)[:200]})") from error
    if not all(map(math.isfinite, scales.values())):
        raise UserError(f"{file}: its adapter metadata is damaged (alpha is not finite)")
    return scales


class NotedAlpha:
    """The alpha of each layer by peft's notes in a file: one, and patterns for some layers.

    A pattern is a regular expression for a layer's name or the end of it, from a dot on; the first that
    matches counts. ValueError for one that could take for ever.
    """

    def __init__(self, notes):
        self.alpha, self.root = notes.get("lora_alpha"), bool(notes.get("use_rslora"))
        patterns = notes.get("alpha_pattern") or {}
        if slow := next(filter(SLOW_PATTERN.search, patterns), None):
            raise ValueError(f"alpha_pattern {slow[:80]!r} is too intricate")
        self.patterns = [(re.compile(rf"(.*\.)?({key})$"), alpha) for key, alpha in patterns.items()]

    def scale(self, module, rank):
        """alpha / rank (alpha / sqrt(rank) for rank-stabilised LoRA); 1 where the file is silent."""
        found = (alpha for pattern, alpha in self.patterns if pattern.match(module))
        alpha = next(found, rank if self.alpha is None else self.alpha)
        return float(alpha) / (rank**0.5 if self.root else rank)
