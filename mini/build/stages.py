"""Make the miniature world's networks from nothing, in resumable stages.

    python -m mini.build                         all stages, into mini/weights
    python -m mini.build --stage vae             one stage (its inputs must be there)
    python -m mini.build --minutes 30            stop cleanly after half an hour; the same command goes on
    python -m mini.build --base-from mini/weights/base --seed 1      train the shipped base model further
    python -m mini.build --base-from mini/weights/base --device cuda --processes 0 --images 64000 \
        --base-batch 1024 --base-bfloat16 --no-base-compile --base-graph --base-fit --minutes 7.5 \
        --export-on-stop                                             the same on a GPU, in 7.5 minutes

Stages: render (pictures for training), attributes (a classifier that judges samples), detector, recogniser,
quality (of faces, CR-FIQA), vae (whose perceptual loss uses the recogniser), tokenizer, latents, base (text
encoder and UNet, the longest), export. Renders and checkpoints go to MINI_BUILD_DIR (default: build/mini).
"""

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from arcface_files.recogniser import load_recogniser
from mini.build import base_model, vae
from mini.build.attribute_classifier import ClassifierConfig, train_classifier
from mini.build.detector import train_detector
from mini.build.export import BASE_LIMIT, BUNDLE_LIMIT, export_base, folder_size
from mini.build.latents import encode_set, load_latents
from mini.build.model_card import write_model_card
from mini.build.quality import train_quality
from mini.build.recogniser import train_recogniser
from mini.build.render_sets import load_attributes, load_set, missing_shards, render_set
from mini.build.tokenizer import build_tokenizer
from mini.build.training_loop import Deadline, Schedule, Training
from mini.paths import WEIGHTS, build_dir
from utils.devices import pick_device
from utils.errors import Interrupted, UserError
from utils.files import atomic_path
from utils.progress import log


def stage_render(config, deadline):
    """Pictures with landmarks and attributes, in shards."""
    render_set(config.build_dir / "renders", config.images, config.seed, config.processes)


def rendered(config, count):
    """The first ``count`` training pictures; UserError when they are not rendered yet."""
    if missing_shards(config.build_dir / "renders", count):
        raise UserError(f"{config.build_dir / 'renders'}: pictures are missing; run --stage render first")
    return load_set(config.build_dir / "renders", count)


def stage_vae(config, deadline):
    """Encoder and decoder."""
    if (config.build_dir / "vae/model").exists():
        return
    folder, earlier = stage_folder(config, "vae"), None
    if config.base_from is not None:
        earlier = AutoencoderKL.from_pretrained(config.base_from / "vae", torch_dtype=torch.float32)
        if config.vae_decoder_steps == 0:
            return save_model(earlier, folder / "model")
    pictures = rendered(config, config.vae_images)
    path = config.weights_dir / "pack/rec_mini.safetensors"
    if not path.exists():
        raise UserError(f"{path}: not there yet; run --stage recogniser first")
    recogniser = load_recogniser(path)
    model = vae.train_autoencoder(folder, pictures, recogniser, config, deadline, earlier)
    vae.report_quality(model, pictures.images[:128])
    save_model(model, folder / "model")


def stage_tokenizer(config, deadline):
    """Byte-pair tokenizer of the prompt grammar."""
    with atomic_path(config.build_dir / "tokenizer") as temporary:
        if config.base_from is None:
            build_tokenizer(temporary)
        else:
            shutil.copytree(config.base_from / "tokenizer", temporary)


def stage_latents(config, deadline):
    """Posterior of every picture, plain and mirrored."""
    path = config.build_dir / "latents.safetensors"
    if not path.exists():
        encode_set(path, load_vae(config).to(config.device), rendered(config, config.images).images)


def stage_base(config, deadline):
    """Text encoder and UNet, jointly."""
    model = load_vae(config)
    latents = load_latents(config.build_dir / "latents.safetensors", model.config.scaling_factor)
    attributes = load_attributes(config.build_dir / "renders", config.images)
    folder, tokenizer = stage_folder(config, "base"), load_tokenizer(config)
    try:
        base_model.train_base(folder, latents, attributes, tokenizer, config, deadline)
    except Interrupted:
        if config.export_on_stop and (folder / "checkpoint").exists():
            stage_export(config, deadline)
        raise


def stage_attributes(config, deadline):
    """Classifier of gender, age, background and pose, which judges whether samples follow their prompts."""
    path = config.weights_dir / "attributes.onnx"
    if not path.exists():
        train_classifier(ClassifierConfig(config.build_dir, config.images, output=path, seed=config.seed))


def stage_detector(config, deadline):
    """Face detector with five landmarks, as ONNX."""
    path = config.weights_dir / "pack/det_mini.onnx"
    if not path.exists():
        train_detector(path, config.build_dir / "detector", config.seed, steps=config.detector_steps)


def stage_recogniser(config, deadline):
    """Face recogniser, trained by fr_training's own entry point, as ONNX and safetensors."""
    path = config.weights_dir / "pack/rec_mini.onnx"
    if not path.exists():
        train_recogniser(path, config.build_dir / "recogniser", config.seed, epochs=config.recogniser_epochs)


def stage_quality(config, deadline):
    """Face quality network (CR-FIQA), on the recogniser's crops."""
    path = config.weights_dir / "quality.safetensors"
    if not path.exists():
        train_quality(path, config.build_dir, config.seed)


def stage_export(config, deadline):
    """The bundle in mini/weights, from the averaged weights of whatever is trained so far."""
    tokenizer = load_tokenizer(config)
    unet, text_encoder = base_model.new_base(tokenizer, config)
    folder = stage_folder(config, "base")
    if not (folder / "checkpoint").exists():
        raise UserError(f"{folder}: no checkpoint of the base model; run --stage base first")
    training = Training(folder, {"unet": unet, "text_encoder": text_encoder}, Schedule(0, 0.0))
    training.use_average()
    base_model.place_rare_word(text_encoder, tokenizer)
    model = load_vae(config)
    size = export_base(config.weights_dir / "base", model, text_encoder.eval(), tokenizer, unet.eval())
    if size > BASE_LIMIT:
        raise UserError(
            f"{config.weights_dir / 'base'}: {size / 1e6:.1f} MB, more than {BASE_LIMIT / 1e6:.0f} MB; use a "
            "smaller network"
        )
    whole = folder_size(config.weights_dir)
    if whole > BUNDLE_LIMIT:
        limit = f"{BUNDLE_LIMIT / 1e6:.0f} MB"
        raise UserError(
            f"{config.weights_dir}: {whole / 1e6:.1f} MB, more than {limit}; use smaller networks"
        )
    write_model_card(config.weights_dir, training.step, config.images)
    log(f"export: base model of {size / 1e6:.1f} MB at step {training.step}")


def stage_folder(config, stage):
    """The stage's folder in the build, made if missing."""
    folder = config.build_dir / stage
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_model(model, folder):
    """A diffusers model, whole or not at all."""
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)


def load_vae(config):
    """The VAE of the build; UserError if it is not trained yet."""
    folder = config.build_dir / "vae/model"
    if not folder.exists():
        raise UserError(f"{folder}: not there yet; run --stage vae first")
    return AutoencoderKL.from_pretrained(folder).eval()


def load_tokenizer(config):
    """The tokenizer of the build; UserError if it is not made yet."""
    if not (config.build_dir / "tokenizer").exists():
        raise UserError(f"{config.build_dir / 'tokenizer'}: not there yet; run --stage tokenizer first")
    return CLIPTokenizer.from_pretrained(config.build_dir / "tokenizer")


STAGES = {
    "render": stage_render,
    "attributes": stage_attributes,
    "detector": stage_detector,
    "recogniser": stage_recogniser,
    "quality": stage_quality,
    "vae": stage_vae,
    "tokenizer": stage_tokenizer,
    "latents": stage_latents,
    "base": stage_base,
    "export": stage_export,
}


@dataclass
class BuildConfig:
    """What to build, how large and for how long."""

    stage: Literal["all", *STAGES] = "all"
    """One stage, or all of them in order; finished stages are skipped."""
    minutes: float | None = None
    """Stop cleanly after so many minutes; the same command goes on from there. Default: no limit."""
    build_dir: Path = field(default_factory=build_dir)
    """Where renders, latents and checkpoints go: about 60 KB per picture."""
    weights_dir: Path = WEIGHTS
    """Where the finished bundle goes."""
    seed: int = 0
    """Seed of every random stream of the build."""
    threads: int | None = None
    """CPU threads of torch; default: torch's own choice (OMP_NUM_THREADS)."""
    device: str = "cpu"
    """Where latents are encoded and the base model is trained: cpu or cuda. On a GPU batches are drawn there,
    from other random numbers (mini.build.device_batches)."""
    processes: int = 1
    """Processes that render and make captions, 0 for one on each core; nothing depends on it."""
    export_on_stop: bool = False
    """Export the averaged weights also where the minutes end the training of the base model."""
    images: int = 16000
    """Pictures to render, half of them of people with names (mini.build.render_sets)."""
    vae_images: int = 16000
    """The first so many of them train the VAE's encoder."""
    vae_channels: tuple[int, int, int, int] = (16, 32, 64, 64)
    """Channels of the VAE's four levels; multiples of 8."""
    vae_steps: int = 6200
    """Optimisation steps of the VAE, on crops of 64 pixels."""
    vae_detail_from: int = 3700
    """The step from which a perceptual and an adversarial loss join in."""
    vae_decoder_steps: int = 0
    """With base_from: further steps of the autoencoder's decoder, on latents that stay as they are."""
    vae_batch: int = 12
    """Crops per step."""
    vae_lr: float = 2e-3
    """Peak learning rate of the VAE."""
    unet_channels: tuple[int, ...] = (64, 96, 128)
    """Channels of the UNet's levels; multiples of 32."""
    text_width: int = 128
    """Width of the text encoder, and of what the UNet attends to."""
    text_layers: int = 2
    """Transformer layers of the text encoder."""
    base_from: Path | None = None
    """Folder of an earlier base model to go on from: its autoencoder and tokenizer are kept, its UNet and
    text encoder are trained on, with a fresh optimiser. Default: everything from nothing."""
    base_steps: int = 6000
    """Optimisation steps of UNet and text encoder."""
    base_batch: int = 32
    """Pictures per step."""
    base_compile: bool = True
    """Compile the UNet with torch.compile: takes three minutes; steps a third faster on a Zen 3, no faster on
    a Zen 5."""
    base_bfloat16: bool = False
    """Train UNet and text encoder under bfloat16 autocast: faster where the CPU has bfloat16 matmuls."""
    base_lr: float = 1e-3
    """Peak learning rate of UNet and text encoder."""
    base_fit: bool = False
    """Do fewer steps than base_steps where the minutes end sooner; the learning rate falls all the same."""
    base_graph: bool = False
    """On a GPU: record forward and backward pass once as a CUDA graph and replay it."""
    base_draw: Literal["auto", "cpu", "device"] = "auto"
    """Where batches are drawn; auto: on the CPU for a CPU, on the device for a GPU."""
    detector_steps: int = 16000
    """Optimisation steps of the face detector."""
    recogniser_epochs: int = 12
    """Passes of the face recogniser over its training pictures."""

    def __post_init__(self):
        self.processes = self.processes or os.cpu_count() or 1

    @property
    def draws_on_device(self):
        """Whether batches are drawn on the device (mini.build.device_batches)."""
        return self.base_draw == "device" or (self.base_draw == "auto" and self.device != "cpu")

    def check(self):
        """Refuse settings that cannot work."""
        pick_device(self.device)
        if self.base_graph and (self.device == "cpu" or self.base_compile):
            raise UserError("--base-graph: needs --device cuda, and --no-base-compile; change them")
        if self.vae_images > self.images:
            raise UserError(f"--vae-images: {self.vae_images} is more than --images {self.images}; lower it")
        for name, unit in (("vae_channels", 8), ("unet_channels", 32)):
            if any(width <= 0 or width % unit for width in getattr(self, name)):
                raise UserError(
                    f"--{name.replace('_', '-')}: must be positive multiples of {unit}; change them"
                )
        if self.base_from is not None and not (self.base_from / "model_index.json").is_file():
            raise UserError(f"--base-from: {self.base_from} is not the folder of a base model; correct it")
        if self.minutes is not None and self.minutes <= 0:
            raise UserError("--minutes: must be more than 0; leave it out for no limit")


def build(config):
    """Run the chosen stages in order."""
    config.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    deadline = Deadline(config.minutes)
    deadline.listen()
    for name, stage in STAGES.items():
        if config.stage in ("all", name):
            last = name == "export" and config.export_on_stop
            if deadline.reached and not last:
                raise Interrupted(f"before stage {name}")
            log(f"stage {name}")
            with deadline.heed() if last else contextlib.nullcontext():
                stage(config, deadline)


def main():
    """Read the command line and build."""
    build(tyro.cli(BuildConfig, prog="python -m mini.build", description=__doc__))
