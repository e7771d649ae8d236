"""Network files of a few bytes that ask for gigabytes, or are no networks: one line, and nothing is made."""

import io
import json
import os
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from arcface_files import face_pack
from arcface_files.face_pack import load_onnx, open_network, pack_models
from arcface_files.faces import FaceAnalyser
from arcface_files.iresnet import iresnet_slim
from arcface_files.recogniser import load_recogniser
from tests.memory import MEBIBYTE, peak_growth
from tests.tiny_pack import make_tiny_pack, save_graph
from utils.errors import UserError

SIDE = 2**16  # a square matrix of floats of this side takes 16 GiB
LIMIT = 400 * MEBIBYTE
FACE = {"x": ["n", 3, 112, 112]}


def node(name, inputs, outputs, **attributes):
    return helper.make_node(name, inputs.split(), outputs.split(), **attributes)


def graph(path, *nodes, **weights):
    """A network that adds to the mean of its input the greatest of `c`, which the nodes make."""
    mean = [node("Flatten", "x", "f"), node("ReduceMean", "f", "m", axes=[1], keepdims=1)]
    end = [node("ReduceMax", "c", "r", keepdims=0), node("Add", "m r", "y")]
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    kinds = {"i": np.int64, "f": np.float32}
    arrays = {name: array.astype(kinds[array.dtype.kind]) for name, array in arrays.items()}
    return save_graph(path, [*mean, *nodes, *end], arrays, FACE, {"y": ["n", 1]})


CONSTANT = node("ConstantOfShape", "s", "c")
GRAPHS = {
    "constant of a shape": lambda path: graph(path, CONSTANT, s=[SIDE, SIDE]),
    "constant of a computed shape": lambda path: graph(
        path, node("Mul", "a b", "s"), CONSTANT, a=[SIDE, 2], b=[1, SIDE]
    ),
    "a number spread out": lambda path: graph(path, node("Expand", "k s", "c"), k=[1.0], s=[SIDE, SIDE]),
    "spread out by the face": lambda path: graph(path, node("Expand", "m s", "c"), s=[1, SIDE, SIDE]),
    "a column plus a row": lambda path: graph(
        path, node("Add", "a b", "c"), a=np.zeros((SIDE, 1)), b=np.zeros((1, SIDE))
    ),
    "a column times a row": lambda path: graph(
        path, node("MatMul", "a b", "c"), a=np.zeros((SIDE, 1)), b=np.zeros((1, SIDE))
    ),
    "padding": lambda path: graph(path, node("Pad", "k p", "c"), k=[1.0], p=[0, SIDE**2]),
    "padding of a convolution": lambda path: graph(
        path, node("Conv", "x w", "c", pads=[SIDE // 2] * 4), w=np.zeros((1, 3, 1, 1))
    ),
    "an enlarged face": lambda path: graph(
        path, node("Resize", "x e z", "c", mode="nearest"), e=np.zeros(0), z=[1.0, 1.0, 500.0, 500.0]
    ),
    "many small ones": lambda path: graph(
        path,
        *(node("ConstantOfShape", "s", f"c{i}") for i in range(300)),
        node("Concat", " ".join(f"c{i}" for i in range(300)), "c", axis=0),
        s=[4000, 4000],
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_ask_for_gigabytes_as_recognisers(tmp_path, name):
    path = GRAPHS[name](tmp_path / "greedy.onnx")

    def read():
        with pytest.raises(UserError, match=r"greedy\.onnx: .*GiB of memory") as caught:
            load_recogniser(path)
        assert "\n" not in str(caught.value)

    assert peak_growth(read) < LIMIT


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_ask_for_gigabytes_in_a_pack(tmp_path, name):
    """onnxruntime allocates from one pool with a limit: 8 GiB, or here less."""
    make_tiny_pack(tmp_path)
    (tmp_path / "rec.onnx").unlink(missing_ok=True)
    for path in (path for path in tmp_path.glob("*.onnx") if "det" not in path.name):
        path.unlink()
    GRAPHS[name](tmp_path / "greedy.onnx")

    def read():
        with pytest.raises(UserError, match=r"greedy\.onnx: fails on 1 pictures") as caught:
            FaceAnalyser(tmp_path, device="cpu")
        assert "\n" not in str(caught.value)

    assert peak_growth(read) < LIMIT


def spoiled(change):
    """A damage to the tiny recogniser's protobuf."""

    def make(path):
        make_tiny_pack(path.parent / "pack")
        model = onnx.load(next(p for p in (path.parent / "pack").glob("*.onnx") if "det" not in p.name))
        change(model)
        path.write_bytes(model.SerializeToString())

    return make


def claim(*dims):
    return lambda model: model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=dims))


def outside(place):
    def change(model):
        tensor = TensorProto(name="w", data_type=1, dims=[SIDE, SIDE], data_location=1)
        tensor.external_data.add(key="location", value="w.bin")
        place(model, tensor)

    return change


def sparse(model):
    values = helper.make_tensor("w", 1, [1], [1.0])
    places = helper.make_tensor("i", 7, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [SIDE, SIDE]))


def in_a_branch(model, tensor):
    inner = helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))


def without(field):
    return lambda model: model.graph.ClearField(field)


BROKEN = {
    "weights elsewhere": spoiled(outside(lambda model, tensor: model.graph.initializer.append(tensor))),
    "weights elsewhere, in a node": spoiled(
        outside(lambda model, t: model.graph.node.append(helper.make_node("Constant", [], ["z"], value=t)))
    ),
    "weights elsewhere, in a branch": spoiled(outside(in_a_branch)),
    "sparse weights": spoiled(sparse),
    "weights without numbers": spoiled(claim(SIDE, SIDE)),
    "weights of no size": spoiled(claim(0, 2**60)),
    "weights of too large a size": spoiled(claim(2**62, 2**62)),
    "no input": spoiled(without("input")),
    "no output": spoiled(without("output")),
    "no nodes": spoiled(without("node")),
    "no version": spoiled(lambda model: model.ClearField("opset_import")),
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no network"),
    "a pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'touch trap'\ntR."),
    "deep": lambda path: path.write_bytes(b"\x3a\x7f" * 5000),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_network_files(tmp_path, name):
    path = tmp_path / "broken.onnx"
    BROKEN[name](path)
    (tmp_path / "w.bin").write_bytes(b"")
    os.truncate(tmp_path / "w.bin", 4 * SIDE**2)  # a file of 16 GiB that takes no space

    def read():
        for opening in (load_recogniser, open_network):
            try:
                opening(path)
            except UserError as error:
                assert "broken.onnx" in str(error) and "\n" not in str(error)
            else:
                assert name == "weights of no size"  # which harm nobody

    assert peak_growth(read) < LIMIT and not list(tmp_path.rglob("trap"))


def test_a_pack_is_read_among_what_systems_leave_in_it(tmp_path):
    make_tiny_pack(tmp_path)
    expected = pack_models(tmp_path)
    (tmp_path / "._det.onnx").write_bytes(b"Mac OS X")
    (tmp_path / "a.onnx").mkdir()
    os.mkfifo(tmp_path / "b.onnx")
    (tmp_path / "c.onnx").symlink_to("nowhere")
    assert pack_models(tmp_path) == expected
    FaceAnalyser(tmp_path, device="cpu")


def test_a_pack_with_an_unreadable_network_names_it(tmp_path):
    make_tiny_pack(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"a\.onnx: not a readable ONNX file"):
        FaceAnalyser(tmp_path)


def test_networks_that_do_something_else_are_refused_at_once(tmp_path):
    """Nine outputs make a detector by insightface's rule, whatever comes out of them."""
    make_tiny_pack(tmp_path)
    shutil.copy(pack_models(tmp_path)["recognition"], tmp_path / "keep")
    names = [f"y{i}" for i in range(9)]
    nodes = [node("GlobalAveragePool", "x", name) for name in names]
    inputs, outputs = {"x": ["n", 3, "h", "w"]}, {name: [1, 3, 1] for name in names}
    save_graph(tmp_path / "a_det.onnx", nodes, {}, inputs, outputs)
    with pytest.raises(UserError, match=r"a_det\.onnx: its outputs do not fit together"):
        FaceAnalyser(tmp_path, threshold=0.0, device="cpu")


def test_the_limit_of_memory_holds_for_batches_and_says_what_to_do(tmp_path, monkeypatch):
    make_tiny_pack(tmp_path)
    analyser = FaceAnalyser(tmp_path, device="cpu")

    class Full:
        def run(self, *_):
            raise RuntimeError("Available memory of 100 is\nsmaller than requested bytes of 200")

        def get_inputs(self):
            return analyser.detector.session.get_inputs()

    monkeypatch.setattr(analyser.recogniser, "session", Full())
    monkeypatch.setattr(Full, "get_inputs", analyser.detector.session.get_inputs, raising=False)
    with pytest.raises(UserError, match="fails on 3 pictures of 112 x 112 .*lower batch_size") as caught:
        analyser._run(analyser.recogniser, np.zeros((3, 112, 112, 3), np.uint8))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------- state dicts of an IResNet


def thin(state):
    """A layer whose rows alone are there: its network would have 62,000 x 62,000 x 9 weights."""
    state["layer1.0.conv2.weight"] = torch.zeros(62_000, 1)
    return state


def deep(state):
    return state | {f"layer1.{i}.x": torch.zeros(1) for i in range(20_000)}


STATES = {
    "zero strides": lambda state: {key: torch.zeros(1).expand(SIDE, SIDE) for key in state},
    "zero strides, half": lambda state: {"fc.weight": torch.zeros(1).half().expand(SIDE, 2 * SIDE)},
    "one tensor under many names": lambda state: dict.fromkeys(map(str, range(5000)), torch.zeros(10_000)),
    "a thin layer": thin,
    "a wide embedding": lambda state: state | {"fc.weight": torch.zeros(10**6, 1)},
    "blocks without end": deep,
    "blocks of names": lambda state: {f"layer1.{i}.x": torch.zeros(1) for i in range(9000)} | state,
    "numbers": lambda state: {key: torch.tensor(1.0) for key in state},
    "flat": lambda state: {key: value.flatten() for key, value in state.items()},
    "complex": lambda state: {key: value.flatten().to(torch.complex64) for key, value in state.items()},
    "names that are numbers": lambda state: dict(enumerate(state.values())),
    "lists": lambda state: {key: value.flatten()[:3].tolist() for key, value in state.items()},
    "nothing": lambda state: {},
    "sparse": lambda state: {"fc.weight": torch.zeros(SIDE, SIDE, layout=torch.sparse_coo)},
    "without memory": lambda state: {key: value.to("meta") for key, value in state.items()},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", STATES)
def test_state_dicts_that_ask_for_more_than_they_hold(tmp_path, name, old):
    path = tmp_path / "greedy.pth"
    torch.save(STATES[name](iresnet_slim().state_dict()), path, _use_new_zipfile_serialization=not old)

    def read():
        with pytest.raises(UserError, match=r"greedy\.pth: ") as caught:
            load_recogniser(path)
        assert "\n" not in str(caught.value)

    assert peak_growth(read) < LIMIT


def header(content, data=b"", length=None):
    """A safetensors file of a hand-made header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"fc.weight": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


SAFETENSORS = {
    "header of 2**63": header(b"{}", length=2**63),
    "header of 2**40": header(b"{}", length=2**40),
    "shape without data": header(entry((2**40, 2**20)), bytes(4)),
    "offsets beyond the file": header(entry((2**34,), (0, 2**36)), bytes(4)),
    "two at one place": header(entry() | {"b": entry()["fc.weight"]}, bytes(4)),
    "a hole": header(entry(offsets=(4, 8)), bytes(8)),
    "unknown numbers": header(entry(dtype="F99"), bytes(4)),
    "numbers torch lacks": header(entry((2,), (0, 1), "F4"), bytes(1)),
    "deep header": header(b"[" * 100_000),
    "shape of text": header({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, bytes(4)),
    "negative shape": header(entry((-1,)), bytes(4)),
    "no header": b"\0" * 7,
    "a thin layer": None,
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_ask_for_more_than_they_hold(tmp_path, name):
    path = tmp_path / "greedy.safetensors"
    if SAFETENSORS[name] is None:
        save_file({key: value.contiguous() for key, value in thin(iresnet_slim().state_dict()).items()}, path)
    else:
        path.write_bytes(SAFETENSORS[name])

    def read():
        with pytest.raises(UserError, match=r"greedy\.safetensors: ") as caught:
            load_recogniser(path)
        assert "\n" not in str(caught.value)

    assert peak_growth(read) < LIMIT


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_beyond_any_network_are_not_read(tmp_path, suffix):
    path = tmp_path / f"large.{suffix}"
    path.touch()
    os.truncate(path, 3 * 2**30)  # takes no space on the disk
    assert peak_growth(lambda: pytest.raises(UserError, load_recogniser, path)) < LIMIT


def test_good_networks_are_read_and_memory_is_shared(tmp_path):
    stream = io.BytesIO()
    torch.save(iresnet_slim().state_dict(), stream)
    (tmp_path / "a.pth").write_bytes(stream.getvalue())
    assert load_recogniser(tmp_path / "a.pth").embedding_size == 256
    make_tiny_pack(tmp_path / "pack")
    models = pack_models(tmp_path / "pack")
    assert load_onnx(models["detection"]).graph.node and open_network(models["recognition"], "cpu")
    face_pack.limit_memory()  # once for all
    face_pack.limit_memory()
