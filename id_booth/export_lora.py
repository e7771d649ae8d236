"""A LoRA in the form that kohya's scripts, ComfyUI and A1111 read; diffusers reads both forms.

python -m id_booth.export_lora Trained_LoRA_Models/ID-Booth/ID_1/checkpoint-31-6400 ID_1.safetensors
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m id_booth.export_lora")

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from id_booth.diffusion.families import FAMILIES, family_by_width
from id_booth.diffusion.lora_files import noted, width_of_texts
from id_booth.diffusion.lora_names import kohya_name
from id_booth.diffusion.lora_reading import DOWN, MAGNITUDE, UP, read_lora
from id_booth.diffusion.stacked_lora import in_order
from utils.errors import UserError, run
from utils.files import atomic_write_bytes
from utils.progress import log


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lora", help="checkpoint folder or .safetensors file, in diffusers' form")
    parser.add_argument("output", help="the .safetensors file to write")
    options = parser.parse_args(argv)
    export_lora(options.lora, options.output)
    log(f"{options.output}: written")


def export_lora(path, output):
    """Write a LoRA in kohya's form: its names and alphas, and the notes of the file that it was.

    Args:
        path: checkpoint folder or file; output: path of a new .safetensors file.

    Raises:
        UserError: not a LoRA in diffusers' form, of a base model of no known family, or a file in the way.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: does not end in .safetensors; name a file that does")
    if os.path.exists(output):  # also of a name longer than names may be
        raise UserError(f"{output}: exists already; name a new file, or delete this one")
    lora = read_lora(path)
    family = family_of_lora(lora)
    with safe_open(lora.path, "pt") as stream:
        notes = {k: v for k, v in (stream.metadata() or {}).items() if k != "lora_adapter_metadata"}
    atomic_write_bytes(output, in_order(save(kohya_state(lora, family), kohya_notes(lora, family) | notes)))


def family_of_lora(lora):
    """The family of a LoRA's base model, by what training noted, else by the texts it attends to."""
    name = noted(lora.path, "base_family")
    known = next((family for family in FAMILIES if family.family == name), None)
    if family := known or family_by_width(width_of_texts(lora)):
        return family
    raise UserError(f"{lora.path}: does not say of which family its base model is; train it again")


def kohya_state(lora, family):
    """A Lora's tensors under kohya's names, an alpha beside each layer."""
    state = {}
    for part, modules in lora.layers.items():
        for module, weights in modules.items():
            name, rank = kohya_name(family, part, module), len(weights[DOWN])
            state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = weights[DOWN], weights[UP]
            state[f"{name}.alpha"] = torch.tensor(lora.scales[part, module] * rank)
            if MAGNITUDE in weights:
                ones = [1] * (weights[UP].ndim - 1)
                state[f"{name}.dora_scale"] = weights[MAGNITUDE].reshape(-1, *ones)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def kohya_notes(lora, family):
    """What kohya's tools note of a LoRA, as strings: how other programs know its base model and size."""
    unet = lora.layers.get("unet", {}) or next(iter(lora.layers.values()))
    rank = max(len(weights[DOWN]) for weights in unet.values())
    return {
        "format": "pt",
        "ss_base_model_version": family.kohya_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": json.dumps(rank),
        "ss_network_alpha": json.dumps(rank * max(lora.scales.values())),
    }


if __name__ == "__main__":
    run(main)
