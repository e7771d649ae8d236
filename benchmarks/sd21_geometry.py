"""One ID-Booth step in the exact geometry of Stable Diffusion 2.1 base, with random weights.

    python -m benchmarks.sd21_geometry                      float32
    python -m benchmarks.sd21_geometry --precision bf16     half the memory; a CPU without bf16 takes hours

Shows without the real weights that the code for them runs: 866 M UNet, 84 M VAE, 340 M text encoder, 512
pixels, one instance and one class image, iresnet100 as loss network. Prints the time of the step and the peak
memory.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from arcface_files.iresnet import iresnet100
from configs.train_config import TrainConfig
from configs.train_sd21_fast import config as FAST_CONFIG
from train_id_booth import FineTuning
from utils.errors import run
from utils.files import atomic_write_json, sha256_file
from utils.identities import find_identities
from utils.images import save_png
from utils.run_record import PROJECT_ROOT

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
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
LANDMARKS = [[200.0, 220], [312, 220], [256, 290], [212, 340], [300, 340]]


@dataclass
class StepConfig:
    """How to run the step."""

    precision: Literal["bf16", "no"] = "no"
    """bf16, or "no" for float32."""
    recipe: Literal["published", "fast"] = "fast"
    """Whole decode, or face window with a limit on the timestep."""
    steps: int = 1
    """Optimiser steps."""


def main():
    """Make the models and photos in a temporary folder, train, report."""
    options = tyro.cli(StepConfig, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        parameters = make_base(folder / "base", dtype)
        make_photos(folder)
        fine_tuning = FineTuning(step_config(folder, options), torch.device("cpu"))
        fine_tuning.prepare_shared()
        started = time.perf_counter()
        identities = find_identities(folder / "faces")
        rows = fine_tuning.train_identities(identities)
        log_file = folder / "loras/ID-Booth/ID_1/train_log.jsonl"
        last = json.loads(log_file.read_text().splitlines()[-1]) if log_file.is_file() else {}
        print(
            json.dumps(
                {
                    "parameters_million": parameters,
                    "rows": rows,
                    "log": last,
                    "seconds": round(time.perf_counter() - started, 1),
                },
                indent=2,
            )
        )


def make_base(folder, dtype):
    """Save a pipeline of SD 2.1-base's geometry with random weights; parameters per part in millions."""
    torch.manual_seed(0)
    default, _ = torch.get_default_dtype(), torch.set_default_dtype(dtype)
    parts = {
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
    }
    torch.set_default_dtype(default)
    tokenizer = CLIPTokenizer.from_pretrained(
        PROJECT_ROOT / "mini/weights/base/tokenizer", model_max_length=77
    )
    scheduler = PNDMScheduler(**SCHEDULE)
    # As in SD 2.1's own file; a DDPM scheduler made from it would otherwise clip x0.
    scheduler.register_to_config(clip_sample=False)
    StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return {name: round(sum(p.numel() for p in part.parameters()) / 1e6, 1) for name, part in parts.items()}


def make_photos(folder):
    """A photo, a class image and a negative with random embeddings; an iresnet100 with random weights."""
    rng = np.random.default_rng(0)
    for owner in (folder / "faces/ID_1", folder / "class", folder / "negatives"):
        path = owner / "images/0.png"
        save_png(path, rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
        (owner / "ArcFace_embeds").mkdir(parents=True, exist_ok=True)
        torch.save(torch.from_numpy(rng.standard_normal(512)).float(), owner / "ArcFace_embeds/0.pt")
        entry = {"landmarks": LANDMARKS, "sha256": sha256_file(path), "status": "ok"}
        atomic_write_json(owner / "ArcFace_embeds/faces.json", {"images": {"0.png": entry}})
    save_file(calibrated_recogniser().state_dict(), folder / "iresnet100.safetensors")


@torch.no_grad()
def calibrated_recogniser():
    """An iresnet100 with random weights and matching batch-norm statistics, so that activations stay
    finite."""
    torch.manual_seed(0)
    network = iresnet100().train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network(torch.rand(4, 3, 112, 112) * 2 - 1)
    return network.eval()


def step_config(folder, options):
    """The published or the fast recipe on random data."""
    fast = {name: getattr(FAST_CONFIG, name) for name in ("identity_decode", "identity_max_timestep")}
    fast = fast if options.recipe == "fast" else {}
    return TrainConfig(
        source_folder=str(folder / "faces"),
        class_folder=str(folder / "class"),
        output_folder=str(folder / "loras"),
        objectives=("ID-Booth",),
        base_model=str(folder / "base"),
        recogniser=str(folder / "iresnet100.safetensors"),
        pack="mini/weights/pack",
        num_class_images=1,
        negatives_folder=str(folder / "negatives"),
        face_crop="aligned",
        mixed_precision=options.precision,
        validation_images=0,
        max_train_steps=options.steps,
        log_every=1,
        face_margin=2,
        device="cpu",
        **fast,
    )


if __name__ == "__main__":
    run(main)
