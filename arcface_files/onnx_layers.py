"""The layers of a face recogniser, ONNX definition and torch functions: convolution, pooling, and their like.

Every function takes the node (attributes by name, and the graph's opset) and its inputs, None for an omitted
one, and returns a tensor. Definitions: onnx.ai/onnx/operators, opset 7 to today's.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

MOST_VALUES = 1000  # of a shape, of axes, of padding; networks have a dozen


class Unsupported(Exception):
    """An operator, or a use of one, that has no torch counterpart here."""


@dataclass(frozen=True)
class Node:
    """One operator of the graph: type, input and output names, attributes, and the graph's opset version."""

    op: str
    inputs: tuple
    outputs: tuple
    attributes: dict
    opset: int

    def get(self, name, default=None):
        """An attribute, or the default of the operator's definition."""
        return self.attributes.get(name, default)


def values(tensor_or_list):
    """Integers from an attribute or from a shape tensor; None stays None."""
    if isinstance(tensor_or_list, torch.Tensor):
        if tensor_or_list.numel() > MOST_VALUES:
            raise Unsupported(f"a shape of {tensor_or_list.numel()} numbers")
        return [int(value) for value in tensor_or_list.flatten().tolist()]
    return None if tensor_or_list is None else list(tensor_or_list)


def padding(node, x, kernel, strides, dilations):
    """(begin..., end...) padding of a convolution or pooling, `auto_pad` included."""
    spatial = x.dim() - 2
    mode = node.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * 2 * spatial
    if mode == "NOTSET":
        return list(node.get("pads", [0] * 2 * spatial))
    begin, end = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def torch_pads(pads):
    """ONNX padding (all begins, then all ends) in the order of torch.nn.functional.pad."""
    half = len(pads) // 2
    return [pads[i + side * half] for i in reversed(range(half)) for side in (0, 1)]


def window(node, x, kernel):
    """(strides, dilations, pads) of a convolution or pooling over `kernel`."""
    ones = [1] * (x.dim() - 2)
    strides, dilations = node.get("strides", ones), node.get("dilations", ones)
    return strides, dilations, padding(node, x, kernel, strides, dilations)


def conv(node, x, weight, bias=None):
    """Convolution in one or two dimensions, grouped, dilated, padded on any side."""
    if x.dim() not in (3, 4):
        raise Unsupported(f"Conv in {x.dim() - 2} dimensions")
    strides, dilations, pads = window(node, x, weight.shape[2:])
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        x, pads = functional.pad(x, torch_pads(pads)), [0] * 2 * half
    convolve = functional.conv1d if x.dim() == 3 else functional.conv2d
    return convolve(x, weight, bias, strides, pads[:half], dilations, node.get("group", 1))


def batch_normalization(node, x, scale, bias, mean, variance):
    """Normalisation by the stored statistics."""
    if node.get("training_mode", 0):
        raise Unsupported("BatchNormalization in training mode; export the network in eval mode")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


def prelu(node, x, slope):
    """PReLU; the slope broadcasts as ONNX says, from the last dimension."""
    if slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] and x.dim() > 1:
        return functional.prelu(x, slope.flatten())
    return torch.where(x >= 0, x, slope * x)


def max_pool(node, x):
    """Max pooling; padding never wins."""
    kernel = node.get("kernel_shape")
    strides, dilations, pads = window(node, x, kernel)
    if any(pads):
        x = functional.pad(x, torch_pads(pads), value=-math.inf)
    return functional.max_pool2d(x, kernel, strides, 0, dilations, bool(node.get("ceil_mode", 0)))


def average_pool(node, x):
    """Average pooling, with or without the padding in the count."""
    kernel = node.get("kernel_shape")
    strides, dilations, pads = window(node, x, kernel)
    if any(dilation != 1 for dilation in dilations):
        raise Unsupported("AveragePool with dilations")
    ceil = bool(node.get("ceil_mode", 0))
    if not any(pads):
        return functional.avg_pool2d(x, kernel, strides, 0, ceil)
    inside = torch.ones_like(x[:1, :1])
    fill = 1.0 if node.get("count_include_pad", 0) else 0.0
    share = functional.pad(inside, torch_pads(pads), value=fill)
    x = functional.pad(x, torch_pads(pads))
    pooled, counted = (functional.avg_pool2d(map_, kernel, strides, 0, ceil) for map_ in (x, share))
    return pooled / counted


def gemm(node, a, b, c=None):
    """alpha * A B + beta * C, with optional transposes."""
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    product = node.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + node.get("beta", 1.0) * c


def softmax(node, x):
    """Softmax along an axis; before opset 13 over all dimensions from `axis` on."""
    if node.opset >= 13:
        return torch.softmax(x, node.get("axis", -1))
    axis = node.get("axis", 1) % x.dim()
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


def lp_normalization(node, x):
    """Division by the 1- or 2-norm along an axis."""
    return x / torch.linalg.vector_norm(x, node.get("p", 2), node.get("axis", -1), keepdim=True)


def pad(node, x, pads=None, value=None, axes=None):
    """Constant, edge or reflecting padding."""
    pads, axes = values(node.get("pads") if pads is None else pads), values(axes)
    if axes is not None:
        full = [0] * 2 * x.dim()
        for place, axis in enumerate(axes):
            full[axis % x.dim()] = pads[place]
            full[axis % x.dim() + x.dim()] = pads[place + len(axes)]
        pads = full
    mode = {"edge": "replicate"}.get(node.get("mode", "constant"), node.get("mode", "constant"))
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else value
        return functional.pad(x, torch_pads(pads), value=float(fill))
    if any(pads[:2]) or any(pads[x.dim() : x.dim() + 2]):
        raise Unsupported(f"Pad with mode {mode} over batch or channels")
    return functional.pad(x, torch_pads(pads[2 : x.dim()] + pads[x.dim() + 2 :]), mode=mode)


def resize(node, x, roi=None, scales=None, sizes=None):
    """Nearest or linear resizing over the last two dimensions, where torch has the same definition."""
    mode, where = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if sizes is not None:
        target = values(sizes)[2:]
    else:
        old = zip(x.shape[2:], scales.tolist()[2:], strict=True)
        target = [math.floor(size * scale) for size, scale in old]
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(x, target, mode="bilinear", align_corners=where == "align_corners")
    whole = all(new % old == 0 for new, old in zip(target, x.shape[2:], strict=True))
    rule = (where, node.get("nearest_mode", "round_prefer_floor"))
    rounds = whole and rule in (("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))
    if mode == "nearest" and (rule == ("asymmetric", "floor") or rounds):
        return functional.interpolate(x, target, mode="nearest")
    raise Unsupported(f"Resize with mode {mode}, {where}")
