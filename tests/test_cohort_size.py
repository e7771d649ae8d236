"""Cohort size by memory: counted activations, the config's word, the limits."""

from types import SimpleNamespace

import pytest
import torch

from configs.train_config import TrainConfig
from id_booth.training.cohort_size import MOST, SavedTensors, cohort_size
from id_booth.training.frozen_models import FrozenModels
from utils.errors import UserError


@pytest.fixture(scope="module")
def models(tiny_base):
    return FrozenModels(make_config(tiny_base), torch.device("cpu"))


def make_config(tiny_base, **options):
    return TrainConfig(
        base_model=str(tiny_base),
        resolution=64,
        mixed_precision="no",
        device="cpu",
        **{"cohort_size": "auto", **options},
    )


def test_saved_tensors_count_activations_once_and_weights_never():
    layer = torch.nn.Linear(8, 4)
    x = torch.zeros(5, 8, requires_grad=True)
    with SavedTensors(layer) as saved:
        layer(x.exp()).sum()
    assert saved.bytes == 5 * 8 * 4  # exp keeps its result, which is the linear layer's input too


def test_auto_follows_memory_and_people(models, tiny_base, monkeypatch):
    config, megabytes = make_config(tiny_base), []

    def size(free, people=1000):
        monkeypatch.setattr("id_booth.training.cohort_size.free_memory", lambda device: free)
        return cohort_size(config, models, None, people)

    monkeypatch.setattr("id_booth.training.cohort_size.log", megabytes.append)
    assert size(2**50) == MOST and size(2**50, people=3) == 3
    assert size(1) == 1 and size(2**50, people=1) == 1
    each = int(megabytes[0].split("(")[1].split(" MiB")[0])
    assert each >= 1
    assert size(4 * each * 2**20) < MOST
    assert models.latent_shape == (4, 8, 8)


def test_the_configs_number_stands(models, tiny_base):
    assert cohort_size(make_config(tiny_base, cohort_size=5), models, None, 100) == 5
    other = SimpleNamespace(cohort_size="auto", optimizer="prodigy")
    assert cohort_size(other, models, None, 100) == 1


@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_refusals(tiny_base, value):
    with pytest.raises(UserError, match="cohort_size"):
        make_config(tiny_base, cohort_size=value).check()
