"""Several LoRAs in one batch give each image what its own LoRA alone gives."""

from types import SimpleNamespace

import pytest
import torch

from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.lora_files import load_lora, unload_lora
from id_booth.diffusion.lora_reading import read_lora
from id_booth.sampling.lora_stack import LoraStack, can_stack, identities_per_batch, stackable_groups
from tests.tiny_base import make_tiny_base, make_tiny_lora


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base_model(tiny_base)


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    """LoRAs of different rank and scale, one with norms, one with a text encoder, one of another plain."""
    root = tmp_path_factory.mktemp("loras")
    other = make_tiny_base(root / "other plain", channels=(8, 24))
    options = {
        "a": {"seed": 1, "lora_alpha": 8},
        "b": {"seed": 2, "r": 3, "lora_alpha": 3},
        "dora": {"seed": 3, "use_dora": True},
        "text": {"seed": 4, "text_encoder": True},
    }
    made = {name: make_tiny_lora(root / name, tiny_base, **each) for name, each in options.items()}
    made["other"] = make_tiny_lora(root / "other", other)
    (root / "broken").mkdir()
    (root / "broken/pytorch_lora_weights.safetensors").write_bytes(b"torn")
    return made | {"broken": root / "broken"}


def predict(base, x, context):
    with torch.inference_mode():
        return base.unet(x, torch.full((len(x),), 300), context).sample


def test_each_image_goes_through_its_own_lora(base, folders):
    generator = torch.Generator().manual_seed(0)
    config = base.unet.config
    side = config.sample_size
    x = torch.randn(3, config.in_channels, side, side, generator=generator)
    context = torch.randn(3, 5, config.cross_attention_dim, generator=generator)
    plain = predict(base, x, context)
    alone = {}
    for name in ("a", "b"):
        load_lora(base, folders[name])
        alone[name] = predict(base, x, context)
    unload_lora(base)
    with LoraStack(base, [read_lora(folders[name], base) for name in ("a", "b")]) as stack:
        stack.choose([1, 0, 1], guided=False)
        mixed = predict(base, x, context)
        stack.choose([0], guided=True)
        assert stack.slots.index.tolist() == [0, 0]
    for item, name in enumerate("bab"):
        assert torch.allclose(mixed[item], alone[name][item], atol=1e-5)
    assert (alone["a"] - alone["b"]).abs().max() > 1e-3
    assert torch.equal(predict(base, x, context), plain)


def test_groups_keep_apart_what_cannot_stack(base, folders):
    units = [SimpleNamespace(lora=folders[name]) for name in ("a", "dora", "b", "broken", "text", "other")]
    together, *alone = stackable_groups(base, units)
    assert together == [units[0], units[2]]
    assert alone == [[units[i]] for i in (1, 3, 4, 5)]
    assert not can_stack(read_lora(folders["dora"], base)) and not can_stack(read_lora(folders["text"], base))
    baseline = [SimpleNamespace(lora=None), SimpleNamespace(lora=None)]
    assert stackable_groups(base, baseline) == [baseline]


def test_people_share_batches_only_where_places_stay_empty():
    assert identities_per_batch(21, 21) == 1
    assert identities_per_batch(21, 8) == 1  # 21 of 24 places
    assert identities_per_batch(21, 32) == 3  # 63 of 64
    assert identities_per_batch(21, 64) == 3  # 63 of 64
    assert identities_per_batch(3, 4) == 1
    assert identities_per_batch(1, 1000) == 16
    assert identities_per_batch(0, 8) == 1
