"""Stacked adapters: each item uses its own, files are diffusers', clipping is per identity."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from id_booth.diffusion.stacked_lora import (
    LORA_FILE,
    Adapters,
    add_stacked_lora,
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
            slots.index = slot
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


def test_clipping_is_torchs_for_each_identity(pipe):
    _, layers, _ = stacked(pipe, 2)
    adapters = Adapters(layers.values())
    gradient = torch.randn(adapters.weights.shape, generator=torch.Generator().manual_seed(0))
    adapters.weights.grad.copy_(gradient * torch.tensor([[10.0], [1e-4]]))
    alone = [torch.nn.Parameter(torch.zeros(adapters.weights.shape[1])) for _ in range(2)]
    for single, row in zip(alone, adapters.weights.grad, strict=True):
        single.grad = row.clone()
    norms = [torch.nn.utils.clip_grad_norm_(single, 1.0) for single in alone]
    assert torch.allclose(adapters.clip(1.0), torch.stack(norms)) and norms[0] > 1 > norms[1]
    for single, row, clipped in zip(alone, adapters.rows, adapters.weights.grad, strict=True):
        assert torch.allclose(clipped, single.grad, atol=1e-6) and row.grad.data_ptr() == clipped.data_ptr()


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_train_as_separate_matrices_do(pipe, dora):
    weights = []
    for together in (False, True):
        unet, layers, slots = stacked(pipe, 2, dora=dora)
        randomise(layers)
        slots.index = torch.tensor([1, 0])
        owned = [p for layer in layers.values() for p in layer.parameters(recurse=False)]
        adapters = Adapters(layers.values()) if together else None
        optimizer = torch.optim.AdamW(adapters.rows if together else owned, lr=1e-2, fused=True)
        for _ in range(2):
            if together:
                adapters.activate(adapters.weights)
            unet(*inputs(pipe, 2)).sample.square().sum().backward()
            if together:
                adapters.clip(0.5)
            else:
                clip_by_hand(owned, 0.5)
            optimizer.step()
            for gradient in [adapters.weights.grad] if together else [p.grad for p in owned]:
                gradient.zero_()
        weights.append([p.detach().clone() for p in owned])
        remove_stacked_lora(unet, layers)
    for separate, flat in zip(*weights, strict=True):
        assert torch.allclose(separate, flat, atol=1e-5)


def clip_by_hand(parameters, max_norm):
    """Each slot's gradient over all matrices, clipped to a norm."""
    for slot in range(2):
        norm = sum(p.grad[slot].square().sum() for p in parameters).sqrt()
        for parameter in parameters:
            parameter.grad[slot] *= min(1, max_norm / (norm + 1e-6))


def test_half_precision_networks_compute_with_cast_adapters(pipe):
    """One cast for all, gradients in float32, and a fresh look at the weights with each activation."""
    unet, layers, slots = stacked(pipe, 2)
    randomise(layers)
    unet, adapters = unet.to(torch.bfloat16), None
    for layer in layers.values():
        layer.down.data, layer.up.data = layer.down.data.float(), layer.up.data.float()
    adapters = Adapters(layers.values())
    slots.index = torch.tensor([0, 1])
    x, t, context = inputs(pipe, 2)
    adapters.activate(adapters.weights.bfloat16())
    assert {part.dtype for layer in layers.values() for part in layer.active} == {torch.bfloat16}
    output = unet(x.bfloat16(), t, context.bfloat16()).sample
    output.float().square().sum().backward()
    assert adapters.weights.grad.dtype == torch.float32 and adapters.weights.grad.abs().sum(1).gt(0).all()
    with torch.no_grad():
        adapters.weights.zero_()
        adapters.activate(adapters.weights.bfloat16())
        plain = copy.deepcopy(pipe.unet).to(torch.bfloat16)(x.bfloat16(), t, context.bfloat16()).sample
        assert torch.equal(unet(x.bfloat16(), t, context.bfloat16()).sample, plain)


def test_finite_weights_are_told_by_identity(pipe):
    _, layers, _ = stacked(pipe, 3)
    adapters = Adapters(layers.values())
    assert adapters.finite() == [True] * 3
    next(iter(layers.values())).up[1, 0, 0] = float("inf")
    assert adapters.finite() == [True, False, True]
