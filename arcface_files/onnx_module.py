"""A feed-forward ONNX network as a torch module with gradients: any face pack can serve as loss network."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from arcface_files.face_pack import load_onnx
from arcface_files.onnx_layers import Node, Unsupported
from arcface_files.onnx_ops import OPERATORS
from utils.errors import UserError

DEFAULT_DOMAINS = ("", "ai.onnx")
INSTEAD = "use a recogniser without it, or its .pth weights"
# insightface's ArcFaceONNX looks at this many leading nodes to learn whether the network normalises itself.
LEADING_NODES = 8


class OnnxModule(nn.Module):
    """Runs an ONNX graph node by node with torch functions; half precision weights become float32 buffers.

    Input: float (N, 3, H, W), RGB in [-1, 1]; a network that normalises pixel values itself (by insightface's
    rule, see :func:`expects_pixels`) is fed 0..255. Output: the graph's first output, float (N, D).
    A graph exported for a batch of one is run once per image.

    Raises:
        UserError: the file is damaged, or has an operator that is not supported (named, with the file).
    """

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)
        model = load_onnx(path)
        graph = model.graph
        opset = next(entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS)
        self.expects_pixels = expects_pixels(graph)
        constants = {tensor.name: to_torch(tensor) for tensor in graph.initializer}
        self.input_name, self.input_shape = graph_input(graph, constants)
        self.output_name = graph.output[0].name
        nodes = needed_nodes([convert_node(node, opset) for node in graph.node], self.output_name)
        self._check_operators(nodes, graph)
        self.nodes = self._fold(nodes, constants)
        self.last_use = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        self.buffer_names, self.shape_constants = {}, {}
        for name in self.last_use.keys() & constants.keys():
            self._keep_constant(name, constants[name])

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [-1, 1] -> (N, D), not normalised; differentiable in `x`."""
        if self.expects_pixels:
            x = (x + 1.0) * 127.5
        if self.input_shape[0] == 1 and len(x) != 1:
            return torch.cat([self._run(one) for one in x.split(1)])
        return self._run(x)

    def _run(self, x):
        values = {self.input_name: x}
        for index, node in enumerate(self.nodes):
            inputs = [self._value(name, values) for name in node.inputs]
            values.update(zip(node.outputs, self._evaluate(node, inputs), strict=False))
            for name in node.inputs:
                if self.last_use[name] == index:  # autograd keeps what it needs; the rest may go
                    values.pop(name, None)
        return values[self.output_name].flatten(1)

    def _value(self, name, values):
        if not name:
            return None
        if name in values:
            return values[name]
        buffer = self.buffer_names.get(name)
        return self.shape_constants[name] if buffer is None else getattr(self, buffer)

    def _evaluate(self, node, inputs):
        """The outputs of a node as a tuple."""
        try:
            result = OPERATORS[node.op](node, *inputs)
        except Unsupported as error:
            raise UserError(f"{self.path}: {error}; {INSTEAD}") from None
        return result if isinstance(result, tuple) else (result,)

    def _check_operators(self, nodes, graph):
        """Refuse unknown operators before anything is run."""
        foreign = {node.op_type for node in graph.node if node.domain not in DEFAULT_DOMAINS}
        for node in nodes:
            if node.op in foreign or node.op not in OPERATORS and node.op != "Constant":
                raise UserError(f"{self.path}: the ONNX operator {node.op} is not supported; {INSTEAD}")

    def _fold(self, nodes, constants):
        """Evaluate the nodes that depend on constants alone, adding to `constants`; return the others."""
        rest = []
        for node in nodes:
            if node.op == "Constant":
                constants[node.outputs[0]] = constant_value(node)
            elif node.inputs and all(name in constants for name in node.inputs if name):
                inputs = [constants[name] if name else None for name in node.inputs]
                constants.update(zip(node.outputs, self._evaluate(node, inputs), strict=False))
            else:
                rest.append(node)
        return rest

    def _keep_constant(self, name, value):
        """Floats follow the module from device to device; integers (shapes, axes) stay on the CPU."""
        if value.is_floating_point():
            self.buffer_names[name] = f"weight_{len(self.buffer_names)}"
            self.register_buffer(self.buffer_names[name], value)
        else:
            self.shape_constants[name] = value


def expects_pixels(graph):
    """Whether the network takes 0..255: insightface's ArcFaceONNX rule, leading nodes named Sub and Mul."""
    names = [node.name for node in graph.node[:LEADING_NODES]]
    return all(
        any(name.startswith(prefixes) for name in names) for prefixes in (("Sub", "_minus"), ("Mul", "_mul"))
    )


def graph_input(graph, constants):
    """(name, shape) of the one real input; open dimensions are 0."""
    value = next(value for value in graph.input if value.name not in constants)
    return value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def needed_nodes(nodes, output):
    """The nodes that `output` depends on, in order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def convert_node(node, opset):
    """An ONNX node as our :class:`Node`, its attributes as Python values and tensors."""
    import onnx

    attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = to_torch(value)
        attributes[attribute.name] = value
    return Node(node.op_type, tuple(node.input), tuple(node.output), attributes, opset)


def constant_value(node):
    """The tensor of a Constant node, whichever attribute holds it."""
    value = next(iter(node.attributes.values()))
    return value if isinstance(value, Tensor) else torch.tensor(value)


def to_torch(tensor):
    """An ONNX tensor as a torch tensor; any float as float32."""
    import onnx

    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.kind not in "iub":
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))
