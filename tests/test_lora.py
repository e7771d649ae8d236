"""Stacked adapters: each item uses its own, files are diffusers', clipping is per identity."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from id_booth.diffusion.stacked_lora import (
    LORA_FILE,
    add_stacked_lora,
    clip_per_slot,
    flatten_adapters,
    load_slot_state,
    remove_stacked_lora,
    reset_slot,
    save_lora,
    slot_state,
)

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def pipe(tiny_base):
    return StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)


def randomise(layers):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name in sorted(layers):
            for parameter in (layers[name].down, layers[name].up):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if layers[name].dora:
                layers[name].magnitude.mul_(1.3)


def inputs(pipe, count):
    generator = torch.Generator().manual_seed(1)
    config = pipe.unet.config
    x = torch.randn(count, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    context = torch.randn(count, 7, config.cross_attention_dim, generator=generator)
    return x, torch.full((count,), 500), context


def stacked(pipe, cohort, dora=False):
    unet = copy.deepcopy(pipe.unet)
    layers, slots = add_stacked_lora(unet, TARGETS, cohort, rank=3, alpha=6.0, dora=dora)
    for slot in range(cohort):
        reset_slot(layers, slot, torch.Generator().manual_seed(slot))
    return unet, layers, slots


@pytest.mark.parametrize("dora", [False, True])
def test_fresh_adapters_change_nothing(pipe, dora):
    unet, _, slots = stacked(pipe, 2, dora)
    slots.index = torch.tensor([0, 1])
    with torch.no_grad():
        assert torch.allclose(unet(*inputs(pipe, 2)).sample, pipe.unet(*inputs(pipe, 2)).sample, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_saved_file_gives_the_same_output_in_diffusers(pipe, tmp_path, dora):
    unet, layers, slots = stacked(pipe, 2, dora)
    randomise(layers)
    for slot in range(2):
        folder = tmp_path / str(slot)
        folder.mkdir()
        save_lora(folder / LORA_FILE, {"unet": layers}, slot, 3, 6.0, dora)
        plain = copy.deepcopy(pipe)
        plain.load_lora_weights(folder)
        slots.index = torch.tensor([slot, slot])
        with torch.no_grad():
            ours, theirs = unet(*inputs(pipe, 2)).sample, plain.unet(*inputs(pipe, 2)).sample
            base = pipe.unet(*inputs(pipe, 2)).sample
        assert torch.allclose(ours, theirs, atol=2e-5)
        assert (ours - base).abs().max() > 1e-3
        adapter = plain.unet.peft_config["default_0"]
        assert isinstance(adapter, LoraConfig) and (adapter.r, adapter.lora_alpha) == (3, 6.0)
        assert adapter.use_dora == dora


def test_each_item_goes_through_its_own_adapter(pipe):
    unet, layers, slots = stacked(pipe, 3)
    randomise(layers)
    x, t, context = inputs(pipe, 3)
    slots.index = torch.tensor([2, 0, 1])
    with torch.no_grad():
        together = unet(x, t, context).sample
        for item, slot in enumerate([2, 0, 1]):
            slots.index = torch.tensor([slot])
            alone = unet(x, t, context).sample[item]
            assert torch.allclose(together[item], alone, atol=1e-5)


def test_state_round_trip_and_removal(pipe):
    unet, layers, _ = stacked(pipe, 2)
    randomise(layers)
    state = slot_state(layers, 1, "unet")
    load_slot_state(layers, 0, state, "unet")
    assert all(torch.equal(layer.down[0], layer.down[1]) for layer in layers.values())
    remove_stacked_lora(unet, layers)
    assert unet.state_dict().keys() == pipe.unet.state_dict().keys()


def test_initial_draws_depend_on_the_generator_alone(pipe):
    _, one, _ = stacked(pipe, 1)
    _, three, _ = stacked(pipe, 3)
    for name in one:
        assert torch.equal(one[name].down[0], three[name].down[0])
        assert not torch.equal(three[name].down[0], three[name].down[1])
        assert not one[name].up.any()


def test_clipping_is_torchs_for_each_identity():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4), (2, 5)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    scale = torch.tensor([10.0, 0.01])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient * scale.view(-1, *(1,) * (gradient.ndim - 1))
    for slot in range(2):
        alone = [torch.nn.Parameter(torch.zeros(shape[1:])) for shape in shapes]
        for single, gradient in zip(alone, gradients, strict=True):
            single.grad = gradient[slot] * scale[slot]
        torch.nn.utils.clip_grad_norm_(alone, 1.0)
        expected = [single.grad for single in alone]
        both = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
        for copy_, parameter in zip(both, parameters, strict=True):
            copy_.grad = parameter.grad.clone()
        clip_per_slot(both, 2, 1.0)
        for clipped, want in zip(both, expected, strict=True):
            assert torch.allclose(clipped.grad[slot], want, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_flat_adapters_train_as_separate_ones(pipe, dora):
    weights = []
    for flatten in (False, True):
        unet, layers, slots = stacked(pipe, 2, dora=dora)
        randomise(layers)
        parameters = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
        moved = [flatten_adapters(layers.values())] if flatten else parameters
        optimizer = torch.optim.AdamW(moved, lr=1e-2, fused=True)
        slots.index = torch.tensor([1, 0])
        for _ in range(2):
            unet(*inputs(pipe, 2)).sample.square().sum().backward()
            clip_per_slot(moved, 2, 0.5)
            optimizer.step()
            for parameter in moved:
                parameter.grad.zero_()
        weights.append([p.detach().clone() for p in parameters])
        remove_stacked_lora(unet, layers)
    for separate, flat in zip(*weights, strict=True):
        assert torch.allclose(separate, flat, atol=1e-5)
