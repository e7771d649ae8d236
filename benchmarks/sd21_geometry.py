"""Networks in the exact geometry of Stable Diffusion 2.1 base, with random weights; one step of ID-Booth.

    python -m benchmarks.sd21_geometry                      float32
    python -m benchmarks.sd21_geometry --precision bf16     half the memory; a CPU without bf16 takes hours
    python -m benchmarks.sd21_geometry --precision bf16 --geometry sdxl --recompute    Stable Diffusion XL

Shows without the real weights that the code for them runs: 866 M UNet, 84 M VAE, 340 M text encoder, 512
pixels, one instance and one class image, iresnet100 as loss network. Prints the time of the step and the peak
memory. A tiny geometry of the same form proves the benchmarks themselves.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.sd21_geometry")

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers
import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from arcface_files.face_records import network_record
from arcface_files.faces import Face, crop_face
from arcface_files.people import find_identities
from arcface_files.recogniser import embed_crops, load_recogniser
from configs.train_config import TrainConfig
from configs.train_sd21_fast import config as FAST_CONFIG
from fr_training.networks import build_network
from id_booth.diffusion.families import StableDiffusion2, StableDiffusionXL, tokenizer_parts
from train_id_booth import FineTuning
from utils.devices import DTYPES, pick_device
from utils.errors import run
from utils.files import atomic_write_json, sha256_file
from utils.images import load_image, save_png
from utils.run_record import PROJECT_ROOT


@dataclass(frozen=True)
class Geometry:
    """Sizes of a base model's parts, of its pictures, and of the loss network beside it."""

    unet: dict
    vae: dict
    texts: tuple[dict, ...]
    resolution: int
    recogniser: str
    family: type = StableDiffusion2


UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "projection_dim": 512,
}
TINY_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 32, 32),
    "attention_head_dim": (1, 1, 1, 1),
    "cross_attention_dim": 32,
    "layers_per_block": 1,
}
TINY_VAE = {
    "sample_size": 128,
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
XL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
XL_TEXTS = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280}
    | {"num_attention_heads": 20},
)
GEOMETRIES = {
    "sd21": Geometry(UNET, VAE, (TEXT,), 512, "iresnet100"),
    "sdxl": Geometry(
        UNET | XL_UNET,
        VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
        tuple(TEXT | text for text in XL_TEXTS),
        1024,
        "iresnet100",
        StableDiffusionXL,
    ),
    "tiny": Geometry(UNET | TINY_UNET, VAE | TINY_VAE, (TEXT | TINY_TEXT,), 128, "iresnet_tiny"),
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# Of a face in a picture of 512 pixels; its aligned crop is 356 pixels wide there.
LANDMARKS = [[200.0, 220], [312, 220], [256, 290], [212, 340], [300, 340]]


@dataclass
class StepConfig:
    """How to run the step."""

    precision: Literal["bf16", "fp16", "no"] = "no"
    """bf16, fp16 (on a GPU), or "no" for float32."""
    recipe: Literal["published", "fast"] = "fast"
    """Whole decode, or face window with a limit on the timestep."""
    steps: int = 1
    """Optimiser steps."""
    device: str = "cpu"
    """cpu or cuda."""
    geometry: Literal["sd21", "sdxl", "tiny"] = "sd21"
    """Stable Diffusion 2.1's size, that of XL, or a tiny one."""
    resolution: int | None = None
    """Side of the pictures in pixels; None: that of the geometry."""
    recompute: bool = False
    """Gradient checkpointing of UNet and decoder."""


def main():
    """Make the models and photos, train, report."""
    options = tyro.cli(StepConfig, description=__doc__)
    device, dtype = pick_device(options.device), DTYPES[options.precision]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        base = random_base(options.geometry, dtype, device)
        make_photos(folder, options.geometry, resolution=options.resolution)
        fine_tuning = FineTuning(step_config(folder, options), device, base=base)
        fine_tuning.prepare_shared()
        started = time.perf_counter()
        identities = find_identities(folder / "faces")
        rows = fine_tuning.train_identities(identities)
        log_file = folder / "loras/ID-Booth/ID_1/train_log.jsonl"
        last = json.loads(log_file.read_text().splitlines()[-1]) if log_file.is_file() else {}
        seconds = round(time.perf_counter() - started, 1)
        result = {"parameters_million": parameters_million(base), "rows": rows, "log": last}
        print(json.dumps(result | {"seconds": seconds}, indent=2))


# ------------------------------------------------------------------------------------------- networks


def random_base(geometry, dtype, device):
    """A frozen BaseModel with random weights, made on the device: no file of gigabytes is written or read.

    Args:
        geometry: a name of GEOMETRIES. dtype, device: of the weights.
    """
    sizes = GEOMETRIES[geometry]
    family, kinds = sizes.family, (CLIPTextModel, CLIPTextModelWithProjection)
    torch.manual_seed(0)
    default, _ = torch.get_default_dtype(), torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts = {
                "unet": UNet2DConditionModel(**sizes.unet),
                "vae": AutoencoderKL(**sizes.vae),
            }
            for part, kind, text in zip(family.text_parts, kinds, sizes.texts, strict=False):
                parts[part] = kind(CLIPTextConfig(**text))
    finally:
        torch.set_default_dtype(default)
    for part in parts.values():
        part.requires_grad_(False).eval()
    tokenizer = CLIPTokenizer.from_pretrained(
        PROJECT_ROOT / "mini/weights/base/tokenizer", model_max_length=77
    )
    scheduler = PNDMScheduler(**SCHEDULE)
    # As in SD 2.1's own file; a DDPM scheduler made from it would otherwise clip x0.
    scheduler.register_to_config(clip_sample=False)
    parts |= dict.fromkeys(tokenizer_parts(family), tokenizer) | {"scheduler": scheduler}
    pipe = getattr(diffusers, family.pipeline)(**parts, **family.pipeline_options)
    pipe.set_progress_bar_config(disable=True)
    return family(pipe, random_name(geometry))


def random_name(geometry):
    """What stands for a random base model where a config names one."""
    return f"random/{geometry}"


def parameters_million(base):
    """Parameters of a base model's parts, in millions."""
    parts = {"vae": base.vae, **base.parts}
    return {name: round(sum(p.numel() for p in part.parameters()) / 1e6, 1) for name, part in parts.items()}


def make_base(folder, dtype):
    """Save a pipeline of SD 2.1-base's geometry with random weights (5 GB in float32)."""
    random_base("sd21", dtype, "cpu").pipe.save_pretrained(folder)


@torch.no_grad()
def calibrated_recogniser(name="iresnet100"):
    """An IResNet with random weights and matching batch-norm statistics: its activations stay finite."""
    torch.manual_seed(0)
    network = build_network(name, 512).train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network(torch.rand(4, 3, 112, 112) * 2 - 1)
    return network.eval()


# --------------------------------------------------------------------------------------------- photos


def landmarks_at(resolution, scale=1.0):
    """(5, 2) landmarks of the face in a picture of that side, the face ``scale`` times as large."""
    points = np.asarray(LANDMARKS) * (resolution / 512)
    return (points - points.mean(0)) * scale + points.mean(0)


def face_at(landmarks):
    """The Face with five landmarks (5, 2): its box has the usual size beside them."""
    points = np.asarray(landmarks, np.float32)
    centre, side = points.mean(0), 1.6 * np.ptp(points[:, 1])
    return Face(np.concatenate([centre - side, centre + side]).astype(np.float32), points, 1.0)


def make_photos(folder, geometry="sd21", people=1, resolution=None):
    """Photos of noise, a class image and a negative, each with a face by decree; a random loss network.

    Faces differ in size from person to person, as windows do; that of the first is LANDMARKS.
    """
    rng = np.random.default_rng(0)
    sizes = GEOMETRIES[geometry]
    resolution = resolution or sizes.resolution
    network = calibrated_recogniser(sizes.recogniser)
    save_file(network.state_dict(), folder / "recogniser.part")
    (folder / "recogniser.part").rename(folder / "recogniser.safetensors")
    recogniser = load_recogniser(folder / "recogniser.safetensors")
    settings = {"recogniser": network_record(recogniser.path), "crop": "aligned"}
    owners = [folder / "faces/ID_1", folder / "class", folder / "negatives"]
    owners += [folder / f"faces/ID_{number}" for number in range(2, people + 1)]
    for number, owner in enumerate(owners):
        path = owner / "images/0.png"
        save_png(path, rng.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8))
        (owner / "ArcFace_embeds").mkdir(parents=True, exist_ok=True)
        face = face_at(landmarks_at(resolution, 1.0 - 0.05 * (number % 4 if number > 2 else 0)))
        file = owner / "ArcFace_embeds/0.pt"
        torch.save(
            embed_crops(crop_face(load_image(path), face, "aligned")[None], recogniser)[0].clone(), file
        )
        entry = {
            "status": "ok",
            "sha256": sha256_file(path),
            "box": face.box.tolist(),
            "landmarks": face.landmarks.tolist(),
            "embedding_sha256": sha256_file(file),
        }
        atomic_write_json(owner / "ArcFace_embeds/faces.json", settings | {"images": {"0.png": entry}})


def step_config(folder, options):
    """The published or the fast recipe on random data."""
    fast = {name: getattr(FAST_CONFIG, name) for name in ("identity_decode", "identity_max_timestep")}
    fast = fast if options.recipe == "fast" else {}
    base = folder / "base"
    return TrainConfig(
        source_folder=str(folder / "faces"),
        class_folder=str(folder / "class"),
        output_folder=str(folder / "loras"),
        objectives=("ID-Booth",),
        resolution=options.resolution or GEOMETRIES[options.geometry].resolution,
        gradient_checkpointing=options.recompute,
        vae_gradient_checkpointing=options.recompute,
        base_model=str(base) if base.is_dir() else random_name(options.geometry),
        recogniser=str(folder / "recogniser.safetensors"),
        pack="mini/weights/pack",
        num_class_images=1,
        negatives_folder=str(folder / "negatives"),
        face_crop="aligned",
        mixed_precision=options.precision,
        validation_images=0,
        max_train_steps=options.steps,
        log_every=1,
        face_margin=2,
        start_check=False,  # random weights show no face, in a window or out of it
        device=options.device,
        **fast,
    )


if __name__ == "__main__":
    run(main)
