"""Eight identities in one batch end with the LoRAs they would have got alone."""

import torch

from arcface_files.iresnet import iresnet_slim
from configs.train_config import TrainConfig
from id_booth.diffusion.stacked_lora import slot_state
from id_booth.training.cohort import Cohort
from id_booth.training.frozen_models import FrozenModels
from id_booth.training.identity_branch import IdentityBranch
from id_booth.training.photos import Photos, alignment_matrices, face_windows

DIM, STEPS = 16, 50
LANDMARKS = torch.tensor([[22.0, 26], [42, 26], [32, 36], [24, 46], [40, 46]])


def make_photos(name, count, seed):
    """Photos whose pixels nobody needs: posteriors, embeddings and landmarks are made up."""
    generator = torch.Generator().manual_seed(seed)
    landmarks = LANDMARKS + 2 * torch.randn(count, 1, 2, generator=generator)
    matrices = alignment_matrices(landmarks.double().numpy())
    return Photos(
        name,
        [None] * count,
        None,
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.full((count, 4, 8, 8), 0.1),
        torch.randn(count, DIM, generator=generator),
        torch.ones(count, dtype=torch.bool),
        matrices,
        face_windows(matrices, 8, 8, 1),
    )


def make_parts(tiny_base):
    """(config, models, branch, class photos, negatives) of an ID-Booth training on the tiny pipeline."""
    config = TrainConfig(
        base_model=str(tiny_base),
        resolution=64,
        mixed_precision="no",
        device="cpu",
        learning_rate=1e-4,
        identity_decode="face",
        face_crop="aligned",
        identity_max_timestep=700,
        max_train_steps=STEPS,
    )
    models = FrozenModels(config, torch.device("cpu"))
    torch.manual_seed(0)
    recogniser = iresnet_slim(num_features=DIM).eval().requires_grad_(False)
    branch = IdentityBranch(config, models.decoder(), models.base.latent_factor, recogniser)
    return config, models, branch, make_photos("class", 5, 99), torch.randn(7, DIM)


def train(parts, people):
    """The LoRAs after STEPS steps of these people in one batch."""
    config, models, branch, class_photos, negatives = parts
    models.set_cohort_size(len(people))
    cohort = Cohort(config, "ID-Booth", models, branch, people, class_photos, negatives)
    for step in range(STEPS):
        cohort.step(step)
    return [slot_state(models.unet_lora, slot, "unet") for slot in range(len(people))]


def distance(first, second):
    """Relative difference of what two LoRAs have learned, in their up matrices (which start at zero)."""
    first, second = ({key: value for key, value in lora.items() if ".up." in key} for lora in (first, second))
    difference = sum((first[key] - second[key]).square().sum() for key in first)
    return (difference / sum(value.square().sum() for value in second.values())).sqrt().item()


def test_eight_identities_together_equal_single_runs(tiny_base):
    parts = make_parts(tiny_base)
    people = [make_photos(f"ID_{number}", 2 + number % 3, number) for number in range(8)]
    together = train(parts, people)
    for number in (0, 5):
        [alone] = train(parts, [people[number]])
        assert distance(together[number], alone) < 1e-3
    assert distance(together[0], together[5]) > 0.1
