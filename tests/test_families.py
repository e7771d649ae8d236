"""Every family of base models, thin, through all the scripts, and beside a plain diffusers script."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file

from configs.train_config import TrainConfig
from evaluation import evaluate
from id_booth import export_lora
from id_booth.diffusion import base_costs
from id_booth.diffusion.base_model import load_base_model, outline
from id_booth.diffusion.denoising import decode_latents, make_scheduler, sample_latents
from id_booth.diffusion.families import FAMILIES, family_of
from id_booth.diffusion.lora_files import check_fits, load_lora, unload_lora
from id_booth.diffusion.lora_reading import read_lora
from id_booth.sampling.lora_stack import LoraStack
from id_booth.sampling.provenance import read_record
from tests import docs_world, miniature_runs
from tests.test_cohort import distance
from tests.tiny_base import make_tiny_lora
from tests.tiny_families import SIDE, UNETS, make_family, single_file
from utils.errors import UserError
from utils.images import load_image, save_png
from utils.run_record import PROJECT_ROOT

LORA = "pytorch_lora_weights.safetensors"
OBJECTIVES = ("DreamBooth", "PortraitBooth", "ID-Booth")
PROMPT, NEGATIVE = "photo of sks person", "drawing"
NAMES = {"sd15": "Stable Diffusion 1.x", "sd21-768": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}


@pytest.fixture(autouse=True)
def signals_as_before():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """A function of a family's name: a folder of photos with their embeddings, a pack, a thin base model."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def world(name):
        if not made:
            made["photos"] = miniature_runs.make_world(root / "photos")
            shutil.rmtree(root / "photos/base")
            miniature_runs.embed(root / "photos", "--class-folder", root / "photos/class")
        if name not in made:
            made[name] = shutil.copytree(root / "photos", root / name)
            make_family(root / name / "base", name)
        return made[name]

    return world


@pytest.fixture(scope="session")
def trained(worlds):
    """A function of a family's name: its world, with LoRAs of all objectives on UNet and text encoders."""

    def world(name):
        folder = worlds(name)
        if not (folder / "loras").is_dir():
            options = ("--train-text-encoder", "--objectives", *OBJECTIVES, "--identities", "ID_1", "ID_2")
            more = ("--validation-images", 1, "--validation-steps", 2, "--with-prior-preservation")
            classes = ("--num-class-images", 3, "--class-inference-steps", 2, "--max-train-steps", 2)
            strong = ("--learning-rate", 0.1)
            assert not train(folder, folder / "loras", *options, *more, *classes, *strong)
        return folder

    return world


def train(world, output, *overrides):
    """train_id_booth.py; its exit code."""
    return miniature_runs.train(world, output, *overrides)


def lora(output, objective="ID-Booth", name="ID_1"):
    """The tensors of a finished LoRA."""
    return load_file(final(output / objective / name) / LORA)


def final(folder):
    """The last checkpoint of a training."""
    return folder / json.loads((folder / "training_config.json").read_text())["final_checkpoint"]


def plain_diffusers(base, lora_folder, record):
    """The image that a script of diffusers makes as a record says, with or without a LoRA; (H, W, 3) int."""
    options = {"safety_checker": None} if "sdxl" not in str(base) else {"add_watermarker": False}
    pipe = DiffusionPipeline.from_pretrained(base, **options)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    if lora_folder:
        pipe.load_lora_weights(lora_folder)
    image = pipe(
        record["prompt"],
        negative_prompt=record["negative_prompt"],
        height=SIDE,
        width=SIDE,
        num_inference_steps=record["steps"],
        guidance_scale=record["guidance"],
        generator=torch.Generator().manual_seed(record["seed"]),
    ).images[0]
    return np.asarray(image).astype(int)


def draw(base, seeds=(1,), choose=None):
    """Images (N, H, W, 3) of some seeds; ``choose``: a LoraStack and the slot of each."""
    texts = [base.encode([text] * len(seeds), SIDE) for text in (PROMPT, NEGATIVE)]
    if choose:
        choose[0].choose(choose[1], guided=True)
    latents = sample_latents(base.unet, make_scheduler("ddpm", base.schedule), *texts, seeds, 2, 5.0)
    return decode_latents(base.vae, latents).astype(int)


@pytest.mark.parametrize("name", UNETS)
def test_through_all_scripts_and_in_diffusers(trained, tmp_path, name):
    world = trained(name)
    assert len(list((world / "class/images").iterdir())) == 3  # one of them made by the base model
    for objective in OBJECTIVES:
        keys = lora(world / "loras", objective).keys()
        assert {key.partition(".")[0] for key in keys} == {"unet", *family_of(world / "base").text_parts}
        assert (final(world / "loras" / objective / "ID_1") / "validation.jpg").is_file()
    options = ("--methods", "NonFineTuned", *OBJECTIVES, "--no-contact-sheets")
    assert not miniature_runs.sample(world, tmp_path, *options, "--identities", "ID_1", "ID_2")
    images = {path: load_image(path).astype(int) for path in tmp_path.glob("set/*/*/*.png")}
    assert len(images) == 4 * 2 * 3
    for method in ("NonFineTuned", "ID-Booth"):
        path = tmp_path / "set" / method / "ID_2/001.png"
        folder = None if method == "NonFineTuned" else final(world / "loras/ID-Booth/ID_2")
        expected = plain_diffusers(world / "base", folder, read_record(path))
        assert np.abs(images[path] - expected).max() <= 2
    changed = [images[tmp_path / f"set/{method}/ID_2/001.png"] for method in ("NonFineTuned", "ID-Booth")]
    assert np.abs(changed[0] - changed[1]).max() > 10
    for path in tmp_path.glob("set/ID-Booth/*/*.png"):  # of another generator: without metadata
        save_png(tmp_path / "set/Theirs" / path.parent.name / f"image {path.name}", load_image(path))
    rows = {row["method"]: row for row in evaluated(world, tmp_path)}
    assert rows.keys() >= {"NonFineTuned", "Theirs", *OBJECTIVES}
    figures = [{k: str(v) for k, v in rows[name].items() if k != "method"} for name in ("ID-Booth", "Theirs")]
    assert figures[0] == figures[1]


def evaluated(world, output):
    """The first table of the evaluation of samples against the photos, which a pack of its own sees."""
    docs_world.make_pack(output / "pack")
    config = evaluate.EvaluationConfig(
        samples_folder=str(output / "set"),
        real_folder=str(world / "faces"),
        output_folder=str(output / "report"),
        cache_folder=None,
        pack=str(output / "pack"),
        encoders=("pixels",),
        replicates=20,
        verification_replicates=20,
        device="cpu",
    )
    _, sections, _ = evaluate.evaluate(config)
    return sections[0].tables[0].rows


# Trains, and dies by kill -9 the moment its second state of resume is written.
KILLED = """
import os, signal, sys
from pathlib import Path
import train_id_booth
from tests import miniature_runs
save, saved = train_id_booth.save_resume, []
def save_and_die(*arguments):
    save(*arguments)
    saved.append(arguments)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
train_id_booth.save_resume = save_and_die
world, output, *options = sys.argv[1:]
miniature_runs.train(Path(world), Path(output), *options)
"""


@pytest.mark.parametrize("name", UNETS)
def test_killed_and_resumed_equals_undisturbed_and_a_cohort_its_members(worlds, tmp_path, name):
    world = worlds(name)
    options = ("--objectives", "ID-Booth", "--max-train-steps", 4, "--train-text-encoder")
    one, both = (*options, "--identities", "ID_1"), (*options, "--identities", "ID_1", "ID_2")
    assert not train(world, tmp_path / "whole", *both)
    command = [sys.executable, "-c", KILLED, world, tmp_path / "cut", *one]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([*map(str, command)], cwd=PROJECT_ROOT, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert (tmp_path / "cut/ID-Booth/ID_1/resume.pt").is_file()
    assert not train(world, tmp_path / "cut", *one)
    whole, cut = (lora(tmp_path / run) for run in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert not train(world, tmp_path / "cohort", *both, "--cohort-size", 2)
    for person in ("ID_1", "ID_2"):
        alone, together = (lora(tmp_path / run, name=person) for run in ("whole", "cohort"))
        assert distance(alone, together) < 1e-3


@pytest.mark.parametrize("name", UNETS)
def test_fast_recipe_in_bf16_learns_in_every_part(worlds, tmp_path, name):
    options = ("--objectives", "ID-Booth", "--identities", "ID_1", "--max-train-steps", 2)
    more = ("--mixed-precision", "bf16", "--train-text-encoder", "--gradient-checkpointing")
    assert not train(worlds(name), tmp_path, *options, *more, "--identity-decode", "full")
    learnt = {key.partition(".")[0]: 0 for key in lora(tmp_path)}
    for key, value in lora(tmp_path).items():
        if ".up." in key:
            learnt[key.partition(".")[0]] += value.abs().sum().item()
    assert all(value > 0 for value in learnt.values())


# ------------------------------------------------------------------------------------------------ LoRAs


@pytest.mark.parametrize("name", UNETS)
def test_a_lora_of_zeros_changes_nothing(trained, tmp_path, name):
    world = trained(name)
    zeros = {key: torch.zeros_like(value) for key, value in lora(world / "loras").items()}
    save_file(zeros, tmp_path / LORA)
    base = load_base_model(world / "base")
    before = draw(base)
    expected = plain_diffusers(
        world / "base",
        None,
        {"prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": 2, "guidance": 5.0, "seed": 1},
    )
    assert np.abs(before[0] - expected).max() <= 1
    for fuse in (True, False):
        load_lora(base, tmp_path, fuse=fuse)
        assert np.array_equal(draw(base), before)
    unload_lora(base)


@pytest.mark.parametrize("name", UNETS)
def test_stacked_fused_and_attached_agree(trained, tmp_path, name):
    world = trained(name)
    base, files, alone = load_base_model(world / "base"), [], []
    for person in ("ID_1", "ID_2"):
        tensors = lora(world / "loras", name=person)
        (tmp_path / person).mkdir()
        files.append(tmp_path / person / LORA)
        save_file({key: 3 * t for key, t in tensors.items() if key.startswith("unet")}, files[-1])
        load_lora(base, files[-1], fuse=False)
        attached = draw(base)
        load_lora(base, files[-1], fuse=True)
        alone.append(draw(base)[0])
        assert np.abs(alone[-1] - attached[0]).max() <= 2
    unload_lora(base)
    with LoraStack(base, [read_lora(file, base) for file in files]) as stack:
        mixed = draw(base, (1, 1), (stack, [1, 0]))
    assert np.abs(mixed - np.stack(alone[::-1])).max() <= 2
    assert np.abs(alone[0] - alone[1]).max() > 2


@pytest.mark.parametrize("of", UNETS)
@pytest.mark.parametrize("on", UNETS)
def test_a_lora_of_another_family_is_refused_by_name(trained, worlds, tmp_path, of, on):
    folder = final(trained(of) / "loras/ID-Booth/ID_1")
    base = load_base_model(worlds(on) / "base")
    if of == on:
        load_lora(base, folder)
        return unload_lora(base)
    with pytest.raises(UserError) as caught:
        load_lora(base, folder)
    told = str(caught.value)
    assert str(folder) in told and "\n" not in told
    assert f"({NAMES[of]}), and {base.name} is a {NAMES[on]} model" in told


@pytest.mark.parametrize("width, family", [(768, "sd15"), (1024, "sd21-768"), (2048, "sdxl")])
def test_a_lora_of_others_is_named_by_the_width_of_its_texts(worlds, tmp_path, width, family):
    base = load_base_model(worlds("sdxl") / "base")
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora"
    save_file(
        {f"{key}.down.weight": torch.ones(2, width), f"{key}.up.weight": torch.ones(9, 2)}, tmp_path / LORA
    )
    with pytest.raises(UserError, match=f"another base model \\({NAMES[family]}\\), does not fit"):
        load_lora(base, tmp_path)


@pytest.mark.parametrize("name", UNETS)
def test_exported_for_kohya_it_is_the_same_lora(trained, tmp_path, name):
    world, file = trained(name), tmp_path / "lora.safetensors"
    checkpoint = final(world / "loras/ID-Booth/ID_1")
    export_lora.main([str(checkpoint), str(file)])
    tensors, base = load_file(file), load_base_model(world / "base")
    prefixes = {key.partition("_text_model")[0] for key in tensors if key.startswith("lora_te")}
    assert prefixes == ({"lora_te1", "lora_te2"} if name == "sdxl" else {"lora_te"})
    assert any("input_blocks" in key for key in tensors) == (name == "sdxl")
    first, second = (read_lora(path, base) for path in (checkpoint, file))
    weightless = outline(world / "base")
    assert read_lora(file, weightless).layers.keys() == second.layers.keys()
    check_fits(weightless, second)
    assert first.scales == second.scales
    for part, modules in first.layers.items():
        for module, weights in modules.items():
            theirs = next(
                w for m, w in second.layers[part].items() if m.endswith(module.removeprefix("text_model."))
            )
            assert all(torch.equal(weights[kind], theirs[kind]) for kind in weights)
    record = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": 2, "guidance": 5.0, "seed": 1}
    load_lora(base, checkpoint)
    ours = draw(base)[0]
    assert np.abs(ours - plain_diffusers(world / "base", file, record)).max() <= 2
    with pytest.raises(UserError, match="lora.safetensors: exists already; name a new file"):
        export_lora.export_lora(checkpoint, file)
    with pytest.raises(UserError, match="in kohya's form already"):
        export_lora.export_lora(file, tmp_path / "again.safetensors")


def test_a_lora_of_unknown_family_is_not_exported(tiny_base, tmp_path):
    make_tiny_lora(tmp_path, tiny_base)
    with pytest.raises(UserError, match="does not say of which family"):
        export_lora.export_lora(tmp_path, tmp_path / "out.safetensors")


# ------------------------------------------------------------------------------------------------ costs


@pytest.mark.parametrize("name", UNETS)
def test_costs_are_those_of_the_model_itself(trained, name):
    world = trained(name)
    options = {"base_model": str(world / "base"), "resolution": SIDE, "lora_rank": 2, "cohort_size": 1}
    config = TrainConfig(train_text_encoder=True, **options)
    tensors = lora(world / "loras")
    assert base_costs.lora_parameters(config) == sum(tensor.numel() for tensor in tensors.values())
    unet_alone = sum(tensor.numel() for key, tensor in tensors.items() if key.startswith("unet."))
    assert base_costs.lora_parameters(TrainConfig(**options)) == unet_alone
    base = load_base_model(world / "base")
    weights = sum(p.numel() for part in (base.vae, *base.parts.values()) for p in part.parameters())
    assert base_costs.parameters(world / "base") == pytest.approx(weights, rel=1e-3)
    assert 4 * weights < base_costs.memory_needed(config, 4) < 4 * weights + 2**30


SD21 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": 3 * ["CrossAttnDownBlock2D"] + ["D"],
}


def test_a_pass_through_sd21_keeps_what_was_measured():
    assert 4 * base_costs.unet_values(SD21, 64) / 2**30 == pytest.approx(1.55, abs=0.05)


def test_costs_of_a_model_that_is_not_here():
    config = TrainConfig(base_model="nobody/none", lora_rank=4)
    assert base_costs.memory_needed(config, 4) is None
    assert base_costs.lora_parameters(config) == 829_440


def test_costs_of_a_model_in_the_cache_of_the_hub(worlds, tmp_path, monkeypatch):
    """Where a download broke off it goes on at the first run, and nothing is known yet."""
    snapshot = tmp_path / "models--lab--xl/snapshots" / ("a" * 40)
    shutil.copytree(worlds("sdxl") / "base", snapshot)
    (tmp_path / "models--lab--xl/refs").mkdir()
    (tmp_path / "models--lab--xl/refs/main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = TrainConfig(base_model="lab/xl", lora_rank=2, resolution=SIDE)
    assert base_costs.local_source(config) == snapshot
    local = TrainConfig(base_model=str(snapshot), lora_rank=2, resolution=SIDE)
    assert base_costs.lora_parameters(config) == base_costs.lora_parameters(local)
    (snapshot / "text_encoder_2/model.safetensors").unlink()
    assert base_costs.local_source(config) is None


def test_a_target_that_names_no_layer_is_refused(worlds, tmp_path):
    options = ("--identities", "ID_1", "--objectives", "DreamBooth", "--lora-targets", "to_q", "proj_in")
    assert train(worlds("sd15"), tmp_path, *options) == 1  # convolutions there
    detail = json.loads((tmp_path / "summary.json").read_text())[0]["detail"]
    assert "no linear layer of the UNet2DConditionModel is called 'proj_in'" in detail


# ------------------------------------------------------------------------------------------- the base model


@pytest.mark.parametrize("name", UNETS)
def test_families_are_recognised_by_their_own_files(worlds, name):
    folder = worlds(name) / "base"
    assert family_of(folder).family == NAMES[name]
    assert load_base_model(folder).family == NAMES[name]
    assert [family.family for family in FAMILIES] == list(NAMES.values())


def test_a_single_file_is_the_model_that_it_was_made_of(worlds, tmp_path):
    folder = worlds("sd15") / "base"
    file = single_file(folder, tmp_path / "v1-5.safetensors")
    shutil.copytree(folder, tmp_path / "v1-5", ignore=shutil.ignore_patterns("*.safetensors"))
    base, same = load_base_model(folder), load_base_model(file)
    assert same.family == base.family and same.fingerprint == base.fingerprint
    for part in base.parts | {"vae": base.vae}:
        expected, found = (getattr(each.pipe, part).state_dict() for each in (base, same))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert np.abs(draw(base) - draw(same)).max() <= 1
    options = {"resolution": SIDE, "lora_rank": 2}
    costs = [base_costs.lora_parameters(TrainConfig(base_model=str(m), **options)) for m in (folder, file)]
    assert costs[0] == costs[1]


def test_texts_and_sizes_of_sdxl_are_those_of_diffusers(worlds):
    base = load_base_model(worlds("sdxl") / "base")
    text, negative, pooled, pooled_negative = base.pipe.encode_prompt(PROMPT)
    both = base.encode([PROMPT, ""], 1000)
    assert torch.equal(both.text, torch.cat([text, negative]))
    assert torch.equal(both.added["text_embeds"], torch.cat([pooled, pooled_negative]))
    assert both.added["time_ids"].tolist() == [[1000, 1000, 0, 0, 1000, 1000]] * 2
    assert base.encode([PROMPT]).added["time_ids"].tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]]
    by_tokens = base.encode_tokens(base.tokens([PROMPT]), 1000)
    assert torch.equal(by_tokens.text, text) and torch.equal(by_tokens.added["text_embeds"], pooled)
    pads = base.tokens([PROMPT])[0, :, -1].tolist()
    assert pads == [tokenizer.pad_token_id for tokenizer in base.tokenizers] and len(set(pads)) == 2
    with pytest.raises(UserError, match="tokens, the text encoder takes 48"):
        base.encode(["photo " * 60])


@pytest.mark.parametrize("upcast", [True, False])
def test_the_vae_of_sdxl_works_in_float32_where_it_says_so(worlds, tmp_path, upcast):
    folder = shutil.copytree(worlds("sdxl") / "base", tmp_path / "base")
    settings = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(settings | {"force_upcast": upcast}))
    base = load_base_model(folder, torch.float16)
    assert base.vae.dtype == (torch.float32 if upcast else torch.float16) and base.unet.dtype == torch.float16
    other = load_base_model(worlds("sd15") / "base", torch.float16)
    assert other.vae.dtype == torch.float16


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_sdxl_without_a_part_is_refused(worlds, tmp_path, part):
    folder = shutil.copytree(worlds("sdxl") / "base", tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: [None, None]}))
    with pytest.raises(UserError, match=f"has no {part}; give a complete Stable Diffusion XL model"):
        load_base_model(folder)
