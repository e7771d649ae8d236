"""LoRAs of other tools: in each way of sampling, the update is the one their own tools compute, by hand."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.lora_files import load_lora, unload_lora
from id_booth.diffusion.lora_reading import read_lora
from id_booth.sampling.lora_stack import LoraStack, can_stack
from tests.tiny_base import make_tiny_lora
from utils.errors import UserError

NAME = "pytorch_lora_weights.safetensors"
LINEAR = re.compile(r"down.*(to_q|to_k|to_out\.0|ff\.net\.0\.proj|proj_in)$")
CONVOLUTION = "mid_block.resnets.0.conv1"
PROMPT = "photo of sks person"


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base_model(tiny_base)


@pytest.fixture(scope="module")
def places(base):
    """(part, module) of the layers that the LoRAs are on."""
    unet = [name for name, _ in base.unet.named_modules() if LINEAR.search(name)]
    text = [
        name for name, _ in base.text_encoder.named_modules() if name.endswith(("q_proj", "out_proj", "fc1"))
    ]
    return {"unet": unet, "convolution": [CONVOLUTION], "text_encoder": text}


class Recipe:
    """A LoRA file in the making, and the weights that it is to give, by hand."""

    def __init__(self, base, dtype=torch.float32):
        self.base, self.dtype = base, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.tensors, self.wanted = {}, {}

    def layer(self, part, module):
        return self.base.parts[part].get_submodule(module)

    def add(self, part, module, rank, keys, scale):
        """Add a layer; ``keys``: of its two matrices."""
        weight = self.layer(part, module).weight.detach()
        down = self.random(rank, *weight.shape[1:])
        up = self.random(len(weight), rank, *[1] * (weight.ndim - 2))
        for key, matrix in zip(keys, (down, up), strict=True):
            self.tensors[key] = matrix
        product = torch.einsum(
            "or...,rixy->oixy" if weight.ndim == 4 else "or,ri->oi", up.float().flatten(1), down.float()
        )
        self.wanted[part, module] = weight + scale * product

    def random(self, *shape):
        return (torch.randn(shape, generator=self.generator) * 0.3).to(self.dtype)

    def kohya(self, part, module, rank=4, alpha=None, scale=1.0, prefix="lora_te"):
        stem = "lora_unet_" if part == "unet" else f"{prefix}_text_model_"
        name = stem + module.replace(".", "_")
        self.add(part, module, rank, (f"{name}.lora_down.weight", f"{name}.lora_up.weight"), scale)
        if alpha is not None:
            self.tensors[f"{name}.alpha"] = alpha
        return name

    def dora(self, part, module, name):
        """Turn the last layer into DoRA: rows of the new weight get given lengths."""
        weight = self.wanted[part, module]
        rows = self.layer(part, module).weight.detach().flatten(1).norm(dim=1) * 1.2
        self.tensors[f"{name}.dora_scale"] = rows.view(-1, *[1] * (weight.ndim - 1))
        lengths = weight.flatten(1).norm(dim=1)
        self.wanted[part, module] = weight * (rows / lengths).view(-1, *[1] * (weight.ndim - 1))

    def save(self, folder, metadata=None):
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.clone().contiguous() for key, value in self.tensors.items()}
        save_file(tensors, folder / NAME, metadata={"format": "pt", **(metadata or {})})
        return folder / NAME


def kohya(
    base, places, alpha=None, scale=1.0, dtype=torch.float32, ranks=(4,), where=("unet",), prefix="lora_te"
):
    """kohya's file; ``alpha``: a tensor for all, ``scale``: what it comes to."""
    recipe = Recipe(base, dtype)
    for kind in where:
        part = "text_encoder" if kind == "text_encoder" else "unet"
        for number, module in enumerate(places[kind]):
            recipe.kohya(part, module, ranks[number % len(ranks)], alpha, scale, prefix)
    return recipe, {}


def text_encoder_of_peft(base, places):
    recipe = Recipe(base)
    for module in places["text_encoder"]:
        recipe.add("text_encoder", module, 2, [f"text_encoder.{module}.{key}" for key in PEFT], 1.0)
    return recipe, {}


def different_alphas(base, places):
    recipe = Recipe(base)
    for number, module in enumerate(places["unet"]):
        recipe.kohya("unet", module, 4, torch.tensor(1.0 + number), (1.0 + number) / 4)
    return recipe, {}


def mixed_ranks(base, places):
    recipe = Recipe(base)
    for number, module in enumerate(places["unet"]):
        recipe.kohya("unet", module, 2 + number, torch.tensor(4.0), 4 / (2 + number))
    return recipe, {}


def kohya_dora(base, places, where="unet"):
    recipe = Recipe(base)
    part = "text_encoder" if where == "text_encoder" else "unet"
    for module in places[where]:
        recipe.dora(part, module, recipe.kohya(part, module, 4, torch.tensor(2.0), 0.5))
    return recipe, {}


def diffusers(
    base, places, keys=("lora.down.weight", "lora.up.weight"), notes=None, scale=lambda module: 1.0
):
    recipe = Recipe(base)
    for module in places["unet"]:
        recipe.add("unet", module, 8, [f"unet.{module}.{key}" for key in keys], scale(module))
    return recipe, {"lora_adapter_metadata": json.dumps(notes)} if notes else {}


def processors(base, places):
    """Keys of early 2023."""
    recipe = Recipe(base)
    for module in places["unet"]:
        if module.endswith(("to_q", "to_k")):
            stem = "unet." + re.sub(r"\.(to_.)$", r".processor.\1_lora", module)
            recipe.add("unet", module, 4, (f"{stem}.down.weight", f"{stem}.up.weight"), 1.0)
    return recipe, {}


PEFT = ("lora_A.weight", "lora_B.weight")
ALPHA_16 = {"unet.r": 8, "unet.lora_alpha": 16}
BY_PATTERN = {"unet.r": 8, "unet.lora_alpha": 8, "unet.rank_pattern": {}}


def on_to_q(module):
    return 4.0 if module.endswith("to_q") else 1.0


CASES = {
    "kohya, alpha 2 of rank 4": lambda *a: kohya(*a, torch.tensor(2.0), 0.5),
    "kohya, alpha in bfloat16": lambda *a: kohya(*a, torch.tensor(1.0).bfloat16(), 0.25, torch.bfloat16),
    "kohya in float16": lambda *a: kohya(*a, torch.tensor(8.0).half(), 2.0, torch.float16),
    "kohya, int64 alpha": lambda *a: kohya(*a, torch.tensor(2), 0.5),
    "kohya, alpha of shape (1,)": lambda *a: kohya(*a, torch.tensor([2.0]), 0.5),
    "kohya without alpha": lambda *a: kohya(*a),
    "kohya, alpha 0, which means the rank": lambda *a: kohya(*a, torch.tensor(0.0), 1.0),
    "kohya, an alpha for each layer": different_alphas,
    "kohya, mixed ranks": mixed_ranks,
    "kohya, LoCon with a convolution": lambda *a: kohya(
        *a, torch.tensor(1.0), 0.25, where=("unet", "convolution")
    ),
    "kohya with text encoder": lambda *a: kohya(*a, torch.tensor(2.0), 0.5, where=("unet", "text_encoder")),
    "OneTrainer's lora_te1": lambda *a: kohya(
        *a, torch.tensor(2.0), 0.5, where=("unet", "text_encoder"), prefix="lora_te1"
    ),
    "kohya, text encoder alone": lambda *a: kohya(*a, torch.tensor(2.0), 0.5, where=("text_encoder",)),
    "kohya DoRA": kohya_dora,
    "kohya DoRA on a convolution": lambda *a: kohya_dora(*a, "convolution"),
    "kohya DoRA on the text encoder": lambda *a: kohya_dora(*a, "text_encoder"),
    "diffusers": diffusers,
    "peft's keys": lambda *a: diffusers(*a, PEFT),
    "peft's keys, text encoder": text_encoder_of_peft,
    "attention processors": processors,
    "alpha 16 of rank 8": lambda *a: diffusers(*a, PEFT, ALPHA_16, lambda _: 2.0),
    "rank-stabilised": lambda *a: diffusers(
        *a, PEFT, ALPHA_16 | {"unet.use_rslora": True}, lambda _: 16 / 8**0.5
    ),
    "alpha_pattern, a suffix": lambda *a: diffusers(
        *a, PEFT, BY_PATTERN | {"unet.alpha_pattern": {"to_q": 32}}, on_to_q
    ),
    "alpha_pattern, a regular expression": lambda *a: diffusers(
        *a, PEFT, BY_PATTERN | {"unet.alpha_pattern": {r".*attn\d.to_q": 32}}, on_to_q
    ),
    "alpha_pattern, the first of two": lambda *a: diffusers(
        *a, PEFT, BY_PATTERN | {"unet.alpha_pattern": {"attn[12].to_q": 32, "to_q": 64}}, on_to_q
    ),
    "alpha_pattern, a whole name": lambda *a: diffusers(
        *a,
        PEFT,
        BY_PATTERN | {"unet.alpha_pattern": {"^" + re.escape(a[1]["unet"][0]): 80}},
        lambda module: 10.0 if module == a[1]["unet"][0] else 1.0,
    ),
}


def answer(base):
    """What a prompt and noise come to in the networks as they are."""
    base.forget_prompts()
    generator = torch.Generator().manual_seed(1)
    side, channels = base.unet.config.sample_size, base.unet.config.in_channels
    latents = torch.randn(2, channels, side, side, generator=generator)
    with torch.no_grad():
        text = base.encode([PROMPT, ""])
        return base.unet(latents, torch.tensor([300, 300]), **text.unet_arguments()).sample


def by_hand(base, wanted):
    """:func:`answer` of networks with the wanted weights."""
    kept = {
        place: copy.deepcopy(base.parts[place[0]].get_submodule(place[1]).weight.data) for place in wanted
    }
    for (part, module), weight in wanted.items():
        base.parts[part].get_submodule(module).weight.data = weight
    result = answer(base)
    for (part, module), weight in kept.items():
        base.parts[part].get_submodule(module).weight.data = weight
    return result


def stacked(base, file):
    lora = read_lora(file, base)
    with LoraStack(base, [lora, lora]) as stack:
        stack.choose([1, 0], guided=False)
        return answer(base)


@pytest.mark.parametrize("name", CASES)
def test_all_ways_of_sampling_give_what_the_file_means(base, places, tmp_path, name):
    recipe, metadata = CASES[name](base, places)
    file, plain = recipe.save(tmp_path / "lora", metadata), answer(base)
    expected, results = by_hand(base, recipe.wanted), {}
    for way, fuse in (("fused", True), ("attached", False)):
        load_lora(base, file, fuse=fuse)
        results[way] = answer(base)
        unload_lora(base)
    if can_stack(read_lora(file, base)):
        results["stacked"] = stacked(base, file)
    assert torch.equal(answer(base), plain)
    assert (expected - plain).abs().max() > 1e-2
    for way, result in results.items():
        assert torch.allclose(result, expected, atol=2e-4), way
    stacks = all(part == "unet" and weight.ndim == 2 for (part, _), weight in recipe.wanted.items())
    assert ("stacked" in results) == (stacks and "DoRA" not in name)


def change_kind(new):
    """Another method's key in the place of each down matrix."""

    def change(tensors):
        return {key.replace("lora_down.weight", new): value for key, value in tensors.items()}

    return change


def added(**tensors):
    return lambda old: old | {name.replace("__", "."): value for name, value in tensors.items()}


def renamed(before, after):
    return lambda old: {key.replace(before, after): value for key, value in old.items()}


def only_one_dora(old):
    name = next(iter(old)).partition(".")[0]
    return old | {f"{name}.dora_scale": torch.ones(len(old[f"{name}.lora_up.weight"]), 1)}


def dora_along_inputs(old):
    downs = {key: value for key, value in old.items() if key.endswith("lora_down.weight")}
    return old | {
        key.replace("lora_down.weight", "dora_scale"): torch.ones(1, value.shape[1])
        for key, value in downs.items()
    }


FIRST = "lora_unet_down_blocks_0_attentions_0_proj_in"
REFUSED = {
    "LoHa": (change_kind("hada_w1_a"), "hada_w1_a: a method other than LoRA"),
    "LoKr": (change_kind("lokr_w1"), "lokr_w1: a method other than LoRA"),
    "OFT": (change_kind("oft_blocks"), "oft_blocks: a method other than LoRA"),
    "a Tucker core": (added(**{f"{FIRST}__lora_mid.weight": torch.ones(4, 4)}), "lora_mid.weight: a method"),
    "norms": (added(**{f"{FIRST}__w_norm": torch.ones(4)}), "w_norm: a method other than LoRA"),
    "a difference": (added(**{f"{FIRST}__diff": torch.ones(4)}), "diff: a method other than LoRA"),
    "a trained scalar": (added(**{f"{FIRST}__scalar": torch.ones(1)}), "scalar: a method other than LoRA"),
    "an embedding beside it": (added(bundle_emb__x=torch.ones(4)), "begin with 'bundle_emb'"),
    "DoRA in one layer": (only_one_dora, "DoRA in some layers of unet"),
    "DoRA along the inputs": (dora_along_inputs, "DoRA along the inputs"),
    "two alphas of a layer": (added(**{f"{FIRST}__alpha": torch.ones(2)}), "not a Stable Diffusion LoRA"),
    "alpha that is not finite": (added(**{f"{FIRST}__alpha": torch.tensor(float("nan"))}), "not finite"),
    "half of a layer": (lambda old: dict(list(old.items())[:1]), "half a layer at"),
    "a layer that is not here": (renamed("down_blocks_0", "down_blocks_7"), "no such layer"),
    "a second text encoder": (renamed("lora_unet", "lora_te2"), "no such layer"),
    "peft's own saving": (renamed("lora_unet_", "base_model.model."), "begin with 'base_model'"),
    "the UNet's own saving": (renamed("lora_unet_", "mid_block."), "begin with 'mid_block'"),
}


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_lora_is_refused_by_name(base, places, tmp_path, name, fuse):
    change, message = REFUSED[name]
    recipe, _ = kohya(base, places)
    recipe.tensors = change(recipe.tensors)
    file, plain = recipe.save(tmp_path / "lora"), answer(base)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_lora(base, file, fuse=fuse)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert torch.equal(answer(base), plain)


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(\w*\.?)*x", ".*.*.*.*x", "[", "(unclosed", "to_q)|(x"])
def test_patterns_that_would_not_end_or_are_none(base, tiny_base, tmp_path, pattern):
    make_tiny_lora(tmp_path, tiny_base)
    notes = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {pattern: 4}})}
    save_file(load_file(tmp_path / NAME), tmp_path / NAME, metadata=notes)
    try:
        read_lora(tmp_path, base)
    except UserError as error:
        assert "adapter metadata is damaged" in str(error)
    else:
        assert pattern == "to_q)|(x"  # makes sense where it stands
