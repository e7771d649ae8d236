import pytest
import torch

from arcface_files.iresnet import (
    iresnet18,
    iresnet34,
    iresnet50,
    iresnet100,
    iresnet_from_state_dict,
    iresnet_slim,
)


def published_shapes(depths, widths, features):
    """Names and shapes of insightface's arcface_torch, written down independently of the network."""

    def norm(name, channels):
        shapes.update(
            {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        )
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes = {"conv1.weight": (widths[0], 3, 3, 3), "prelu.weight": (widths[0],)}
    norm("bn1", widths[0])
    before = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, before, 3, 3)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{name}.prelu.weight"] = (width,)
            norm(f"{name}.bn1", before)
            norm(f"{name}.bn2", width)
            norm(f"{name}.bn3", width)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    norm("bn2", widths[3])
    shapes |= {"fc.weight": (features, widths[3] * 49), "fc.bias": (features,)}
    norm("features", features)
    return shapes


@pytest.mark.parametrize(
    ("build", "depths", "millions"),
    [
        (iresnet18, (2, 2, 2, 2), 24.03),
        (iresnet34, (3, 4, 6, 3), 34.14),
        (iresnet50, (3, 4, 14, 3), 43.59),
        (iresnet100, (3, 13, 30, 3), 65.16),
    ],
)
def test_published_names_shapes_and_size(build, depths, millions):
    with torch.device("meta"):
        network = build()
    expected = published_shapes(depths, (64, 128, 256, 512), 512)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_last_scale_is_fixed_at_one():
    network = iresnet_slim()
    assert not network.features.weight.requires_grad
    assert torch.equal(network.features.weight, torch.ones(256))
    others = [p for name, p in network.named_parameters() if name != "features.weight"]
    assert all(p.requires_grad for p in others)
    assert all(
        m.eps == 1e-5 for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    )


def test_slim_is_small_and_maps_112_pixels_to_embeddings():
    network = iresnet_slim(num_features=256).eval()
    assert sum(p.numel() for p in network.parameters()) <= 1_300_000
    assert network(torch.zeros(2, 3, 112, 112)).shape == (2, 256)


def test_geometry_is_read_from_the_state_dict():
    state = iresnet_slim(num_features=48).state_dict()
    network = iresnet_from_state_dict(state).eval()
    assert network.embedding_size == 48
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    del state["layer2.1.bn2.weight"]
    with pytest.raises(RuntimeError, match="layer2.1.bn2.weight"):
        iresnet_from_state_dict(state)


def test_one_block_by_hand():
    """A block adds its residual to the shortcut, and has no activation after the sum."""
    block = iresnet_slim().layer2[1].eval()
    with torch.no_grad():
        block.conv1.weight.zero_()
        block.bn2.bias.fill_(-2.0)  # the PReLU (slope 0.25) makes it -0.5
        block.conv2.weight.zero_()
        block.conv2.weight[:, 0, 1, 1] = 1.0  # picks channel 0 at the centre
    x = torch.full((1, 32, 4, 4), -3.0)
    expected = torch.full_like(x, -3.0 - 0.5 / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(block(x), expected)


def test_embedding_stays_float32_under_autocast():
    network = iresnet_slim().eval()
    x = torch.randn(2, 3, 112, 112)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = network(x)
    assert embedding.dtype == torch.float32
    assert torch.cosine_similarity(embedding, network(x)).min() > 0.99


def test_dropout_acts_in_training_only():
    network = iresnet_slim(dropout=0.5)
    x = torch.randn(4, 3, 112, 112)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
