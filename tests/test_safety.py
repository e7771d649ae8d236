"""Files of others: safetensors only, the pinned revision, nothing that runs code or fills the memory."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline

from arcface_files.safe_load import MEBIBYTE, load_tensors
from id_booth.diffusion.base_model import load_base_model
from tests.conftest import PROJECT_ROOT
from tests.memory import peak_growth
from utils.errors import UserError


def test_the_base_model_is_loaded_as_safetensors_at_its_pinned_revision(monkeypatch, tiny_base):
    asked = {}

    def remember(name, **options):
        asked.update(options, name=name)
        raise OSError("no network")

    def settings(name, file, revision):
        assert (name, revision) == ("someone/model", "0123abc")
        return tiny_base / file

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", settings)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", remember)
    with pytest.raises(UserError, match="no network"):
        load_base_model("someone/model", revision="0123abc")
    assert asked["use_safetensors"] is True and asked["revision"] == "0123abc"


def deflated(data):
    """A .pt archive whose entries are compressed, as no torch writes them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def saved(value):
    """The bytes torch.save makes of a value."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def archive(pickled):
    """A .pt archive around a hand-made pickle."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(4)}))) as old,
        zipfile.ZipFile(packed, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return packed.getvalue()


def asking(name, argument):
    """A pickle that calls a function with one argument (itself a pickle's steps)."""
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + argument + b"\x85R."


def nested(depth):
    """Lists that hold the last one twice: two to the power of ``depth`` tensors, in a few bytes."""
    value = [torch.zeros(1)]
    for _ in range(depth):
        value = [value, value]
    return value


BILLIONS = b"\x8a\x06" + (3 * 10**9).to_bytes(6, "little")
LEGACY = dict(_use_new_zipfile_serialization=False)


def old_form(value):
    stream = io.BytesIO()
    torch.save(value, stream, **LEGACY)
    return stream.getvalue()


BOMBS = {
    "bytearray of a length": lambda folder: archive(asking("builtins bytearray", BILLIONS)),
    "bytearray, old form": lambda folder: old_form({}).replace(
        b"}q\x00.", asking("builtins bytearray", BILLIONS)[2:]
    ),
    "tensor of a length": lambda folder: archive(asking("torch Tensor", BILLIONS)),
    "texts that double": lambda folder: archive(asking("_codecs encode", b"X\1\0\0\0a")),
    "a set": lambda folder: archive(asking("builtins set", b"]")),
    "a counter": lambda folder: archive(asking("collections Counter", b"]")),
    "steps without end": lambda folder: archive(b"\x80\x02" + b"\x8f" * 3_000_000 + b"."),
    "a tensor named often": lambda folder: saved(dict.fromkeys(range(2000), torch.zeros(1000))),
    "zero strides": lambda folder: saved(torch.zeros(1).expand(2**16, 2**17)),
    "zero strides, old form": lambda folder: old_form(torch.zeros(1).expand(2**16, 2**17)),
    "zero strides, half": lambda folder: saved({"a": torch.zeros(1).half().expand(2**17, 2**16)}),
    "sparse": lambda folder: saved(torch.zeros(2**20, 2**20, layout=torch.sparse_coo)),
    "no memory at all": lambda folder: saved(torch.zeros(2**20, 2**20, device="meta")),
    "half an archive": lambda folder: saved(torch.zeros(9))[:200],
    "an archive behind a pickle": lambda folder: asking("builtins bytearray", BILLIONS) + saved({}),
    "too large": lambda folder: saved(torch.zeros(MEBIBYTE)),
    "unpacks to too much": lambda folder: deflated(saved(torch.zeros(MEBIBYTE))),
    "claims more than it has": lambda folder: saved({"a": [torch.zeros(1).expand(10**12)]}),
    "empty": lambda folder: b"",
    "noise": lambda folder: b"\x80\x02noise",
    "code, old format": lambda folder: pickle.dumps(Evil(folder / "trap")),
    "code, new format": lambda folder: saved(Evil(folder / "trap")),
}


@pytest.mark.parametrize("name", BOMBS)
def test_tensor_files_that_are_refused(tmp_path, name):
    path = tmp_path / "a.pt"
    path.write_bytes(BOMBS[name](tmp_path))

    def read():
        with pytest.raises((ValueError, RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile)):
            load_tensors(path, 8 * MEBIBYTE if "end" in name else MEBIBYTE)

    assert peak_growth(read) < 300 * MEBIBYTE
    assert not (tmp_path / "trap").exists()


def test_tensor_files_that_are_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"step": 3, "lora": {"a": torch.arange(5.0)}}, path)
    content = load_tensors(path, MEBIBYTE)
    assert content["step"] == 3 and torch.equal(content["lora"]["a"], torch.arange(5.0))


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.zeros(3).half(), "b": [torch.ones(2, 2), ("text", 1, None)]},
        torch.nn.Linear(3, 4).state_dict(),
        torch.nn.Parameter(torch.zeros(5)),
        torch.arange(6).reshape(2, 3).T,
        torch.zeros(100)[:5],
        [torch.zeros(2, dtype=kind) for kind in (torch.bfloat16, torch.bool, torch.uint8, torch.int64)],
    ],
)
def test_every_plain_tensor_is_read_in_both_forms(tmp_path, value):
    for data in (saved(value), old_form(value)):
        (tmp_path / "a.pt").write_bytes(data)
        assert str(load_tensors(tmp_path / "a.pt", MEBIBYTE)) == str(value)


def test_tensors_of_newer_types_are_read(tmp_path):
    for kind in (torch.float8_e4m3fn, torch.uint16):
        torch.save({"a": torch.zeros(4).to(kind)}, tmp_path / "a.pt")
        assert load_tensors(tmp_path / "a.pt", MEBIBYTE)["a"].dtype == kind


def test_lists_that_double_are_walked_once(tmp_path):
    torch.save(nested(60), tmp_path / "a.pt")
    assert len(load_tensors(tmp_path / "a.pt", MEBIBYTE)) == 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_tensor_files_that_are_no_files(tmp_path, make):
    make(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no file"):
        load_tensors(tmp_path / "a.pt", MEBIBYTE)


def test_no_source_file_reads_pickles_freely():
    """Every unpickler in the project is restricted: torch's by weights_only, ours by a list of names."""
    folders = ("utils", "evaluation", "fr_training", "arcface_files", "mini", "configs", "benchmarks")
    files = [*PROJECT_ROOT.glob("*.py")]
    files += [file for name in folders for file in (PROJECT_ROOT / name).rglob("*.py")]
    assert len(files) > 80
    for file in files:
        text = Path(file).read_text()
        assert "weights_only=" + "False" not in text and "allow_" + "pickle=True" not in text, file
        assert "pickle." + "load(" not in text and "pickle." + "loads(" not in text, file
        for call in text.split("torch." + "load(")[1:]:
            assert "weights_only=True" in call[:200], file
