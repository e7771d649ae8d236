"""What recognition keeps on disk, damaged: figures are measured again, a training says what to delete."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.fr_config import TestFRConfig
from fr_training import test_fr, train_fr
from fr_training.benchmark_bin import write_bin
from fr_training.crops import write_crop_arrays
from fr_training.networks import build_network, save_network
from fr_training.results import results_section
from fr_training.trainer import Trainer
from tests.tiny_recognition import patches, tiny_training
from utils.errors import UserError


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training that was killed in its second epoch."""
    root = tmp_path_factory.mktemp("stopped")
    write_crop_arrays(root / "crops", *patches(6, 4), [f"ID_{i}" for i in range(6)])
    original = Trainer.run_epoch

    def killed(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return original(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(root, root / "run")
    return root


def train(root, output):
    config = tiny_training(dataset=root / "crops", output=output, max_epochs=2)
    config.check()
    return train_fr.train_seeds(config, *train_fr.prepare_data(config))


def state(**changes):
    def damage(last):
        content = json.loads((last / "state.json").read_text())
        (last / "state.json").write_text(json.dumps(content | changes))

    return damage


def tensors(change):
    def damage(last):
        path = last / "optimizer.safetensors"
        save_file(change({key: value.clone() for key, value in load_file(path).items()}), path)

    return damage


DAMAGES = {
    "state cut": lambda last: (last / "state.json").write_text('{"epoch": 1'),
    "state deep": lambda last: (last / "state.json").write_text("[" * 100_000),
    "state a list": lambda last: (last / "state.json").write_text("[]"),
    "state without epoch": lambda last: (last / "state.json").write_text('{"finished": false}'),
    "epoch of text": state(epoch="one"),
    "epoch beyond": state(epoch=7),
    "negative epoch": state(epoch=-1, losses=[]),
    "losses of text": state(losses=["low"]),
    "losses missing": state(losses=None),
    "scores in a dict": state(scores={"a": 1}),
    "finished of text": state(finished="no"),
    "optimiser cut": lambda last: (last / "optimizer.safetensors").write_bytes(b"\x10"),
    "optimiser gone": lambda last: (last / "optimizer.safetensors").unlink(),
    "optimiser of another shape": tensors(
        lambda t: {k: torch.zeros(3) if v.dim() else v for k, v in t.items()}
    ),
    "optimiser of other names": tensors(lambda t: {"x.y": torch.zeros(1)}),
    "optimiser of too many": tensors(lambda t: t | {"9999.exp_avg": torch.zeros(1)}),
    "weights cut": lambda last: (last / "model.safetensors").write_bytes(b"\x10"),
    "weights gone": lambda last: (last / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_refused_in_one_line_and_kept(stopped, tmp_path, name):
    shutil.copytree(stopped / "run", tmp_path / "run")
    last = tmp_path / "run/seed_0/last"
    DAMAGES[name](last)
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    with pytest.raises(UserError) as caught:
        train(stopped, tmp_path / "run")
    assert str(last) in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in last.iterdir()} == before


@pytest.fixture
def tested(tmp_path):
    """(config, weights, benchmark, results) of a network that was tested once."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 112, 112, 3), np.uint8)
    write_bin(tmp_path / "pairs.bin", images, np.arange(20) % 2 == 0)
    save_network(build_network("iresnet_tiny", 16), tmp_path / "w.safetensors")
    config = TestFRConfig(recognisers=("x",), output=str(tmp_path / "test"))
    weights = test_fr.find_weights(str(tmp_path / "w.safetensors"))
    return (
        config,
        weights,
        tmp_path / "pairs.bin",
        test_fr.test_all(config, weights, [tmp_path / "pairs.bin"]),
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "[" * 100_000, '{"accuracy": 1}', '{"roc": []}', "9" * 5000]
)
def test_damaged_figures_are_measured_again(tested, text):
    config, weights, benchmark, results = tested
    (kept,) = (file for file in (benchmark.parent / "test/cache").iterdir())
    kept.write_text(text)
    assert test_fr.test_all(config, weights, [benchmark]) == results
    content = json.loads(kept.read_text())
    for change in (
        {"auc": "high"},
        {"roc": {"far": [0.1], "tar": [1, 2]}},
        {"roc": {"far": "x", "tar": "y"}},
    ):
        kept.write_text(json.dumps(content | change))
        assert test_fr.test_all(config, weights, [benchmark]) == results


@pytest.mark.parametrize(
    "text", ["{", "[5]", '[{"row": 1}]', '{"row": 1}', "5", '[{"row": "a", "benchmark": "b"}]']
)
def test_damaged_results_are_refused_in_one_line(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json: ") as caught:
        results_section(tmp_path)
    assert "\n" not in str(caught.value)
