"""LoRA files that ask for much, are cut, or are none: one line, nothing made, the base model untouched."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.lora_files import load_lora, unload_lora
from id_booth.diffusion.lora_reading import read_lora
from tests.memory import MEBIBYTE, peak_growth
from tests.test_greedy_networks import SAFETENSORS, header
from tests.tiny_base import make_tiny_lora
from utils.errors import UserError

NAME = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base_model(tiny_base)


@pytest.fixture
def lora(tmp_path, tiny_base):
    make_tiny_lora(tmp_path / "lora", tiny_base)
    return tmp_path / "lora" / NAME


def refused(base, path):
    """Loading ends in one line and leaves the base model's weights as they were; at most so much is taken."""
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}

    def load():
        with pytest.raises(UserError) as caught:
            load_lora(base, path, fuse=True)
        assert path.parent.name in str(caught.value) and "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    assert peak_growth(load) < 300 * MEBIBYTE
    assert all(torch.equal(before[name], value) for name, value in base.unet.state_dict().items())


FILES = {name: data for name, data in SAFETENSORS.items() if data} | {
    "deep notes": header({"__metadata__": {"lora_adapter_metadata": "[" * 100_000}}),
    "notes of numbers": header({"__metadata__": {"lora_adapter_metadata": 5}}),
    "endless number": header({"__metadata__": {"lora_adapter_metadata": "9" * 5000}}),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_loras(base, lora, name):
    lora.write_bytes(FILES[name])
    refused(base, lora)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_not_opened(base, lora, make):
    lora.unlink()
    make(lora)
    refused(base, lora)


def test_a_file_beyond_any_lora(base, lora):
    os.truncate(lora, 5 * 2**30)  # takes no space on the disk
    refused(base, lora)


def is_down(key):
    return "lora_A" in key or "lora.down" in key


TENSORS = {
    "whole numbers": lambda t: {key: value.to(torch.int64) for key, value in t.items()},
    "complex": lambda t: {key: value.to(torch.complex64) for key, value in t.items()},
    "infinite": lambda t: {key: value / 0 for key, value in t.items()},
    "no rows": lambda t: {key: value[:0] for key, value in t.items()},
    "no columns": lambda t: {key: value[:, :0] for key, value in t.items()},
    "thin, of 10,000 rows": lambda t: {key: torch.zeros(10_000, 1) for key in t},
    "of 100,000 ranks": lambda t: {k: torch.zeros(100_000, 1) if is_down(k) else v for k, v in t.items()},
    "other layers": lambda t: {f"unet.a{i}.{key}": value for i, (key, value) in enumerate(t.items())},
    "the model itself": lambda t: {
        "unet.lora_A.weight": torch.zeros(2, 2),
        "unet.lora_B.weight": torch.zeros(2, 2),
    },
    "a hundred thousand of them": lambda t: {f"x{i}": torch.zeros(1) for i in range(100_000)},
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_no_lora(base, lora, name):
    save_file({key: value.contiguous() for key, value in TENSORS[name](load_file(lora)).items()}, lora)
    refused(base, lora)


NOTES = [
    {"unet.r": [], "unet.lora_alpha": {}},
    {"unet.lora_alpha": "much"},
    {"unet.lora_alpha": 1e308},
    {"unet.lora_alpha": None},
    {"unet.alpha_pattern": [1]},
    {"unet.alpha_pattern": {"to_q": {}}},
    [],
    "x",
]


@pytest.mark.parametrize("notes", NOTES)
def test_notes_that_make_no_sense_are_refused_or_do_no_harm(base, lora, notes):
    save_file(load_file(lora), lora, metadata={"lora_adapter_metadata": json.dumps(notes)})
    try:
        load_lora(base, lora, fuse=True)
        unload_lora(base)
    except UserError as error:
        assert "adapter metadata is damaged" in str(error) and "\n" not in str(error)


def test_a_good_lora_is_read(base, lora):
    assert read_lora(lora, base).layers["unet"]
