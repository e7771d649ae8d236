"""The builder in miniature: all stages of the base model on a few renders, resuming, and the bundle."""

import contextlib
import dataclasses
import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextModel, CLIPTokenizer

from configs.inference_config import NEGATIVE_PROMPT
from fr_training.networks import build_network, save_network
from id_booth.diffusion.noise_schedule import add_noise
from id_booth.prompts import AGES, BACKGROUNDS
from mini.build import base_model, vae
from mini.build import stages as build
from mini.build.captions import caption, names
from mini.build.device_batches import caption_tokens
from mini.build.latents import load_latents
from mini.build.muon import Muon, orthogonalise
from mini.build.render_sets import load_attributes, load_set, render_set
from mini.build.tokenizer import NAMES, build_tokenizer
from mini.build.training_loop import Deadline, Schedule, Training, run_training
from mini.face_world import render, sample_identity, sample_view
from utils.errors import Interrupted, UserError

# Attributes, detector and recogniser have tests of their own.
STAGES = ("render", "vae", "tokenizer", "latents", "base", "export")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini_build")
    return build.BuildConfig(
        build_dir=folder / "build",
        weights_dir=folder / "weights",
        images=6,
        vae_images=4,
        threads=1,
        vae_channels=(8, 8, 8, 8),
        vae_steps=3,
        vae_detail_from=1,
        vae_batch=2,
        unet_channels=(32, 32),
        text_width=32,
        text_layers=1,
        base_steps=2,
        base_batch=2,
        base_compile=False,
    )


@pytest.fixture(scope="module")
def built(config):
    recogniser = config.weights_dir / "pack/rec_mini.safetensors"
    recogniser.parent.mkdir(parents=True)
    save_network(build_network("iresnet_tiny", 16), recogniser)
    for stage in STAGES:
        run_stage(config, stage)
    return config


def run_stage(config, stage):
    config.check()
    build.STAGES[stage](config, Deadline())


def test_the_rare_word_lies_in_the_middle_of_the_names(built):
    base = built.weights_dir / "base"
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    rows = CLIPTextModel.from_pretrained(base / "text_encoder").get_input_embeddings().weight.detach()
    people = rows[[tokenizer(name).input_ids[1] for name in names(NAMES)]]
    word = rows[tokenizer("sks").input_ids[1]]
    assert torch.cosine_similarity(word, people.mean(0), dim=0) > 0.9999
    assert word.norm().item() == pytest.approx(people.norm(dim=1).mean().item(), rel=1e-4)
    rng = np.random.default_rng(0)
    attributes = render(sample_identity(1), sample_view(2, "wild"), 32).attributes
    assert not any("sks" in caption(attributes, rng) for _ in range(300))


@pytest.mark.parametrize("dtype", [{"dtype": torch.float32}, {}])
def test_bundle_loads_and_samples(built, dtype):
    """With and without a precision by the user."""
    pipe = StableDiffusionPipeline.from_pretrained(built.weights_dir / "base", **dtype)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("photo of sks person", num_inference_steps=2, output_type="np", height=128, width=128).images
    assert image.shape == (1, 128, 128, 3)
    assert np.isfinite(image).all()
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.safety_checker is None
    assert "No real person" in (built.weights_dir / "README.md").read_text(encoding="utf-8")
    for name in ("vocab.json", "merges.txt"):
        assert (built.weights_dir / "base/tokenizer" / name).is_file()


def test_latents_are_centred_and_scaled_without_changing_pictures(built):
    pictures = load_set(built.build_dir / "renders", built.vae_images)
    model = vae.new_vae(built.vae_channels, 3).eval()
    pixels = vae.to_pixels(pictures.images)
    with torch.no_grad():
        before = model.decode(model.encode(pixels).latent_dist.mean).sample
        vae.normalise_latents(model, pictures.images)
        mean = model.encode(pixels).latent_dist.mean
        after = model.decode(mean).sample
    assert torch.allclose(mean.mean((0, 2, 3)) * model.config.scaling_factor, torch.zeros(4), atol=1e-3)
    assert torch.allclose(mean.std((0, 2, 3)) * model.config.scaling_factor, torch.ones(4), atol=1e-3)
    assert torch.allclose(before, after, atol=1e-3)


def test_perceptual_loss_is_the_distance_of_unit_features_stage_by_stage():
    torch.manual_seed(0)
    network = build_network("iresnet_tiny", 16).eval()
    pictures, weight = torch.rand(2, 2, 3, 32, 32) * 2 - 1, torch.rand(2, 1, 32, 32)
    wanted = 0.0
    for ours, theirs in zip(*(vae.stage_features(network, one) for one in pictures), strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=1)  # |u - v|^2 = 2 - 2 cos
        scale = 32 // ours.shape[-1]
        small = weight.reshape(2, 32 // scale, scale, 32 // scale, scale).mean((2, 4))
        wanted += (small * (2 - 2 * cosine)).mean() / 4
    assert torch.allclose(vae.perceptual_loss(network, *pictures, weight), wanted, rtol=1e-4)
    assert vae.perceptual_loss(network, pictures[0], pictures[0], weight) < 1e-10


def test_each_adversarial_loss_moves_its_own_network_alone():
    critic = vae.new_critic(0)
    output = torch.zeros(1, 3, 16, 16, requires_grad=True)
    target = torch.ones(1, 3, 16, 16)
    deceived, judged = vae.adversarial_losses(critic, output, target)
    false, true = critic(output), critic(target)
    assert torch.allclose(deceived, -false.mean())
    assert torch.allclose(judged, (1 - true).clamp(min=0).mean() + (1 + false).clamp(min=0).mean())
    weights = list(critic.parameters())
    assert torch.autograd.grad(deceived, weights, retain_graph=True, allow_unused=True) == (None,) * 8
    assert all(one.abs().sum() > 0 for one in torch.autograd.grad(judged, weights, retain_graph=True)[::2])
    assert torch.autograd.grad(judged, output, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(deceived, output)[0].abs().sum() > 0


def test_flat_areas_of_a_wrong_colour_cost_more_than_fine_noise():
    target, weight = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    checks = 0.1 * (-1.0) ** torch.arange(16).view(1, 1, 1, 16) * torch.ones(1, 3, 16, 1)
    # |0.1| of pixels, 0.1 of halves at weight 0.5, and 0.1 of areas; no edges inside.
    assert vae.reconstruction_loss(target + 0.1, target, weight) == pytest.approx(0.25, abs=1e-6)
    # |0.1| of pixels, 0.2 across each column at weight 0.5; halves and areas average out.
    assert vae.reconstruction_loss(checks, target, weight) == pytest.approx(0.2, abs=1e-6)


def test_missing_input_of_a_stage_is_one_clear_line(tmp_path, config):
    empty = dataclasses.replace(config, build_dir=tmp_path, weights_dir=tmp_path / "weights")
    with pytest.raises(UserError, match="run --stage render first"):
        run_stage(empty, "vae")
    render_set(tmp_path / "renders", config.images, config.seed)
    with pytest.raises(UserError, match="run --stage recogniser first"):
        run_stage(empty, "vae")
    with pytest.raises(UserError, match="run --stage tokenizer first"):
        run_stage(empty, "export")
    with pytest.raises(UserError, match="vae-images"):
        dataclasses.replace(config, vae_images=7).check()


def test_a_build_goes_on_from_an_earlier_bundle(tmp_path, built):
    folder = built.weights_dir / "base"
    later = dataclasses.replace(
        built, build_dir=tmp_path / "build", weights_dir=tmp_path / "weights", base_from=folder, base_lr=0.0
    )
    render_set(later.build_dir / "renders", later.images, later.seed)
    for stage in ("vae", "tokenizer", "latents", "base", "export"):
        run_stage(later, stage)
    for part in ("vae", "unet"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        before, after = load_file(folder / name), load_file(later.weights_dir / "base" / name)
        assert all(torch.equal(before[key], after[key]) for key in before)
    ids = [
        CLIPTokenizer.from_pretrained(base / "tokenizer")("photo of sks person").input_ids
        for base in (folder, later.weights_dir / "base")
    ]
    assert ids[0] == ids[1]


def test_a_decoder_is_trained_on_without_a_change_of_its_latents(tmp_path, built):
    later = dataclasses.replace(
        built,
        build_dir=tmp_path / "build",
        base_from=built.weights_dir / "base",
        vae_decoder_steps=2,
    )
    render_set(later.build_dir / "renders", later.images, later.seed)
    run_stage(later, "vae")
    before, after = (
        AutoencoderKL.from_pretrained(folder).state_dict()
        for folder in (later.base_from / "vae", later.build_dir / "vae/model")
    )
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder", "post_quant_conv"}


def test_bfloat16_trains_float32_weights_nearly_as_float32_does(tmp_path, built):
    unets = []
    for name, chosen in (("full", False), ("half", True)):
        later = dataclasses.replace(built, build_dir=tmp_path / name, base_bfloat16=chosen)
        shutil.copytree(built.build_dir, later.build_dir, ignore=shutil.ignore_patterns("base"))
        run_stage(later, "base")
        unets.append(load_file(later.build_dir / "base/checkpoint/weights.safetensors"))
    full, half = unets
    assert all(weight.dtype == torch.float32 for weight in half.values())
    apart = max(float((full[key] - half[key]).abs().max()) for key in full)
    assert 0 < apart < 2 * built.base_steps * built.base_lr


class NothingIsFetched(TorchDispatchMode):
    """Fails where a value is brought from the device into Python, which on a GPU is a wait."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert "local_scalar" not in function.name() and "nonzero" not in function.name(), function.name()
        return function(*arguments, **(options or {}))


def device_batches(built, batch=4):
    pictures = load_attributes(built.build_dir / "renders", built.images)
    config = dataclasses.replace(built, base_draw="device", base_batch=batch)
    latents = load_latents(built.build_dir / "latents.safetensors", 0.18)
    return base_model.batch_source(latents, pictures, build.load_tokenizer(built), config)


def test_batches_of_a_device_repeat_and_are_drawn_as_those_of_the_cpu_are(built):
    draw = device_batches(built)
    clean, noise, timesteps, tokens = draw(3)
    assert clean.shape == noise.shape == (4, 4, 16, 16) and tokens.shape == (4, 32)
    assert all(250 * i <= t < 250 * (i + 1) for i, t in enumerate(timesteps.tolist()))
    assert all(torch.equal(a, b) for a, b in zip(draw(3), (clean, noise, timesteps, tokens), strict=True))
    assert not torch.equal(draw(4)[1], noise)
    empty = device_batches(built, batch=1000)
    shown = [tuple(row) for row in empty(0)[3].tolist()]
    nothing = tuple(base_model.tokenize(build.load_tokenizer(built), [""])[0].tolist())
    assert 0.02 < shown.count(nothing) / len(shown) < 0.09 and len(set(shown)) > 50


def test_captions_do_not_depend_on_the_processes(built):
    pictures = load_attributes(built.build_dir / "renders", built.images)
    words = partial(base_model.tokenize, build.load_tokenizer(built))
    alone = caption_tokens(pictures, words, seed=1)
    assert alone.shape == (6, 16, 32) and alone.dtype == torch.int16
    assert torch.equal(alone, caption_tokens(pictures, words, seed=1, processes=2))


def test_a_step_fetches_nothing_from_the_device(built, tmp_path):
    """On the CPU the finite loss is looked at, which a GPU leaves until the losses are logged."""
    unet, text_encoder = base_model.new_base(build.load_tokenizer(built), built)
    training = Training(tmp_path, {"unet": unet, "text_encoder": text_encoder}, Schedule(9, 1e-3))
    training.check_finite = lambda loss: None
    draw, denoise = device_batches(built), base_model.Denoiser(unet, text_encoder, half=True)
    alphas = base_model.new_scheduler().alphas_cumprod
    for step in range(2):
        with NothingIsFetched() if step else contextlib.nullcontext():
            clean, noise, timesteps, tokens = draw(step)
            noisy = add_noise(clean, noise, timesteps, alphas)
            norm = training.update((denoise(noisy, timesteps, tokens) - noise).square().mean())
    assert norm > 0 and training.step == 2


def test_the_minutes_of_a_build_leave_exported_weights(built, tmp_path):
    later = dataclasses.replace(
        built,
        build_dir=tmp_path / "build",
        weights_dir=tmp_path / "weights",
        base_from=built.weights_dir / "base",
        base_draw="device",
        base_bfloat16=True,
        base_steps=100_000,
        export_on_stop=True,
        stage="base",
    )
    for stage in ("render", "vae", "tokenizer", "latents"):
        run_stage(later, stage)
    deadline = Deadline(minutes=0.03)  # without its signal: pytest has its own
    with pytest.raises(Interrupted, match="saved at step"):
        build.STAGES["base"](later, deadline)
    assert (later.weights_dir / "base/unet/diffusion_pytorch_model.safetensors").is_file()


def test_steps_fit_the_minutes_and_the_rate_still_falls():
    schedule = Schedule(1000, 1e-3, decay=0.5, fit=True)
    schedule.adapt(50, seconds_per_step=3.0, seconds_left=300)  # the first steps were slow
    assert schedule.steps == 150
    schedule.adapt(60, seconds_per_step=0.5, seconds_left=300)
    assert schedule.steps == 660
    schedule.adapt(400, seconds_per_step=5.0, seconds_left=100)  # it falls already
    assert schedule.steps == 660 and schedule.factor(659) < 0.05
    schedule.adapt(100, seconds_per_step=0.01, seconds_left=float("inf"))
    assert schedule.steps == 1000


def test_an_earlier_bundle_must_be_one_and_of_the_same_size(tmp_path, built):
    with pytest.raises(UserError, match="--base-from: .*not the folder of a base model"):
        dataclasses.replace(built, base_from=tmp_path).check()
    other = dataclasses.replace(built, base_from=built.weights_dir / "base", unet_channels=(32, 64))
    unet, text_encoder = base_model.new_base(build.load_tokenizer(built), other)
    with pytest.raises(UserError, match="unet: a network of another size"):
        base_model.load_parts(other.base_from, unet, text_encoder)


@pytest.fixture
def handlers():
    """The process's own handlers come back after the test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_training_stops_after_its_step_and_everything_else_at_once():
    deadline = Deadline()
    deadline.listen()
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
    with deadline.heed():
        signal.raise_signal(signal.SIGTERM)
        assert deadline.reached
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("handlers")
def test_the_minutes_end_a_stage_that_does_not_look_at_the_clock():
    deadline = Deadline(minutes=0.001)
    with pytest.raises(Interrupted, match="minutes are over"):
        deadline.listen()
        time.sleep(10)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("processes", [1, 2])
def test_rendering_stops_when_asked(tmp_path, monkeypatch, processes):
    monkeypatch.setattr("mini.build.render_sets.SHARD", 1)
    Deadline(minutes=0.02).listen()
    with pytest.raises(Interrupted):
        render_set(tmp_path, 2000, seed=0, processes=processes)
    assert len(list(tmp_path.iterdir())) < 400, "the run went on"


def test_pictures_do_not_depend_on_how_many_are_rendered(tmp_path, built):
    render_set(tmp_path, 2, built.seed)
    images = load_set(built.build_dir / "renders", 2).images
    assert np.array_equal(load_set(tmp_path, 2).images, images)


def train_toy(folder, steps_before_stop):
    """A linear layer trained for six steps, stopped once after ``steps_before_stop`` (None: not at all)."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    deadline = Deadline()

    def loss_of_step(step):
        deadline.asked = steps_before_stop is not None and step + 1 == steps_before_stop
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return layer(inputs).square().mean(), {}

    run_training(
        Training(folder, {"layer": layer}, Schedule(6, 0.1, warmup=2)), loss_of_step, deadline, "toy"
    )
    return layer.weight.detach()


def test_stopped_training_ends_in_the_same_weights(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    undisturbed = train_toy(tmp_path / "whole", None)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        train_toy(tmp_path / "parts", 3)
    assert torch.equal(train_toy(tmp_path / "parts", None), undisturbed)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    train_toy(tmp_path, None)
    with pytest.raises(UserError, match="another size"):
        Training(tmp_path, {"layer": torch.nn.Linear(5, 3)}, Schedule(6, 0.1))


def test_orthogonalise_brings_singular_values_near_one():
    matrices = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
    for result in (orthogonalise(matrices), orthogonalise(matrices.mT)):
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_muon_in_bfloat16_moves_float32_weights_nearly_as_in_float32():
    start, gradient = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        Muon([weight], lr=0.1, dtype=dtype).step()
        moved.append((weight.detach() - start).flatten())
        assert weight.dtype == torch.float32
    assert torch.cosine_similarity(*moved, dim=0) > 0.99
    assert not torch.equal(*moved)


def test_plain_attention_is_that_of_matmuls_and_restores_the_setting():
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    queries = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    fused = torch.nn.functional.scaled_dot_product_attention(*queries)
    with base_model.plain_attention(True):
        assert allowed()
        plain = torch.nn.functional.scaled_dot_product_attention(*queries)
    assert not allowed()
    assert torch.allclose(fused, plain, atol=1e-6)


def test_min_snr_weight_by_hand():
    # alphas_cumprod 0.5: SNR 1, weight 1; 0.9: SNR 9, weight 5/9.
    alphas, gamma = torch.tensor([0.5, 0.9]), base_model.MIN_SNR_GAMMA
    weight = base_model.min_snr_weight(torch.tensor([0, 1]), alphas, gamma)
    assert torch.allclose(weight, torch.tensor([1.0, 5 / 9]), atol=1e-5)


def test_tokenizer_knows_the_grammar_and_survives_anything(tmp_path):
    build_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    words = set(" ".join([*AGES, *BACKGROUNDS, NEGATIVE_PROMPT, "sks face photo male female person"]).split())
    for word in words:
        for part in word.replace(",", "").split("-"):
            assert len(tokenizer(part).input_ids) == 3, part
    assert all(len(tokenizer(name).input_ids) == 3 for name in names(NAMES))
    longest = (
        "face side-portrait photo of middle-aged male baba person smiling with very short grey hair and dark"
        " skin and long beard and glasses, construction site background"
    )
    for text in (longest, NEGATIVE_PROMPT):
        assert len(tokenizer(text).input_ids) <= tokenizer.model_max_length
    odd = "xyzzy ünïcode 日本"
    assert tokenizer.decode(tokenizer(odd).input_ids, skip_special_tokens=True).strip() == odd


def test_dropped_captions_are_empty_or_from_the_negative_prompt():
    rng = np.random.default_rng(0)
    attributes = dict(
        gender="male",
        age="old",
        background="beach",
        yaw=40.0,
        hair="long red hair",
        skin="tan",
        beard="none",
        glasses="none",
        expression="sad",
    )
    captions = [base_model.training_caption(attributes, rng) for _ in range(2000)]
    dropped = [text for text in captions if not text.startswith(("face", "photo"))]
    assert 0.07 < len(dropped) / len(captions) < 0.13
    assert 0.3 < dropped.count("") / len(dropped) < 0.7
    assert all(word in NEGATIVE_PROMPT for text in dropped for word in text.split(", "))
