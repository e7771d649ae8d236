"""The ONNX operators known here: shape arithmetic and reductions as exporters write them; the table of all.

Integer tensors (shapes, axes) stay on the CPU; float tensors are on the device of the weights.
"""

import functools
import math

import torch
from torch.nn import functional

from arcface_files import onnx_layers as layers
from arcface_files.onnx_layers import Unsupported, values


def clip(node, x, low=None, high=None):
    """Clip; limits are attributes before opset 11 and inputs since."""
    low = node.get("min") if low is None else low
    high = node.get("max") if high is None else high
    return x if low is None and high is None else torch.clamp(x, low, high)


def divide(node, a, b):
    """Division; integers (shape arithmetic) truncate."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def flatten(node, x):
    """To two dimensions, split before `axis`."""
    axis = node.get("axis", 1) % (x.dim() + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reshape(node, x, shape=None):
    """Reshape; 0 copies a dimension unless `allowzero`, -1 is inferred."""
    sizes = values(node.get("shape") if shape is None else shape)
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def squeeze(node, x, axes=None):
    """Drop dimensions of size one; all of them without axes."""
    axes = values(node.get("axes") if axes is None else axes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(node, x, axes=None):
    """Insert dimensions of size one."""
    axes = values(node.get("axes") if axes is None else axes)
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def slice_(node, x, starts=None, ends=None, axes=None, steps=None):
    """Slices along axes, negative steps included."""
    starts, ends = (values(node.get(n) if v is None else v) for n, v in (("starts", starts), ("ends", ends)))
    axes = values(node.get("axes") if axes is None else axes) or range(len(starts))
    steps = values(steps) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        # An end before the first element of a backward slice means "up to and with the first".
        picked = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        x = x.index_select(axis, torch.arange(len(picked), device=x.device) * picked.step + picked.start)
    return x


def gather(node, x, indices):
    """Picks along an axis, by a scalar or by a tensor of indices."""
    axis = node.get("axis", 0) % x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, indices.flatten().to(x.device))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def split(node, x, sizes=None):
    """Pieces along an axis, by sizes or equal ones."""
    axis, sizes = node.get("axis", 0), values(node.get("split") if sizes is None else sizes)
    if sizes is None:
        sizes = math.ceil(x.shape[axis] / len(node.outputs))
    return torch.split(x, sizes, axis)


def reduction(function):
    """A reduction over axes that are an attribute or, in newer opsets, an input."""

    def reduce(node, x, axes=None):
        axes = values(node.get("axes") if axes is None else axes)
        if not axes:
            if node.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        return function(x, tuple(axes), bool(node.get("keepdims", 1)))

    return reduce


def cast(node, x):
    """To another type; half precision is computed in float32 here."""
    dtype = CAST_TYPES.get(node.get("to"))
    if dtype is None:
        raise Unsupported(f"Cast to type {node.get('to')}")
    return x.to(dtype)


# onnx.TensorProto type numbers: float, float16, double and bfloat16; uint8, int8, int32, int64; bool.
CAST_TYPES = {
    1: torch.float32,
    10: torch.float32,
    11: torch.float32,
    16: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int64,
    7: torch.int64,
    9: torch.bool,
}


def simple(function):
    """A torch function of the inputs alone, as an operator."""
    return lambda node, *inputs: function(*inputs)


OPERATORS = {
    "Abs": simple(torch.abs),
    "Add": simple(torch.add),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_normalization,
    "Cast": cast,
    "Clip": clip,
    "Concat": lambda node, *inputs: torch.cat(inputs, node.get("axis")),
    "ConstantOfShape": lambda node, shape: node.get("value", torch.zeros(1)).expand(values(shape)),
    "Conv": layers.conv,
    "Div": divide,
    "Dropout": lambda node, x, *_: x,
    "Elu": lambda node, x: functional.elu(x, node.get("alpha", 1.0)),
    "Equal": simple(torch.eq),
    "Erf": simple(torch.erf),
    "Exp": simple(torch.exp),
    "Expand": lambda node, x, shape: x.expand(torch.broadcast_shapes(x.shape, values(shape))),
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": layers.gemm,
    "GlobalAveragePool": lambda node, x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda node, x: x.amax(tuple(range(2, x.dim())), keepdim=True),
    "HardSigmoid": lambda node, x: (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0.0, 1.0),
    "HardSwish": simple(functional.hardswish),
    "Identity": simple(lambda x: x),
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.get("alpha", 0.01)),
    "LpNormalization": layers.lp_normalization,
    "MatMul": simple(torch.matmul),
    "Max": simple(lambda *inputs: functools.reduce(torch.maximum, inputs)),
    "MaxPool": layers.max_pool,
    "Min": simple(lambda *inputs: functools.reduce(torch.minimum, inputs)),
    "Mul": simple(torch.mul),
    "Neg": simple(torch.neg),
    "PRelu": layers.prelu,
    "Pad": layers.pad,
    "Pow": simple(torch.pow),
    "Reciprocal": simple(torch.reciprocal),
    "ReduceL2": reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(torch.mean),
    "ReduceMin": reduction(torch.amin),
    "ReduceSum": reduction(torch.sum),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Relu": simple(functional.relu),
    "Reshape": reshape,
    "Resize": layers.resize,
    "Shape": lambda node, x: torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64),
    "Sigmoid": simple(torch.sigmoid),
    "Slice": slice_,
    "Softmax": layers.softmax,
    "Softplus": simple(functional.softplus),
    "Split": split,
    "Sqrt": simple(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": simple(torch.sub),
    "Sum": simple(lambda *inputs: functools.reduce(torch.add, inputs)),
    "Tanh": simple(torch.tanh),
    "Transpose": lambda node, x: x.permute(node.get("perm", list(range(x.dim()))[::-1])),
    "Unsqueeze": unsqueeze,
    "Where": simple(torch.where),
}
