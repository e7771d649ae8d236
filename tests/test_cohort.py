"""Eight identities in one batch end with the LoRAs they would have got alone."""

import dataclasses

import pytest
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


def make_parts(tiny_base, device="cpu", **options):
    """(config, models, branch, class photos, negatives) of an ID-Booth training on the tiny pipeline."""
    config = TrainConfig(
        base_model=str(tiny_base),
        resolution=64,
        device=device,
        learning_rate=1e-4,
        identity_decode="face",
        face_crop="aligned",
        identity_max_timestep=700,
        max_train_steps=STEPS,
        **{"mixed_precision": "no", **options},
    )
    models = FrozenModels(config, torch.device(device))
    torch.manual_seed(0)
    recogniser = iresnet_slim(num_features=DIM).eval().requires_grad_(False).to(device)
    branch = IdentityBranch(config, models.decoder(), models.base.latent_factor, recogniser)
    return config, models, branch, make_photos("class", 5, 99), torch.randn(7, DIM)


def train(parts, people, steps=STEPS):
    """The LoRAs after some steps of these people in one batch."""
    config, models, branch, class_photos, negatives = parts
    models.set_cohort_size(len(people))
    cohort = Cohort(config, "ID-Booth", models, branch, people, class_photos, negatives)
    for step in range(steps):
        cohort.step(step)
    return [slot_state(models.lora["unet"], slot, "unet") for slot in range(len(people))]


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


def scaled_cohort(parts, people, overflow_at=()):
    """LoRAs, optimiser states and scales after a few steps with loss scaling, as in float16.

    At the steps ``overflow_at`` the gradient of the person called "a" overflows.
    """
    config, models, branch, class_photos, negatives = parts
    models.set_cohort_size(len(people))
    cohort = Cohort(config, "ID-Booth", models, branch, people, class_photos, negatives)
    for update in cohort.updates:
        update.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=True)
    for step in range(8):
        for update in cohort.updates:
            unscale = type(update.scaler).unscale_

            def overflowing(optimizer, update=update, unscale=unscale, step=step):
                if step in overflow_at and update is cohort.updates[cohort.names.index("a")]:
                    optimizer.param_groups[0]["params"][0].grad[3] = float("inf")
                unscale(update.scaler, optimizer)

            update.scaler.unscale_ = overflowing
        cohort.step(step)
    states = [
        (u.scaler.get_scale(), u.optimizer.state_dict()["state"][0]["step"].item()) for u in cohort.updates
    ]
    return [slot_state(models.lora["unet"], slot, "unet") for slot in range(len(people))], states


def test_an_overflow_of_one_identity_is_nobody_elses(tiny_base):
    parts = make_parts(tiny_base)
    a, b = make_photos("a", 3, 1), make_photos("b", 4, 2)
    (alone_a,), (state_a,) = scaled_cohort(parts, [a], overflow_at=(2, 5))
    (alone_b,), (state_b,) = scaled_cohort(parts, [b])
    together, states = scaled_cohort(parts, [a, b], overflow_at=(2, 5))
    assert states == [state_a, state_b] and state_a == (16.0, 6) and state_b == (64.0, 8)
    # Rounding moves what few steps of Adam with small gradients have learned; a step more moves it further.
    assert distance(together[0], alone_a) < 0.02 and distance(together[1], alone_b) < 0.02
    (undisturbed_a,), _ = scaled_cohort(parts, [a])
    assert distance(undisturbed_a, alone_a) > 0.1


@pytest.mark.parametrize("factor, share", [(1.0, 1 / 3), (2.0, 0.529), (50.0, 0.906)])
def test_sampled_identity_terms_have_the_weights_of_all_of_them_on_average(tiny_base, factor, share):
    """The mean weight of a timestep over many chances is (1 - t/T)^2; how many terms that takes, by integral.

    Integral of min(1, f w^2) for w uniform in (0, 1): sqrt(1/f) is where the chance reaches 1.
    """
    config, models, branch, class_photos, negatives = make_parts(tiny_base)
    config = dataclasses.replace(
        config, identity_sampling="by weight", identity_sampling_factor=factor, identity_max_timestep=1000
    )
    models.set_cohort_size(1)
    cohort = Cohort(config, "ID-Booth", models, branch, [make_photos("ID_1", 3, 0)], class_photos, negatives)
    timesteps = torch.arange(1000).repeat_interleave(2000)
    chances = torch.rand(len(timesteps), generator=torch.Generator().manual_seed(1))
    weights = cohort.identity_weights(timesteps, chances).view(1000, 2000)
    expected = (1 - torch.arange(1000) / 1000).square()
    assert (weights.mean(1) - expected).abs().max() < 6 * (expected / factor / 2000).max().sqrt()
    assert weights.mean().item() == pytest.approx(1 / 3, abs=1.5e-3)
    assert (weights > 0).float().mean().item() == pytest.approx(share, abs=2e-3)
    edge = factor**-0.5
    assert share == pytest.approx(1 - edge + factor * edge**3 / 3, abs=1e-3)


def test_sampling_changes_no_other_draw_and_spares_the_decodes(tiny_base, monkeypatch):
    config, models, branch, class_photos, negatives = make_parts(tiny_base)
    config = dataclasses.replace(config, identity_max_timestep=1000, train_batch_size=4)
    decode, counts = branch.decode, []
    monkeypatch.setattr(branch, "decode", lambda z, window: (counts.append(len(z)), decode(z, window))[1])

    def losses(sampling):
        """Losses of 15 steps without an update, (15, 4), and how many items were decoded."""
        counts.clear()
        models.set_cohort_size(1)
        own, person = dataclasses.replace(config, identity_sampling=sampling), make_photos("ID_1", 3, 0)
        cohort = Cohort(own, "ID-Booth", models, branch, [person], class_photos, negatives)
        monkeypatch.setattr(cohort, "update", lambda: None)
        return torch.cat([cohort.step(step)[0] for step in range(15)]), sum(counts)

    (always, most), (sampled, fewer) = losses("always"), losses("by weight")
    assert most == 60 and 0.15 < fewer / most < 0.5
    assert torch.equal(always[:, :2], sampled[:, :2]) and not torch.equal(always[:, 2], sampled[:, 2])
