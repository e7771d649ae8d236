"""Frozen layers that keep less: results and gradients stay, what is kept shrinks."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from id_booth.diffusion.lean_layers import LeanConv2d, LeanResnetBlock2D, make_lean
from id_booth.training.cohort_size import SavedTensors


@pytest.fixture(scope="module")
def networks():
    """(stock, lean) pairs of a UNet and a VAE with all kinds of layers."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
    pairs = {}
    for name, network in {"unet": unet, "vae": vae}.items():
        network.requires_grad_(False).eval()
        lean = copy.deepcopy(network)
        make_lean(lean)
        pairs[name] = (network, lean)
    return pairs


def call(name, network, inputs):
    """The network's output on a batch of latents."""
    if name == "vae":
        return network.decode(inputs).sample
    context = torch.ones(len(inputs), 3, 16, dtype=inputs.dtype)
    return network(inputs, torch.tensor([10] * len(inputs)), context).sample


def run(name, network, dtype=torch.float32):
    """Output, gradient of the input, and bytes kept for the backward pass."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 4, 8, 8, generator=generator).to(dtype).requires_grad_()
    with SavedTensors(network) as saved:
        output = call(name, network, inputs)
    weights = torch.randn(output.shape, generator=generator)
    (output.float() * weights).sum().backward()
    return output.detach(), inputs.grad, saved.bytes


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_lean_layers_give_the_same_and_keep_less(networks, name):
    stock, lean = networks[name]
    (output, gradient, kept), (lean_output, lean_gradient, lean_kept) = run(name, stock), run(name, lean)
    assert torch.equal(output, lean_output)
    assert torch.allclose(gradient, lean_gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max())
    assert lean_kept < {"unet": 0.75, "vae": 0.45}[name] * kept


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_lean_layers_in_half_precision(networks, name):
    half = [copy.deepcopy(network).to(torch.bfloat16) for network in networks[name]]
    (output, gradient, _), (lean_output, lean_gradient, _) = (run(name, n, torch.bfloat16) for n in half)
    assert output.dtype == lean_output.dtype and torch.equal(output, lean_output)
    assert torch.allclose(gradient, lean_gradient, atol=0.02 * gradient.abs().max())


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_lean_layers_keep_the_memory_format_of_a_gpu(networks, name, monkeypatch):
    """Channels last: cuDNN would else copy each gradient twice."""
    last = {"memory_format": torch.channels_last}
    stock, lean = (copy.deepcopy(network).to(**last) for network in networks[name])
    handed = []
    backward = torch.ops.aten.convolution_backward

    def watched(gradient, inputs, *rest):
        handed.append(gradient.is_contiguous(**last) == inputs.is_contiguous(**last))
        return backward(gradient, inputs, *rest)

    monkeypatch.setattr(torch.ops.aten, "convolution_backward", watched)
    (_, gradient, _), (_, lean_gradient, _) = run(name, stock), run(name, lean)
    assert torch.allclose(gradient, lean_gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max())
    assert handed and all(handed)


def test_names_and_weights_stay(networks):
    stock, lean = networks["unet"]
    assert list(stock.state_dict()) == list(lean.state_dict())
    kinds = {type(module) for module in lean.modules()}
    assert LeanConv2d in kinds and LeanResnetBlock2D in kinds


def test_layers_whose_weights_train_are_left_to_pytorch(networks):
    _, lean = networks["vae"]
    lean = copy.deepcopy(lean).requires_grad_(True)
    inputs = torch.randn(1, 4, 8, 8)
    lean.decode(inputs).sample.sum().backward()
    block = lean.decoder.up_blocks[0].resnets[0]
    assert all(parameter.grad is not None for parameter in block.parameters())
