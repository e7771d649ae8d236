"""Every operator of arcface_files.onnx_ops against onnxruntime, on small graphs from x (2, 6, 9, 8) to y."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from arcface_files.counted_memory import CountedMemory
from arcface_files.onnx_module import OnnxModule
from arcface_files.onnx_ops import OPERATORS
from tests.tiny_pack import save_graph

RNG = np.random.default_rng(0)
PADS = np.array([0, 0, 1, 2, 0, 0, 0, 3])


def op(name, inputs="x", outputs="y", **attributes):
    """A node; input and output names are separated by spaces, "-" stands for an omitted input."""
    names = ["" if part == "-" else part for part in inputs.split()]
    return helper.make_node(name, names, outputs.split(), **attributes)


def noise(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def case(*nodes, rank=4, opset=13, **weights):
    """Nodes and weights by name (integers become int64, floats float32), the rank of y, and the opset."""
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    kinds = {"i": np.int64, "f": np.float32}
    return nodes, {name: array.astype(kinds[array.dtype.kind]) for name, array in arrays.items()}, rank, opset


CASES = {
    "conv padded unevenly": case(op("Conv", "x w", pads=[0, 1, 2, 1], strides=[2, 1]), w=noise(8, 6, 3, 3)),
    "conv dilated, bias": case(op("Conv", "x w b", dilations=[2, 2]), w=noise(8, 6, 3, 3), b=noise(8)),
    "conv depthwise, same upper": case(
        op("Conv", "x w", group=6, auto_pad="SAME_UPPER", strides=[2, 2]), w=noise(6, 1, 3, 3)
    ),
    "conv same lower": case(op("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2]), w=noise(8, 6, 3, 3)),
    "conv valid": case(op("Conv", "x w", auto_pad="VALID"), w=noise(8, 6, 3, 3)),
    "batch norm": case(
        op("BatchNormalization", "x g b m v", epsilon=1e-3),
        g=noise(6),
        b=noise(6),
        m=noise(6),
        v=noise(6) ** 2,
    ),
    "prelu per channel": case(op("PRelu", "x s"), s=noise(6, 1, 1)),
    "prelu shared": case(op("PRelu", "x s"), s=noise(1)),
    "prelu along the width": case(op("PRelu", "x s"), s=noise(8)),
    "rectifiers": case(op("LeakyRelu", "x", "a", alpha=0.2), op("Elu", "a", "b"), op("Relu", "b")),
    "sigmoids": case(
        op("Sigmoid", "x", "a"),
        op("HardSigmoid", "x", "b"),
        op("HardSwish", "x", "c"),
        op("Tanh", "x", "d"),
        op("Softplus", "x", "e"),
        op("Sum", "a b c d e"),
        opset=14,
    ),
    "clip by input, one side": case(op("Clip", "x - high"), high=0.4),
    "clip by attributes": case(op("Clip", "x", min=-0.5, max=0.5), opset=10),
    "arithmetic": case(
        op("Mul", "x x", "a"),
        op("Add", "a one", "b"),
        op("Sqrt", "b", "c"),
        op("Div", "x c", "d"),
        op("Pow", "c two", "e"),
        op("Sub", "d e", "f"),
        op("Max", "f x", "g"),
        op("Min", "g c"),
        one=1.0,
        two=2.0,
    ),
    "functions": case(
        op("Abs", "x", "a"),
        op("Neg", "a", "b"),
        op("Exp", "b", "c"),
        op("Reciprocal", "c", "d"),
        op("Erf", "d"),
    ),
    "average pool": case(op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "average pool counting padding": case(
        op("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 0], count_include_pad=1)
    ),
    "average pool, ceil": case(op("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    "max pool, ceil": case(
        op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
    ),
    "global pools": case(
        op("GlobalAveragePool", "x", "a"), op("GlobalMaxPool", "x", "b"), op("Concat", "a b", axis=1)
    ),
    "flatten and gemm": case(
        op("Flatten", "x", "a"),
        op("Gemm", "a w c", alpha=0.5, beta=2.0, transB=1),
        w=noise(5, 432),
        c=noise(5),
        rank=2,
    ),
    "flatten by shape arithmetic": case(
        op("Shape", "x", "s"),
        op("Gather", "s zero", "n", axis=0),
        op("Unsqueeze", "n axis", "n1"),
        op("Concat", "n1 rest", "shape", axis=0),
        op("Reshape", "x shape"),
        zero=0,
        axis=[0],
        rest=[-1],
        rank=2,
    ),
    "flatten by slice and cast": case(
        op("Shape", "x", "s"),
        op("Slice", "s start end", "n"),
        op("Cast", "n", "f", to=TensorProto.FLOAT),
        op("Cast", "f", "i", to=TensorProto.INT64),
        op("Concat", "i rest", "shape", axis=0),
        op("Reshape", "x shape"),
        start=[0],
        end=[1],
        rest=[-1],
        rank=2,
    ),
    "shape divided": case(
        op("Shape", "x", "s"),
        op("Slice", "s start end", "n"),
        op("Div", "n two", "half"),
        op("Concat", "half rest", "shape", axis=0),
        op("Reshape", "x shape"),
        start=[2],
        end=[3],
        two=2,
        rest=[-1],
        rank=2,
    ),
    "reshape copies and infers": case(op("Reshape", "x s"), s=[0, -1, 4], rank=3),
    "gather along channels": case(op("Gather", "x i", axis=1), i=[[5, -1], [0, 2]], rank=5),
    "transpose, matmul": case(
        op("Transpose", "x", "a", perm=[0, 2, 3, 1]), op("MatMul", "a w"), w=noise(6, 3)
    ),
    "transpose by default": case(op("Transpose")),
    "reductions by attribute": case(
        op("ReduceMean", "x", "a", axes=[2, 3], keepdims=0),
        op("ReduceL2", "x", "b", axes=[2, 3], keepdims=0),
        op("ReduceSumSquare", "x", "c", axes=[2, 3], keepdims=0),
        op("Sum", "a b c"),
        rank=2,
        opset=11,
    ),
    "reductions by input": case(
        op("ReduceSum", "x axes", "a"),
        op("ReduceMax", "x axes", "b"),
        op("ReduceMin", "x axes", "c"),
        op("Sum", "a b c"),
        axes=[-1],
        opset=18,
    ),
    "squeeze and unsqueeze": case(
        op("GlobalAveragePool", "x", "a"),
        op("Squeeze", "a s", "b"),
        op("Unsqueeze", "b u"),
        s=[2, 3],
        u=[0, -1],
    ),
    "squeeze by attribute": case(
        op("GlobalAveragePool", "x", "a"), op("Squeeze", "a", axes=[2, 3]), rank=2, opset=11
    ),
    "softmax": case(op("Softmax", axis=1)),
    "old softmax": case(op("Softmax", axis=2), opset=11),
    "unit length": case(op("GlobalAveragePool", "x", "a"), op("LpNormalization", "a", axis=1, p=2)),
    "slices": case(op("Slice", "x s e a t"), s=[-1, 1], e=[-(2**63) + 1, 7], a=[1, 3], t=[-2, 3]),
    "split": case(op("Split", "x s", "a b"), op("Concat", "b a", axis=0), s=[1, 1]),
    "split equally": case(op("Split", "x", "a b c", axis=1), op("Sum", "a b c"), opset=11),
    "constant pad": case(op("Pad", "x p v"), p=PADS, v=2.0),
    "pad along axes": case(op("Pad", "x p - axes"), p=[1, 2, 0, 1], axes=[3, 2], opset=18),
    "reflecting pad": case(op("Pad", "x p", mode="reflect"), p=PADS),
    "repeating pad": case(op("Pad", "x p", mode="edge"), p=PADS),
    "resize nearest": case(
        op(
            "Resize",
            "x - f",
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        f=[1.0, 1.0, 1.5, 2.0],
    ),
    "resize nearest, whole": case(op("Resize", "x - f", mode="nearest"), f=[1.0, 1.0, 3.0, 2.0]),
    "resize linear": case(op("Resize", "x - - s", mode="linear"), s=[2, 6, 18, 4]),
    "dropout and identity": case(op("Dropout", "x", "a"), op("Identity", "a")),
    "constant": case(
        op("Constant", "", "c", value=numpy_helper.from_array(noise(6, 1, 1))), op("Mul", "x c")
    ),
    "choice": case(op("Equal", "x x", "e"), op("Where", "e x c"), c=7.0),
    "expanded constant": case(
        op("Shape", "x", "s"),
        op("ConstantOfShape", "s", "c"),
        op("Expand", "one s", "o"),
        op("Add", "c o", "d"),
        op("Add", "d x"),
        one=[[1.0]],
    ),
}


def run(tmp_path, name):
    """(ours, onnxruntime's) output of a case."""
    nodes, weights, rank, opset = CASES[name]
    output = {"y": [f"d{i}" for i in range(rank)]}
    path = save_graph(tmp_path / "op.onnx", nodes, weights, {"x": ["n", 6, 9, 8]}, output, opset)
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x.numpy()})[0]
    return OnnxModule(path)(x), torch.from_numpy(expected).flatten(1)


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_onnxruntime(tmp_path, name):
    ours, expected = run(tmp_path, name)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_memory_of_every_operator_can_be_counted(tmp_path, name):
    with torch.inference_mode(), CountedMemory(10**6) as counted:
        ours, expected = run(tmp_path, name)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    assert 0 < counted.taken < 10**6


def test_every_operator_has_a_case():
    tried = {node.op_type for nodes, *_ in CASES.values() for node in nodes}
    assert set(OPERATORS) | {"Constant"} == tried
