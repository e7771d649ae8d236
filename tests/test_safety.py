"""Files of others: safetensors only, the pinned revision, nothing that runs code or fills the memory."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from id_booth.diffusion.base_model import load_base_model
from tests.conftest import PROJECT_ROOT
from utils.errors import UserError
from utils.safe_load import MEBIBYTE, load_tensors


def test_the_base_model_is_loaded_as_safetensors_at_its_pinned_revision(monkeypatch):
    asked = {}

    def remember(name, **options):
        asked.update(options, name=name)
        raise OSError("no network")

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


BOMBS = {
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
    with pytest.raises((ValueError, RuntimeError, pickle.UnpicklingError, EOFError)):
        load_tensors(path, MEBIBYTE)
    assert not (tmp_path / "trap").exists()


def test_tensor_files_that_are_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"step": 3, "lora": {"a": torch.arange(5.0)}}, path)
    content = load_tensors(path, MEBIBYTE)
    assert content["step"] == 3 and torch.equal(content["lora"]["a"], torch.arange(5.0))


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
