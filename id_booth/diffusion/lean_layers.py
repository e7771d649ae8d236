"""Frozen convolutional layers that keep less for the backward pass: the same results in less memory.

What a layer keeps is what its own weights' gradients would need. Here no weight of them is trained, so a
convolution needs nothing but its weights (PyTorch keeps its input all the same), and a group norm with its
SiLU needs its input alone, since both are cheap to compute again.
"""

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


def make_lean(network):
    """Let the convolutions and residual blocks of a frozen network (UNet, VAE) keep less, in place.

    Names, weights and results stay. A residual block of another kind than Stable Diffusion's is left alone.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and is_plain_convolution(module):
            module.__class__ = LeanConv2d
        elif type(module) is ResnetBlock2D and is_plain_block(module):
            module.__class__ = LeanResnetBlock2D


def is_plain_convolution(layer):
    """Whether a convolution pads with zeros, by numbers."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def is_plain_block(block):
    """Whether a residual block is of Stable Diffusion's kind: SiLU, no resampling, the time added if any."""
    resampled = block.upsample is not None or block.downsample is not None
    adds_time = block.time_emb_proj is None or block.time_embedding_norm == "default"
    return (
        isinstance(block.nonlinearity, nn.SiLU)
        and not resampled
        and not block.skip_time_act
        and adds_time
        and block.dropout.p == 0
    )


class LeanConv2d(nn.Conv2d):
    """A convolution that keeps its weights alone, as long as they are frozen."""

    def forward(self, inputs):
        """As nn.Conv2d."""
        if not only_input_learns(self, inputs):
            return super().forward(inputs)
        return FrozenConvolution.apply(
            inputs, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class LeanResnetBlock2D(ResnetBlock2D):
    """diffusers' residual block with norms and SiLUs that keep their inputs alone."""

    def forward(self, input_tensor, temb=None):
        """(B, C, h, w) of (B, C', h, w) and, in a UNet, the time embedding (B, T)."""
        hidden = self.conv1(norm_silu(self.norm1, input_tensor))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = self.conv2(norm_silu(self.norm2, hidden))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return (shortcut + hidden) / self.output_scale_factor


def norm_silu(norm, inputs):
    """silu(norm(inputs)) of an nn.GroupNorm; in training its input is all that is kept."""
    if not only_input_learns(norm, inputs):
        return F.silu(norm(inputs))
    return NormSilu.apply(inputs, norm.num_groups, norm.weight, norm.bias, norm.eps)


def only_input_learns(layer, inputs):
    """Whether a gradient is wanted, and for the input alone."""
    frozen = not any(parameter.requires_grad for parameter in layer.parameters())
    return frozen and torch.is_grad_enabled() and inputs.requires_grad


class FrozenConvolution(torch.autograd.Function):
    """conv2d with a gradient for its input only."""

    @staticmethod
    def forward(context, inputs, weight, bias, *geometry):
        """As torch.nn.functional.conv2d; ``geometry``: stride, padding, dilation, groups."""
        context.save_for_backward(weight)
        context.shape, context.geometry = inputs.shape, geometry
        return F.conv2d(inputs, weight, bias, *geometry)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        """The transposed convolution of the gradient."""
        (weight,) = context.saved_tensors
        stride, padding, dilation, groups = context.geometry
        # The input's values are not read, but in its memory format the gradient is computed: in its own.
        last = gradient.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        own = {"dtype": gradient.dtype, "device": gradient.device}
        inputs = torch.empty(context.shape, memory_format=layout, **own)
        geometry = (stride, padding, dilation, False, (0, 0), groups)
        wanted = (True, False, False)
        found = torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *geometry, wanted)
        return found[0], *[None] * 6


class NormSilu(torch.autograd.Function):
    """silu(group_norm(x)) with a gradient for x only, computed again in the backward pass."""

    @staticmethod
    def forward(context, inputs, *norm):
        """``norm``: groups, weight, bias, eps, as torch.nn.functional.group_norm takes them."""
        context.save_for_backward(inputs)
        context.norm = norm
        return F.silu(F.group_norm(inputs, *norm))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        """The norm once more, and what autograd computes for the two: by its functions, not within itself."""
        inputs = context.saved_tensors[0].contiguous()
        groups, weight, bias, eps = context.norm
        sizes = (*inputs.shape[:2], inputs[0, 0].numel(), groups)
        hidden, mean, rstd = torch.native_group_norm(inputs, weight, bias, *sizes, eps)
        gradient = torch.ops.aten.silu_backward(gradient.contiguous(), hidden)
        own = (mean, rstd, weight, *sizes, [True, False, False])
        return torch.ops.aten.native_group_norm_backward(gradient, inputs, *own)[0], *[None] * 4
