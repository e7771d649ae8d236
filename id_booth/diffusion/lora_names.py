"""What layers are called in the LoRA files of kohya's scripts, ComfyUI and A1111.

A prefix for the network ("lora_unet", "lora_te", for two text encoders "lora_te1" and "lora_te2") and the
layer's path with underscores for dots. The path is that of diffusers; in the UNet of SDXL, that of the
original code (input_blocks, middle_block, output_blocks).
"""

import re

# Within a block: kinds of layers by their place in the original code, and the parts of a residual block.
PLACES = {"resnets": 0, "attentions": 1}
RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
IN_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")
IN_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
RESAMPLING = re.compile(r"(?:down_blocks\.(\d+)\.downsamplers|up_blocks\.(\d+)\.upsamplers)\.0\.conv")


def original_path(module):
    """A layer of SDXL's UNet in the original code, from its path in diffusers; other paths as they are."""
    if match := IN_BLOCK.fullmatch(module):
        side, block, kind, layer, rest = match.groups()
        # Three places to a block: on the way down the third is the resampling.
        index = 3 * int(block) + int(layer) + (side == "down")
        blocks = "input_blocks" if side == "down" else "output_blocks"
        return f"{blocks}.{index}.{PLACES[kind]}.{RESNET_PARTS.get(rest, rest)}"
    if match := IN_MIDDLE.fullmatch(module):
        kind, layer, rest = match.groups()
        return f"middle_block.{2 * int(layer) + PLACES[kind]}.{RESNET_PARTS.get(rest, rest)}"
    if match := RESAMPLING.fullmatch(module):
        down, up = match.groups()
        return f"input_blocks.{3 * int(down) + 3}.0.op" if down else f"output_blocks.{3 * int(up) + 2}.2.conv"
    return OUTSIDE.get(module, module)


def kohya_name(family, part, module):
    """The name of a layer in files for a family of base models (a class of ``base_model``, or one of it)."""
    if part == "unet":
        path = original_path(module) if family.original_names else module
    else:
        path = module.removeprefix("text_model.")
        path = path if path == "text_projection" else f"text_model.{path}"
    return f"{family.kohya_prefixes[part]}_{path}".replace(".", "_")


def kohya_modules(base):
    """{name in a file: (part, module)} for the layers of a BaseModel, in every spelling that is in use."""
    known = {}
    for part, network in base.parts.items():
        for module, _ in network.named_modules():
            name = kohya_name(base, part, module)
            diffusers = f"lora_unet_{module}".replace(".", "_")  # also for SDXL, by other tools
            known[diffusers if part == "unet" else name.replace("lora_te_", "lora_te1_")] = (part, module)
            known[name] = (part, module)
    return known
