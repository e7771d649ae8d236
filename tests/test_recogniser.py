import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from insightface.model_zoo import model_zoo
from onnx import helper
from safetensors.torch import save_file
from torch.nn.functional import normalize

from arcface_files.iresnet import IResNet, iresnet18, iresnet_slim
from arcface_files.recogniser import embed_crops, load_recogniser, recogniser_dim, recogniser_input
from tests.tiny_pack import make_tiny_pack, save_graph
from utils.errors import UserError

RNG = np.random.default_rng(0)
BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


def lively(network, seed=0):
    """The network with statistics and slopes as training leaves them, not the neutral ones of a new one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if "running_var" in name or (("bn" in name or "downsample.1" in name) and "weight" in name):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif "running_mean" in name or "bias" in name:
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
        elif "prelu" in name:
            tensor.copy_(0.5 * torch.rand(tensor.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def slim():
    torch.manual_seed(0)
    return lively(iresnet_slim(num_features=64))


def images(count=3, seed=0):
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def onnx_embeddings(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]).flatten(1)


def check_against_onnxruntime(path, x, tolerance=1e-4):
    network = load_recogniser(path)
    ours, theirs = network(x), onnx_embeddings(path, x)
    assert ours.shape == theirs.shape == (len(x), network.embedding_size)
    assert (normalize(ours) - normalize(theirs)).abs().max() < tolerance
    return network


def test_state_dicts_as_trainings_leave_them(tmp_path, slim):
    state = slim.state_dict()
    torch.save(state, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "b.pth")
    save_file(state, tmp_path / "c.safetensors")
    compiled = {f"_orig_mod.module.{name}": value for name, value in state.items()}
    resumed = {"epoch": 3, "state_dict_backbone": compiled, "state_dict_softmax_fc": {"w": torch.ones(2)}}
    torch.save(resumed, tmp_path / "checkpoint_gpu_0.pt")
    lightning = {"epoch": 3, "state_dict": {f"model.{name}": value for name, value in state.items()}}
    torch.save(lightning, tmp_path / "last.ckpt")
    x = images()
    for name in ("a.pth", "b.pth", "c.safetensors", "checkpoint_gpu_0.pt", "last.ckpt"):
        network = load_recogniser(tmp_path / name)
        assert torch.equal(network(x), slim(x))
        assert isinstance(network, IResNet) and not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert recogniser_dim(network) == recogniser_dim(tmp_path / name) == 64


def test_crops_become_input_and_embeddings(tmp_path):
    crops = RNG.integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    crops[0, 3, 7] = 0, 128, 255
    x = recogniser_input(crops)
    assert x.shape == (5, 3, 112, 112) and x.dtype == torch.float32
    torch.testing.assert_close(x[0, :, 3, 7], torch.tensor([-1.0, 128 / 127.5 - 1, 1.0]))
    network = load_recogniser(make_tiny_pack(tmp_path / "pack") / "rec_tiny.onnx")
    torch.testing.assert_close(embed_crops(crops, network, batch_size=2), network(x))
    assert embed_crops(crops[:0], network).shape == (0, network.embedding_size)


def test_crafted_pth_is_refused_and_not_run(tmp_path):
    class Crafted:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"conv1.weight": Crafted()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="bad.pth: refused") as caught:
        load_recogniser(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_files_that_do_not_serve(tmp_path, slim):
    with pytest.raises(UserError, match="missing.pth: no such recogniser file; .*arcface_files/README.md"):
        load_recogniser(tmp_path / "missing.pth")
    for name in ("text.pth", "text.safetensors", "text.onnx", "text.bin"):
        (tmp_path / name).write_text("no weights here")
        with pytest.raises(UserError, match=name):
            load_recogniser(tmp_path / name)
    torch.save(slim.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    with pytest.raises(UserError, match="cut.pth: refused"):
        load_recogniser(tmp_path / "cut.pth")
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(UserError, match="linear.pth: not the weights of an IResNet"):
        load_recogniser(tmp_path / "linear.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list.pth: holds no state dict"):
        load_recogniser(tmp_path / "list.pth")
    part = slim.state_dict()
    del part["layer3.1.prelu.weight"]
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(UserError, match="part.pth: does not fit an IResNet.*layer3.1.prelu.weight"):
        load_recogniser(tmp_path / "part.pth")


@pytest.mark.parametrize(("build", "fold"), [(iresnet18, True), (iresnet_slim, False)])
def test_exported_iresnet_with_batch_norm_folded_and_not(tmp_path, build, fold):
    torch.manual_seed(0)
    network = lively(build(num_features=128))
    norms_before = sum(isinstance(module, BATCH_NORMS) for module in network.modules())
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    options = {"dynamic_axes": {"input": {0: "batch"}}, "input_names": ["input"], "dynamo": False}
    path = tmp_path / "iresnet.onnx"
    torch.onnx.export(network, images(1), path, training=mode, do_constant_folding=fold, **options)
    norms = sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    assert norms < norms_before if fold else norms == norms_before
    loaded = check_against_onnxruntime(path, images())
    assert (normalize(loaded(images())) - normalize(network(images()))).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["real_pack/rec_sface.onnx", "judge_pack/rec_mobileface_v2.onnx"])
def test_real_recognisers(fixtures_dir, name):
    network = check_against_onnxruntime(fixtures_dir / name, images(2))
    x = images(1).requires_grad_()
    network(x).square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().mean() > 0


def test_gradient_to_the_input_is_that_of_the_network(tmp_path, slim):
    torch.onnx.export(
        slim,
        images(1),
        tmp_path / "slim.onnx",
        dynamo=False,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch"}},
    )
    network, direction = load_recogniser(tmp_path / "slim.onnx"), torch.randn(64)
    gradients = []
    for module in (network, slim):
        x = images(2).requires_grad_()
        (module(x) @ direction).sum().backward()
        gradients.append(x.grad)
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), 0) > 0.9999
    # and a finite difference in double precision
    double, x = network.double(), images(1).double().requires_grad_()
    value = (double(x) @ direction.double()).sum()
    (gradient,) = torch.autograd.grad(value, x)
    step = 1e-8 * torch.randn_like(x)
    moved = (double(x.detach() + step) @ direction.double()).sum()
    assert (moved - value).item() == pytest.approx((gradient * step).sum().item(), rel=1e-3)


def test_graph_for_one_image_takes_batches(tmp_path):
    pack = make_tiny_pack(tmp_path / "pack", batch=1)
    network = load_recogniser(pack / "rec_tiny.onnx")
    x = images(3)
    torch.testing.assert_close(
        network(x), torch.cat([onnx_embeddings(pack / "rec_tiny.onnx", one) for one in x.split(1)])
    )


def test_network_that_normalises_pixels_itself(tmp_path):
    """mxnet's way: the graph begins with _minusscalar0 and _mulscalar0, and insightface feeds it 0..255."""
    nodes = [
        helper.make_node("Sub", ["input", "mean"], ["a"], name="_minusscalar0"),
        helper.make_node("Mul", ["a", "scale"], ["b"], name="_mulscalar0"),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Flatten", ["c"], ["embedding"]),
    ]
    weights = {"mean": np.float32(127.5), "scale": np.float32(0.0078125)}
    path = save_graph(
        tmp_path / "rec.onnx", nodes, weights, {"input": ["n", 3, 112, 112]}, {"embedding": ["n", 48]}
    )
    crops = RNG.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    official = model_zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    expected = official.get_feat([crop[:, :, ::-1] for crop in crops])
    network = load_recogniser(path)
    ours = network(torch.tensor(crops).permute(0, 3, 1, 2) / 127.5 - 1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_unsupported_operator_names_itself_and_the_file(tmp_path):
    nodes = [helper.make_node("Conv", ["input", "w"], ["a"]), helper.make_node("Det", ["a"], ["embedding"])]
    weights = {"w": np.ones((4, 3, 1, 1), np.float32)}
    path = save_graph(
        tmp_path / "odd.onnx", nodes, weights, {"input": ["n", 3, 112, 112]}, {"embedding": ["n", 4]}
    )
    with pytest.raises(UserError, match="odd.onnx: the ONNX operator Det is not supported"):
        load_recogniser(path)


def test_other_input_sizes_are_refused(tmp_path):
    nodes = [
        helper.make_node("Flatten", ["input"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["embedding"]),
    ]
    weights = {"w": np.ones((3 * 64 * 64, 4), np.float32)}
    path = save_graph(
        tmp_path / "small.onnx", nodes, weights, {"input": ["n", 3, 64, 64]}, {"embedding": ["n", 4]}
    )
    with pytest.raises(UserError, match=r"small.onnx: does not take \(N, 3, 112, 112\)"):
        load_recogniser(path)
