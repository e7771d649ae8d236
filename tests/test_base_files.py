"""One base model in the forms that it is handed round in: the same weights, the same fingerprint."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from id_booth.diffusion.base_files import base_model_fingerprint, weight_files
from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.families import StableDiffusion2, family_of
from id_booth.diffusion.lora_files import load_lora, unload_lora
from tests.conftest import PROJECT_ROOT
from tests.tiny_base import make_tiny_base, make_tiny_lora
from utils.errors import UserError

UNET = "unet/diffusion_pytorch_model.safetensors"


def pipeline(base, dtype=torch.float32):
    return StableDiffusionPipeline.from_pretrained(base, safety_checker=None, dtype=dtype)


def copied(base, folder):
    return shutil.copytree(base, folder)


def half(base, folder):
    pipeline(base, torch.float16).save_pretrained(folder, variant="fp16")


def half_shards(base, folder):
    pipeline(base, torch.float16).save_pretrained(folder, variant="fp16", max_shard_size="20KB")


def half_under_the_plain_name(base, folder):
    pipeline(base, torch.float16).save_pretrained(folder)


def shards(base, folder):
    pipeline(base).save_pretrained(folder, max_shard_size="20KB")


def both(base, folder):
    copied(base, folder)
    half(base, folder.with_name("half"))
    for part in ("unet", "vae", "text_encoder"):
        for file in (folder.with_name("half") / part).glob("*fp16*"):
            shutil.copy(file, folder / part)


def beside(name, content=None):
    """A further file beside the UNet's weights."""

    def make(base, folder):
        copied(base, folder)
        other = {key: value + 1 for key, value in load_file(folder / UNET).items()}
        if content is None:
            save_file(other, folder / "unet" / name)
        else:
            (folder / "unet" / name).write_bytes(content)

    return make


def with_safety_checker(base, folder):
    copied(base, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))


FORMS = {
    "a copy": copied,
    "fp16 alone": half,
    "fp16 under the plain name": half_under_the_plain_name,
    "shards": shards,
    "shards in fp16": half_shards,
    "fp32 and fp16 in one folder": both,
    "without the moving average beside it": beside("diffusion_pytorch_model.non_ema.safetensors"),
    "a file of macOS beside it": beside("._diffusion_pytorch_model.safetensors", b"\0\5\x16\7"),
    "another model beside it": beside("old.safetensors"),
    "a pickle beside it": beside("diffusion_pytorch_model.bin", b"x"),
    "a safety checker that is not there": with_safety_checker,
}


@pytest.fixture(scope="module")
def plain(tiny_base):
    return load_base_model(tiny_base).unet.state_dict()


@pytest.mark.parametrize("name", FORMS)
def test_one_model_has_one_fingerprint_and_loads(tiny_base, plain, tmp_path, name):
    FORMS[name](tiny_base, tmp_path / "base")
    assert base_model_fingerprint(tmp_path / "base") == base_model_fingerprint(tiny_base)
    base = load_base_model(tmp_path / "base")
    for key, value in base.unet.state_dict().items():
        assert value.dtype == torch.float32 and torch.allclose(value, plain[key], atol=1e-3)
    lora = make_tiny_lora(tmp_path / "lora", tiny_base)
    (tmp_path / "lora/training_config.json").write_text(
        json.dumps({"base_model": "b", "base_fingerprint": base_model_fingerprint(tiny_base)})
    )
    load_lora(base, lora)
    unload_lora(base)


def one_value(tensors):
    tensors["mid_block.attentions.0.proj_in.weight"][0, 0] += 0.5


def another_shape(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:4].clone()


@pytest.mark.parametrize("change", [one_value, another_shape])
def test_other_weights_have_another(tiny_base, tmp_path, change):
    folder = copied(tiny_base, tmp_path / "base")
    tensors = load_file(folder / UNET)
    change(tensors)
    save_file(tensors, folder / UNET)
    assert base_model_fingerprint(folder) != base_model_fingerprint(tiny_base)
    assert base_model_fingerprint(make_tiny_base(tmp_path / "b", seed=5)) != base_model_fingerprint(tiny_base)


def test_files_are_picked_as_diffusers_picks_them(tiny_base, tmp_path):
    half_shards(tiny_base, tmp_path / "base")
    files, variant = weight_files(tmp_path / "base", "unet")
    assert variant == "fp16" and len(files) > 1 and all("fp16" in file.name for file in files)
    shards(tiny_base, tmp_path / "base")
    files, variant = weight_files(tmp_path / "base", "unet")
    assert variant is None and not any("fp16" in file.name for file in files)
    assert weight_files(tiny_base, "text_encoder") == ([tiny_base / "text_encoder/model.safetensors"], None)


def test_shards_outside_the_folder_are_not_read(tiny_base, tmp_path):
    shards(tiny_base, tmp_path / "base")
    index = tmp_path / "base/unet/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../../secret.safetensors")
    index.write_text(json.dumps(content))
    assert [file.parent.name for file in weight_files(tmp_path / "base")[0]] == ["unet"]


# ------------------------------------------------------------------------------------- from the hub's cache


@pytest.fixture
def hub(tmp_path):
    """A function that puts a repository into a cache of the hub, and returns the cache."""

    def put(name, make):
        root = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = root / "snapshots" / ("a" * 40)
        snapshot.parent.mkdir(parents=True)
        make(snapshot)
        (root / "refs").mkdir()
        (root / "refs/main").write_text("a" * 40)

    return put


OFFLINE = """
import sys
from id_booth.diffusion.base_model import load_base_model
from utils.errors import UserError
for name in sys.argv[1:]:
    try:
        base = load_base_model(name)
        print("LOADED", base.family, base.unet.dtype, base.fingerprint)
    except UserError as error:
        print("REFUSED", error)
"""


def offline(run_python, tmp_path, *names):
    return run_python(OFFLINE, *names, HF_HUB_CACHE=tmp_path / "hub", HF_HUB_OFFLINE=1).splitlines()


@pytest.fixture
def run_python():
    """Runs Python code with arguments and environment in a process of its own; its output."""

    def run(code, *arguments, **environment):
        environment = {**os.environ, **{key: str(value) for key, value in environment.items()}}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=PROJECT_ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_offline_from_the_cache(tiny_base, hub, run_python, tmp_path):
    forms = {f"lab/{form.__name__}": form for form in (copied, half, half_shards)}
    for name, form in forms.items():
        hub(name, lambda folder, form=form: form(tiny_base, folder))
    told = offline(run_python, tmp_path, *forms)
    assert told == [f"LOADED Stable Diffusion 2.x torch.float32 {name}@main" for name in forms]


def test_offline_and_not_in_the_cache(run_python, tmp_path):
    reasons = {
        "lab/absent": "cannot be had from the hub",
        "stabilityai/stable-diffusion-2-1-base": "was withdrawn from the hub",
    }
    told = offline(run_python, tmp_path, *reasons)
    assert len(told) == len(reasons)
    for line, (name, why) in zip(told, reasons.items(), strict=True):
        assert line.startswith(f"REFUSED {name}: {why}") and "set the base model to the mirror" in line


# ----------------------------------------------------------------------------------------------- refused


def setting(file, **change):
    """A change of a JSON file in the folder."""

    def make(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return make


def without(part):
    return lambda folder: shutil.rmtree(folder / part)


SCHEDULER = "scheduler/scheduler_config.json"
BROKEN = {
    "no scheduler": (without("scheduler"), "does not load as a Stable Diffusion model"),
    "no VAE": (without("vae"), "does not load as a Stable Diffusion model"),
    "no UNet": (without("unet"), "unet/config.json: not found"),
    "no weights": (lambda f: (f / UNET).unlink(), "no diffusion_pytorch_model.safetensors"),
    "cut weights": (lambda f: (f / UNET).write_bytes(b"xx"), "does not load as a Stable Diffusion model"),
    "a list": (lambda f: (f / "unet/config.json").write_text("[]"), "not the settings of a network"),
    "no JSON": (lambda f: (f / "unet/config.json").write_text("{"), "not readable as JSON"),
    "another kind": (setting("model_index.json", _class_name="FluxPipeline"), "of the kind FluxPipeline"),
    "for inpainting": (
        setting("model_index.json", _class_name="StableDiffusionInpaintPipeline"),
        "of the kind StableDiffusionInpaintPipeline; these are read: Stable Diffusion 1.x",
    ),
    "flow": (setting(SCHEDULER, prediction_type="flow_prediction"), "predicts 'flow_prediction'"),
    "noise at zero SNR": (setting(SCHEDULER, rescale_betas_zero_snr=True), "rescale_betas_zero_snr to false"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_base_model_is_refused_in_one_line(tiny_base, tmp_path, name):
    change, message = BROKEN[name]
    folder = copied(tiny_base, tmp_path / "base")
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_base_model(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_that_are_read(tiny_base, tmp_path, prediction):
    folder = copied(tiny_base, tmp_path / "base")
    setting(SCHEDULER, prediction_type=prediction, rescale_betas_zero_snr=prediction != "epsilon")(folder)
    assert load_base_model(folder).schedule.prediction_type == prediction
    assert family_of(folder) is StableDiffusion2


def test_single_files_that_are_not_read_say_what_to_do(tiny_base, tmp_path):
    for name, message in (
        ("v2-1_512-ema-pruned.safetensors", "put model_index.json, the tokenizer .* or convert the file"),
        ("v2-1_512-ema-pruned.ckpt", "only safetensors files are read"),
    ):
        shutil.copy(tiny_base / UNET, tmp_path / name)
        with pytest.raises(UserError, match=message) as caught:
            load_base_model(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no model_index.json in it; give a folder in diffusers' layout"):
        load_base_model(tmp_path)  # of other networks' weights, and files that are none
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "v2-1_512.safetensors")
    with pytest.raises(UserError, match=r"give the file .*v2-1_512.safetensors itself"):
        load_base_model(tmp_path)
