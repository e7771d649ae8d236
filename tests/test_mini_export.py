"""The exported bundle: it loads, in half precision, and says nothing of the machine that made it."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from mini.build.base_model import new_text_encoder, new_unet
from mini.build.export import export_base
from mini.build.tokenizer import build_tokenizer
from mini.build.vae import new_vae


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """(folder of the export, folder of the build) of a tiny base model whose VAE came from disk."""
    build = tmp_path_factory.mktemp("secret_build")
    new_vae((8, 8, 8, 8), 0).save_pretrained(build / "vae")
    tokenizer = build_tokenizer(build / "tokenizer")
    folder = tmp_path_factory.mktemp("bundle") / "base"
    vae = AutoencoderKL.from_pretrained(build / "vae")
    text_encoder, unet = new_text_encoder(tokenizer, 32, 1, 0), new_unet((32, 32), 32, 0)
    size = export_base(folder, vae, text_encoder, tokenizer, unet)
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert vae.dtype == torch.float32  # half precision stays in the copy
    return folder, build


def test_no_file_names_the_build_folder(bundle):
    folder, build = bundle
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*.json")}
    assert {"model_index.json", "config.json", "vocab.json"} <= set(texts)
    assert not [name for name, text in texts.items() if str(build) in text or '_or_path"' in text]


def test_it_loads_in_half_precision(bundle):
    pipe = StableDiffusionPipeline.from_pretrained(bundle[0], safety_checker=None, dtype=torch.float16)
    assert {part.dtype for part in (pipe.vae, pipe.unet, pipe.text_encoder)} == {torch.float16}
    assert pipe.scheduler.config.prediction_type == "epsilon"
