"""A face pack made by hand, whose detections can be computed with pencil and paper.

The detector sees a "face" wherever an 8 x 8 cell (aligned to multiples of 8) is pure red: 255 red, 0 green.
The cell's blue value sets the size of the box: 8 pixels right of and below the cell's corner for 0, 24 for
255. The landmarks lie at LANDMARKS from the cell's corner. The recogniser is a fixed random projection.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LANDMARKS = np.array([[4, 6], [16, 6], [10, 11], [5, 17], [15, 17]], dtype=np.float32)
EMBEDDING_SIZE = 32


def save_graph(path, nodes, weights, inputs, outputs, opset=13):
    """Write an ONNX file; weights are name -> array, inputs and outputs name -> shape (strings are open)."""

    def info(shapes):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
        ]

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "tiny", info(inputs), info(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return Path(path)


def make_tiny_pack(folder, batch="batch"):
    """Write det_tiny.onnx and rec_tiny.onnx to `folder`; `batch` 1 makes networks for one image at a time."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    make_detector(folder / "det_tiny.onnx", batch)
    make_recogniser(folder / "rec_tiny.onnx", batch)
    return folder


def make_detector(path, batch):
    """Nine outputs as SCRFD has them, strides 8, 16, 32, two anchors of which the second never fires."""
    weights, nodes = {"zero": np.float32(0), "one": np.float32(1)}, []
    outputs = {"score": {}, "box": {}, "points": {}}
    for stride in (8, 16, 32):
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [f"cell{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        for kind, (weight, bias, width) in head_weights(fires=stride == 8).items():
            name = f"{kind}_{stride}"
            weights |= {
                f"{name}_w": weight,
                f"{name}_b": bias,
                f"{name}_s": np.array([0, -1, width], np.int64),
            }
            nodes += [
                helper.make_node("Conv", [f"cell{stride}", f"{name}_w", f"{name}_b"], [f"{name}_conv"]),
                helper.make_node("Clip", [f"{name}_conv", "zero", "one"], [f"{name}_clip"]),
                helper.make_node(
                    "Transpose",
                    [f"{name}_clip" if kind == "score" else f"{name}_conv"],
                    [f"{name}_t"],
                    perm=[0, 2, 3, 1],
                ),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_s"], [name]),
            ]
            outputs[kind][name] = [batch, f"anchors_{stride}", width]
    save_graph(
        path,
        nodes,
        weights,
        {"input": [batch, 3, "height", "width"]},
        outputs["score"] | outputs["box"] | outputs["points"],
    )


def head_weights(fires):
    """Per output: 1 x 1 convolution weight, bias, and numbers per anchor."""
    score = np.zeros((2, 3, 1, 1), np.float32)
    box, points = np.zeros((8, 3, 1, 1), np.float32), np.zeros((20, 3, 1, 1), np.float32)
    if fires:
        score[0, :2, 0, 0] = 1, -1  # red - green: 2 for pure red, 0 for any grey
        box[[2, 3], 2] = 1  # blue from -1 to 1 adds to the right and lower distance
    box_bias = np.tile(np.array([0, 0, 2, 2], np.float32), 2)
    score_bias = np.array([-1, -1], np.float32)
    return {
        "score": (score, score_bias, 1),
        "box": (box, box_bias, 4),
        "points": (points, np.tile(LANDMARKS.ravel() / 8, 2).astype(np.float32), 10),
    }


def make_recogniser(path, batch, seed=0):
    """16 x 16 pixel means, then a random projection to EMBEDDING_SIZE numbers."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=(147, EMBEDDING_SIZE)).astype(np.float32)}
    nodes = [
        helper.make_node("AveragePool", ["input"], ["mean"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["embedding"]),
    ]
    save_graph(path, nodes, weights, {"input": [batch, 3, 112, 112]}, {"embedding": [batch, EMBEDDING_SIZE]})


def face_photo(*cells, blue=0, size=(64, 64), seed=0):
    """A grey uint8 photo (H, W, 3) with a face at each (x, y) cell corner; `blue`: one value or several."""
    grey = np.random.default_rng(seed).integers(40, 200, (*size, 1), dtype=np.uint8)
    photo = np.repeat(grey, 3, 2)
    blues = np.broadcast_to(blue, len(cells))
    for (x, y), value in zip(cells, blues, strict=True):
        photo[y : y + 8, x : x + 8] = 255, 0, value
    return photo
