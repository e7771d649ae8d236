"""Training of recognisers: resume, stop, refusals, two processes, on crops of colour patches."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file

from evaluation.quality import load_quality_network, quality_scores
from fr_training import train_fr
from fr_training.batches import AugmentedBatches, worker_count
from fr_training.crops import MANIFEST_KIND, load_crops, write_crop_arrays
from fr_training.networks import build_network, embed, to_input
from fr_training.schedule import epochs_without_gain, learning_rate, plateau_drops, published_learning_rate
from fr_training.trainer import Recogniser, Trainer, memory_layout
from tests.tiny_recognition import patches, tiny_training
from utils.claims import Claims
from utils.errors import UserError
from utils.files import read_json
from utils.images import save_png
from utils.run_record import PROJECT_ROOT


@pytest.fixture
def crops(tmp_path):
    """Folder of crop arrays: six people, four views of each."""
    write_crop_arrays(tmp_path / "crops", *patches(6, 4), [f"ID_{i}" for i in range(6)])
    return tmp_path / "crops"


def settings(tmp_path, crops, **changes):
    return tiny_training(**{"dataset": crops, "output": tmp_path / "run"} | changes)


def train(config):
    config.check()
    return train_fr.train_seeds(config, *train_fr.prepare_data(config))


def weights(folder, part="last/model"):
    return load_file(folder / f"{part}.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


RECIPES = [("adamw", "AdaFace", False), ("sgd", "CosFace", False), ("sgd", "ArcFace", True)]


@pytest.mark.parametrize("optimizer,head,quality", RECIPES)
def test_killed_and_resumed_equals_undisturbed(tmp_path, crops, monkeypatch, optimizer, head, quality):
    changes = dict(optimizer=optimizer, head=head, quality_head=quality, augmentation="randaugment")
    train(settings(tmp_path, crops, output=str(tmp_path / "whole"), **changes))
    original = Trainer.run_epoch

    def killed(self, epoch):
        if epoch == 1:
            self.step(99, *next(iter(self.batches.of_epoch(1))))  # some work of the epoch, then the end
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(Trainer, "run_epoch", killed)
    config = settings(tmp_path, crops, output=str(tmp_path / "killed"), **changes)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(Trainer, "run_epoch", original)
    train(config)
    assert equal(weights(tmp_path / "whole/seed_0"), weights(tmp_path / "killed/seed_0"))
    states = [read_json(tmp_path / run / "seed_0/last/state.json") for run in ("whole", "killed")]
    assert states[0] == states[1] and states[0]["epoch"] == 2
    assert len(states[0].get("quality_losses", [])) == (2 if quality else 0)


@pytest.mark.parametrize("seconds, written", [(60, [0, 3]), (0, [0, 1, 2, 3])])
def test_epochs_that_are_not_the_best_are_written_once_a_minute(
    tmp_path, crops, monkeypatch, seconds, written
):
    monkeypatch.setattr("fr_training.trainer.SAVE_SECONDS", seconds)
    trainer = Trainer(
        settings(tmp_path, crops, max_epochs=4), load_crops(crops), None, Accelerator(cpu=True), tmp_path, 0
    )
    scores, saved, write = iter((0.9, 0.5, 0.6, 0.7)), [], trainer.write
    trainer.validate = lambda network: next(scores)
    trainer.write = lambda improved: (saved.append(trainer.state["epoch"] - 1), write(improved))
    assert trainer.train()["finished"]
    assert saved == written and read_json(tmp_path / "last/state.json")["epoch"] == 4
    assert read_json(tmp_path / "best/state.json")["epoch"] == 1


def test_processes_that_augment_change_no_image(tmp_path, crops):
    config = settings(tmp_path, crops, augmentation="randaugment", held_out_identities=2)
    data, accelerator = load_crops(crops), train_fr.make_accelerator(config)
    batches = {}
    for workers in (0, 2):
        made = AugmentedBatches(replace(config, workers=workers), data, accelerator, seed=3, steps=5)
        batches[workers] = [batch for epoch in (0, 1, 0) for batch in made.of_epoch(epoch)]
    assert len(batches[0]) == len(batches[2]) == 15
    for (images, labels), (others, their_labels) in zip(batches[0], batches[2], strict=True):
        assert torch.equal(images, others) and torch.equal(labels, their_labels)
    first, second, again = (torch.cat([images for images, _ in batches[0][i : i + 5]]) for i in (0, 5, 10))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert worker_count(None, on_gpu=False, batch_size=8) == 0
    assert worker_count(3, on_gpu=True, batch_size=8) == 3


def test_workers_share_the_memory_of_a_container(monkeypatch):
    """64 MB, as Docker gives: batches of 4.8 MB, two ahead of each worker, within half of it."""
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    assert worker_count(None, on_gpu=True, batch_size=128) == 3
    assert worker_count(None, on_gpu=True, batch_size=8) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(None, on_gpu=True, batch_size=128) == 0
    assert worker_count(None, on_gpu=True, batch_size=8) == 3


def test_losses_with_the_quality_head_by_hand(tmp_path, crops):
    config = settings(tmp_path, crops, head="CosFace", s=2.0, m=0.1, embedding_size=2, quality_head=True)
    model = Recogniser(config, 3)
    embeddings = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    model.network = torch.nn.Identity()
    model.head.kernel.data = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    model.quality.weight.data, model.quality.bias.data = torch.tensor([[0.5, -0.25]]), torch.tensor([0.1])
    classification, quality = model(embeddings, torch.tensor([0, 1]))
    # Cosines (0.6, 0.8, -0.6) and (0, 1, 0): ratios 0.6 / 1.8 and 1 / 1; qualities 0.6 and -0.4.
    logits = [2 * np.array([0.5, 0.8, -0.6]), 2 * np.array([0.0, 0.9, 0.0])]
    entropies = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, (0, 1), strict=True)]
    assert classification.item() == pytest.approx(np.mean(entropies), rel=1e-5)
    # Smooth L1 with beta 0.5: d^2 below 0.5, d - 0.25 from there.
    assert quality.item() == pytest.approx(((0.6 - 1 / 3) ** 2 + (1.4 - 0.25)) / 2, rel=1e-5)
    quality.backward()
    # Only the prediction carries gradient: 2 d w for the first, -w for the second, over two items.
    slope = np.array([2 * (0.6 - 1 / 3), -1.0])[:, None] * [[0.5, -0.25]] / 2
    np.testing.assert_allclose(embeddings.grad, slope, rtol=1e-5)
    assert not model.head.kernel.grad.any()


def test_the_quality_head_is_trained_and_saved_as_cr_fiqa_publishes_it(tmp_path, crops):
    config = settings(tmp_path, crops, head="ArcFace", quality_head=True, selection="none", max_epochs=1)
    train(config)
    best = tmp_path / "run/seed_0/best"
    network = load_quality_network(best / "quality_backbone.pth")
    images = load_crops(crops).images[:6]
    ours = embed(train_fr.load_trained(tmp_path / "run/seed_0"), images, flip=False)
    theirs = network.backbone(to_input(images)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.isfinite(quality_scores(network, images)).all()
    last = weights(tmp_path / "run/seed_0")
    np.testing.assert_array_equal(network.qs.weight, last["quality.weight"])
    start = Trainer(config, load_crops(crops), None, Accelerator(cpu=True), tmp_path / "new", 0)
    assert np.abs(network.qs.weight.numpy() - start.model.quality.weight.detach().numpy()).min() > 1e-5


def test_a_finished_seed_is_skipped_and_seeds_differ(tmp_path, crops, monkeypatch):
    config = settings(tmp_path, crops, max_epochs=1, seeds=(0, 1))
    train(config)
    assert not equal(weights(tmp_path / "run/seed_0"), weights(tmp_path / "run/seed_1"))
    monkeypatch.setattr(Trainer, "run_epoch", lambda *_: pytest.fail("trained again"))
    record = read_json(tmp_path / "run/seed_0/run.json")
    train(config)
    assert read_json(tmp_path / "run/seed_0/run.json") == record
    assert record["config"]["network"] == "iresnet_tiny" and "torch" in record["packages"]


def test_other_settings_in_the_same_folder_are_refused(tmp_path, crops):
    train(settings(tmp_path, crops, max_epochs=1))
    with pytest.raises(UserError, match=r"other settings \(m, max_epochs\)"):
        train(settings(tmp_path, crops, max_epochs=2, m=0.3))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, crops):
    with Claims(tmp_path / "run") as another:
        assert another.take("training")
        with pytest.raises(UserError, match="another run is training here"):
            train(settings(tmp_path, crops))


def test_training_learns_and_exports_an_insightface_pack(tmp_path, crops):
    from arcface_files.recogniser import load_recogniser
    from fr_training.networks import export_onnx

    train(settings(tmp_path, crops, max_epochs=6, augmentation="none", dropout=0.0))
    state = read_json(tmp_path / "run/seed_0/last/state.json")
    assert state["losses"][-1] < 0.7 * state["losses"][0]
    network = train_fr.load_trained(tmp_path / "run/seed_0")
    export_onnx(network, tmp_path / "rec.onnx")
    images = load_crops(crops).images[:6]
    ours, theirs = embed(network, images), embed(load_recogniser(tmp_path / "rec.onnx"), images)
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(ours).max()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(tmp_path, crops, monkeypatch):
    config = settings(tmp_path, crops)
    original = Trainer.step
    monkeypatch.setattr(
        Trainer,
        "step",
        lambda self, step, *batch: (
            original(self, step, *batch) * (float("nan") if step >= self.steps_per_epoch else 1.0)
        ),
    )
    with pytest.raises(UserError, match=r"loss is not finite in epoch 1; lower base_lr"):
        train(config)
    assert read_json(tmp_path / "run/seed_0/last/state.json")["epoch"] == 1
    assert all(np.isfinite(value).all() for value in weights(tmp_path / "run/seed_0").values())


def test_held_out_people_are_named_by_hash_and_never_trained_on(tmp_path, crops):
    config = settings(tmp_path, crops)
    training, held_out = train_fr.split(config, load_crops(crops))
    assert len(held_out.names) == 2 and not set(held_out.names) & set(training.names)
    assert sorted(set(training.labels)) == [0, 1, 2, 3] and len(training) == 16
    again = train_fr.split(settings(tmp_path, crops, seeds=(5,)), load_crops(crops))[1]
    assert again.names == held_out.names
    for place, name in enumerate(held_out.names):
        original = load_crops(crops)
        rows = original.labels == original.names.index(name)
        assert np.array_equal(held_out.images[held_out.labels == place], original.images[rows])


def test_one_identity_and_too_few_are_refused(tmp_path):
    write_crop_arrays(tmp_path / "one", *patches(1, 4), ["ID_1"])
    with pytest.raises(UserError, match="1 identity"):
        train_fr.prepare_data(settings(tmp_path, tmp_path / "one", selection="none"))
    with pytest.raises(UserError, match="held_out_identities"):
        train_fr.prepare_data(settings(tmp_path, tmp_path / "one"))


def test_a_class_with_one_image_trains_and_is_never_set_aside(tmp_path):
    images, labels = patches(4, 4)
    keep = np.concatenate([np.arange(12), [12]])
    write_crop_arrays(tmp_path / "crops", images[keep], labels[keep], ["ID_0", "ID_1", "ID_2", "ID_3"])
    config = settings(tmp_path, tmp_path / "crops", max_epochs=1)
    training, held_out = train_fr.split(config, load_crops(tmp_path / "crops"))
    assert "ID_3" in training.names and "ID_3" not in held_out.names
    assert train(config) == 0


def test_too_few_images_for_a_step_are_refused(tmp_path, crops):
    with pytest.raises(UserError, match="one step needs 64 images, the set has 16"):
        train(settings(tmp_path, crops, batch_size=64))


@pytest.mark.parametrize("dataset", ["set", "m.json"])
def test_no_run_lies_in_its_crops(tmp_path, dataset):
    """Where it would be a person without crops."""
    for name in ("ID_1", "ID_2"):
        for place, image in enumerate(patches(1, 2)[0]):
            save_png(tmp_path / "set" / name / f"{place}.png", image)
    people = {name: [{"file": f"set/{name}/{place}.png"} for place in (0, 1)] for name in ("ID_1", "ID_2")}
    (tmp_path / "m.json").write_text(json.dumps({"kind": MANIFEST_KIND, "identities": people}))
    with pytest.raises(UserError, match="set/run: overlaps"):
        train(settings(tmp_path, tmp_path / dataset, output=tmp_path / "set/run", selection="none"))
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["ID_1", "ID_2"]


def test_folders_and_their_faults(tmp_path):
    for name in ("ID_1", "ID_10", "ID_2"):
        save_png(tmp_path / "set" / name / "0.png", patches(1, 1)[0][0])
    crops = load_crops(tmp_path / "set")
    assert crops.names == ["ID_1", "ID_2", "ID_10"] and crops.labels.tolist() == [0, 1, 2]
    save_png(tmp_path / "set/ID_2/0.png", np.zeros((90, 112, 3), np.uint8))
    with pytest.raises(UserError, match="112 x 90 pixels"):
        load_crops(tmp_path / "set")
    (tmp_path / "set/ID_2/0.png").unlink()
    with pytest.raises(UserError, match="ID_2 has no images"):
        load_crops(tmp_path / "set")
    with pytest.raises(UserError, match="no such crop set"):
        load_crops(tmp_path / "nowhere")


def test_impossible_configurations_are_refused(tmp_path, crops):
    for changes, word in [
        (dict(selection="none", schedule="plateau"), "plateau"),
        (dict(seeds=()), "seeds"),
        (dict(selection="benchmark"), "selection_benchmark"),
        (dict(t_alpha=0.0), "t_alpha"),
        (dict(export_pack="x"), "detector"),
        (dict(quality_weight=0.0), "quality_weight"),
    ]:
        with pytest.raises(UserError, match=word):
            settings(tmp_path, crops, **changes).check()


def test_schedules_by_hand(tmp_path, crops):
    assert published_learning_rate(0.1, 128, 1) == 0.025
    scores = [0.5, 0.6, 0.6, 0.6, 0.59, 0.6]
    assert epochs_without_gain(scores) == 4
    assert [plateau_drops(scores[:n], 2) for n in range(1, 7)] == [0, 0, 0, 0, 1, 1]
    config = settings(tmp_path, crops, schedule="milestones", milestones=(2, 4), warmup_epochs=1.0)
    rates = [learning_rate(config, 1.0, step, 60, 10, []) for step in (0, 9, 10, 19, 20, 39, 40)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01])


def test_two_processes_train_stop_and_save_as_one(tmp_path, crops):
    config_file = tmp_path / "config.py"
    config_file.write_text(
        "from configs.fr_config import TrainFRConfig\n"
        f"config = TrainFRConfig(dataset={str(crops)!r}, output={str(tmp_path / 'run')!r}, batch_size=4, "
        "network='iresnet_tiny', embedding_size=16, dropout=0.0, base_lr=1e-6, max_epochs=9, lr_patience=0, "
        "stop_patience=2, held_out_identities=2, precision='fp32', threads=1)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}

    def launch(module, *options):
        command = [sys.executable, "-m", module, *options, "-m", "fr_training.train_fr", "--config"]
        return subprocess.run(
            [*command, str(config_file)],
            cwd=PROJECT_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    # accelerate's own launcher starts a single process with --cpu, unless mpirun is there.
    lonely = launch("accelerate.commands.launch", "--cpu", "--num_processes", "2")
    assert lonely.returncode != 0 and "began one process" in lonely.stderr
    done = launch("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    state = read_json(tmp_path / "run/seed_0/last/state.json")
    assert state["finished"] and len(state["scores"]) == state["epoch"] < 9  # both stopped by the same scores
    assert json.loads((tmp_path / "run/seed_0/settings.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("name", "device", "instructions", "layout"),
    [
        ("iresnet_tiny", "cpu", "AVX512", torch.contiguous_format),
        ("iresnet_tiny", "cpu", "AVX2", torch.channels_last),
        ("iresnet_tiny", "cuda", "AVX512", torch.channels_last),
        ("iresnet_slim", "cpu", "AVX512", torch.channels_last),
    ],
)
def test_channels_last_but_where_the_processor_crashes(monkeypatch, name, device, instructions, layout):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert memory_layout(build_network(name, 8), device) is layout
