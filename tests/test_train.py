"""train_id_booth.py run for real on a pipeline of a few thousand weights."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import train_id_booth
from arcface_files.face_records import network_record
from arcface_files.faces import align
from arcface_files.iresnet import iresnet_slim
from arcface_files.recogniser import embed_crops, load_recogniser
from id_booth.diffusion.lora_files import loss_recogniser_of
from id_booth.training import class_images
from tests.conftest import PROJECT_ROOT
from utils.errors import Interrupted, UserError
from utils.files import atomic_write_json, sha256_file
from utils.images import load_image, save_png

SIDE, DIM = 64, 32
LORA = "pytorch_lora_weights.safetensors"
LANDMARKS = [[22.0, 26], [42, 26], [32, 36], [24, 46], [40, 46]]


def write_faces(folder, names, rng, recogniser):
    """Photos of noise with made-up boxes and landmarks, as extract_arcface_embeds.py leaves them."""
    images, embeds = folder / "images", folder / "ArcFace_embeds"
    embeds.mkdir(parents=True)
    entries = {}
    for name in names:
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        save_png(images / f"{name}.png", coarse.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1))
        crop = align(load_image(images / f"{name}.png"), LANDMARKS)
        torch.save(embed_crops(crop[None], recogniser)[0], embeds / f"{name}.pt")
        entries[f"{name}.png"] = {
            "status": "ok",
            "box": [16, 16, 48, 52],
            "landmarks": LANDMARKS,
            "sha256": sha256_file(images / f"{name}.png"),
            "embedding_sha256": sha256_file(embeds / f"{name}.pt"),
        }
    settings = {"recogniser": network_record(recogniser.path), "crop": "aligned"}
    atomic_write_json(embeds / "faces.json", settings | {"images": entries})


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_base):
    """Two identities, negatives, a recogniser with random weights."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    save_file(iresnet_slim(num_features=DIM).state_dict(), root / "recogniser.safetensors")
    recogniser = load_recogniser(root / "recogniser.safetensors")
    for name, count in (("ID_1", 3), ("ID_2", 3), ("ID_10", 5)):
        write_faces(root / "faces" / name, [f"photo_{i}" for i in range(count)], rng, recogniser)
    write_faces(root / "class", [f"{i:05d}" for i in range(4)], rng, recogniser)
    (root / "config.py").write_text(
        "from configs.train_config import TrainConfig\n"
        f"config = TrainConfig(source_folder={str(root / 'faces')!r}, class_folder={str(root / 'class')!r},"
        f"base_model={str(tiny_base)!r}, recogniser={str(root / 'recogniser.safetensors')!r},"
        f"resolution={SIDE},"
        f"negatives_folder={str(root / 'class')!r}, with_prior_preservation=False, mixed_precision='no',"
        "face_crop='aligned', identity_decode='face', face_margin=1, num_train_epochs=2, num_class_images=4,"
        "checkpointing_epochs=1, validation_images=0, learning_rate=1e-2, log_every=2, device='cpu')\n"
    )
    return root


def train(world, output, *overrides):
    """Run the script's main in this process; returns its exit code."""
    argv = ["train_id_booth.py", "--config", str(world / "config.py"), "--output-folder", str(output)]
    before, sys.argv = sys.argv, argv + [str(o) for o in overrides]
    try:
        return train_id_booth.main() or 0
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def lora(output, objective="ID-Booth", name="ID_1", checkpoint="checkpoint-1-6"):
    return load_file(output / objective / name / checkpoint / LORA)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def distance(a, b):
    """Relative difference of two LoRAs' products."""
    top = sum((a[k] - b[k]).square().sum() for k in a)
    return (top / sum(b[k].square().sum() for k in b)).sqrt().item()


def test_three_objectives_for_all_identities(world, tmp_path):
    assert train(world, tmp_path) == 0
    loras = {o: lora(tmp_path, o) for o in ("DreamBooth", "PortraitBooth", "ID-Booth")}
    assert not equal(loras["DreamBooth"], loras["PortraitBooth"])
    assert not equal(loras["PortraitBooth"], loras["ID-Booth"])
    assert (tmp_path / "DreamBooth" / "ID_10" / "checkpoint-1-10" / LORA).is_file()
    lines = [json.loads(x) for x in (tmp_path / "ID-Booth/ID_1/train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert {"Reconstruction", "ID", "Combined"} == lines[0]["loss"].keys()
    assert {"step_ms", "images_per_s", "memory_mib", "identity_share_by_band"} <= lines[0].keys()
    record = json.loads((tmp_path / "ID-Booth/ID_1/training_config.json").read_text())
    assert record["final_checkpoint"] == "checkpoint-1-6" and record["seed"] == 0
    assert str(world) not in json.dumps(record["base_model"])
    # Which recogniser the loss was of stands in record and file, also when the record is lost.
    own = sha256_file(world / "recogniser.safetensors")
    pleased = {"DreamBooth": "none", "PortraitBooth": own, "ID-Booth": own}
    for objective, expected in pleased.items():
        folder = tmp_path / objective / "ID_1"
        assert json.loads((folder / "training_config.json").read_text())["loss_recogniser_sha256"] == expected
        shutil.copy(folder / "checkpoint-1-6" / LORA, tmp_path)
        assert loss_recogniser_of(tmp_path / LORA) == expected
    assert not (tmp_path / "ID-Booth/ID_1/resume.pt").exists()
    assert list((tmp_path / "ID-Booth/ID_1/tensorboard").iterdir())


def test_first_step_of_all_objectives_has_the_same_reconstruction_loss(world, tmp_path):
    assert train(world, tmp_path, "--identities", "ID_1", "--max-train-steps", 1) == 0
    first = {}
    for objective in ("DreamBooth", "PortraitBooth", "ID-Booth"):
        line = (tmp_path / objective / "ID_1" / "train_log.jsonl").read_text().splitlines()[0]
        first[objective] = json.loads(line)["loss"]["Reconstruction"]
    assert first["DreamBooth"] == first["PortraitBooth"] == first["ID-Booth"]


def test_rerun_skips_what_is_done_and_refuses_other_settings(world, tmp_path, capsys):
    options = ("--identities", "ID_1", "--objectives", "DreamBooth")
    assert train(world, tmp_path, *options) == 0
    stamp = (tmp_path / "DreamBooth/ID_1/checkpoint-1-6" / LORA).stat().st_mtime_ns
    assert train(world, tmp_path, *options) == 0
    assert (tmp_path / "DreamBooth/ID_1/checkpoint-1-6" / LORA).stat().st_mtime_ns == stamp
    assert train(world, tmp_path, *options, "--learning-rate", 0.5) == 1
    detail = json.loads((tmp_path / "summary.json").read_text())[0]["detail"]
    assert "learning_rate = 0.01, the config now says 0.5" in detail
    assert train(world, tmp_path, *options, "--learning-rate", 0.5, "--dry-run") == 1
    assert capsys.readouterr().err.endswith("nothing is left to do but what failed\n")


@pytest.mark.parametrize("change", ["content", "one more", "order", "unfinished"])
def test_a_run_is_of_its_photos(world, tmp_path, change):
    options = ("--identities", "ID_1", "--objectives", "DreamBooth", "--source-folder", tmp_path / "faces")
    shutil.copytree(world / "faces", tmp_path / "faces")
    images, run = tmp_path / "faces/ID_1/images", tmp_path / "out/DreamBooth/ID_1"
    assert train(world, tmp_path / "out", *options) == 0
    if change == "unfinished":
        record = json.loads((run / "training_config.json").read_text())
        del record["final_checkpoint"]
        (run / "training_config.json").write_text(json.dumps(record))
    if change == "order":
        (images / "photo_0.png").rename(images / "photo_9.png")
    else:
        name = "photo_9" if change == "one more" else "photo_0"
        shutil.copy(tmp_path / "faces/ID_2/images/photo_0.png", images / f"{name}.png")
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    assert train(world, tmp_path / "out", *options) == 1
    detail = json.loads((tmp_path / "out/summary.json").read_text())[0]["detail"]
    assert "have changed since it was trained; choose another output_folder" in detail
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("change", ["content", "one more", "gone"])
def test_a_run_is_of_its_class_images(world, tmp_path, change):
    """Of those that were used; whether they are there now is no matter to --status."""
    images = shutil.copytree(world / "class/images", tmp_path / "class/images")
    options = ("--identities", "ID_1", "--objectives", "DreamBooth", "--class-folder", tmp_path / "class")
    options += ("--with-prior-preservation", "--num-class-images", 3, "--max-train-steps", 1)
    assert train(world, tmp_path / "out", *options) == 0
    if change == "gone":
        shutil.rmtree(images)
    else:
        photo = world / "faces/ID_10/images/photo_0.png"
        shutil.copy(photo, images / ("00000.png" if change == "content" else "zebra.png"))
    assert train(world, tmp_path / "out", *options, "--status") == (change == "content")
    if change != "gone":
        assert train(world, tmp_path / "out", *options) == (change == "content")
        detail = json.loads((tmp_path / "out/summary.json").read_text())[0]["detail"]
        assert ("the class images have changed since it was trained" in detail) == (change == "content")


@pytest.mark.parametrize(("objective", "change"), [("ID-Booth", 1), ("ID-Booth", 0), ("DreamBooth", 1)])
def test_a_run_is_of_its_negatives(world, tmp_path, objective, change):
    """Where the objective draws from them."""
    negatives = shutil.copytree(world / "class", tmp_path / "negatives")
    options = ("--identities", "ID_1", "--objectives", objective, "--negatives-folder", negatives)
    assert train(world, tmp_path / "out", *options, "--max-train-steps", 1) == 0
    if change:
        (negatives / "images/00003.png").unlink()
    refused = int(change and objective == "ID-Booth")
    assert train(world, tmp_path / "out", *options, "--max-train-steps", 1) == refused
    detail = json.loads((tmp_path / "out/summary.json").read_text())[0]["detail"]
    assert ("the negatives have changed since it was trained" in detail) == refused


@pytest.mark.parametrize("layout", ["class", "class/images", "flat"])
def test_a_class_folder_is_used_as_it_is(world, tmp_path, layout):
    """The official value is the folder of the images itself; more than are wanted are left out."""
    shutil.copytree(world / "class", tmp_path / "class")
    shutil.copytree(world / "class/images", tmp_path / "flat")
    for folder in ("class/images", "flat"):
        shutil.copy(world / "faces/ID_10/images/photo_4.png", tmp_path / folder / "z.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.p*")}
    prior = ("--with-prior-preservation", "--class-folder", tmp_path / layout, "--num-class-images", 2)
    options = ("--identities", "ID_1", "--objectives", "DreamBooth", "--num-train-epochs", 1)
    assert train(world, tmp_path / "out", *options, *prior) == 0
    assert (tmp_path / "out/DreamBooth/ID_1/checkpoint-0-3").is_dir()
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.p*") if "out" not in path.parts}
    assert after == before


@pytest.mark.parametrize(
    "options",
    [
        ("--train-batch-size", 2),
        ("--gradient-accumulation-steps", 2),
        ("--snr-gamma", 5.0),
        ("--use-dora",),
        ("--train-text-encoder",),
        ("--mixed-precision", "bf16"),
        ("--gradient-checkpointing",),
        ("--identity-decode", "full"),
        ("--timestep-weighting", "linear"),
        ("--no-cache-latents",),
        ("--lr-scheduler", "constant"),
        ("--identity-max-timestep", 0),
        ("--validation-images", 1),
        ("--validation-images", 2, "--mixed-precision", "bf16", "--train-text-encoder"),
        ("--validation-images", 2, "--mixed-precision", "bf16", "--use-dora"),
        ("--mixed-precision", "bf16", "--identity-decode", "full", "--gradient-checkpointing"),
    ],
)
def test_options_train_a_lora_that_diffusers_loads(world, tmp_path, tiny_base, options):
    assert (
        train(
            world,
            tmp_path,
            "--identities",
            "ID_1",
            "--objectives",
            "ID-Booth",
            "--max-train-steps",
            2,
            *options,
        )
        == 0
    )
    folder = next((tmp_path / "ID-Booth/ID_1").glob("checkpoint-*-2"))
    state = load_file(folder / LORA)
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in state.values())
    assert max(v.abs().max() for k, v in state.items() if ".up." in k) > 0
    assert any("text_encoder" in key for key in state) == ("--train-text-encoder" in options)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipe.load_lora_weights(folder)
    assert (folder / "validation.jpg").exists() == ("--validation-images" in options)


def test_memory_options_and_caching_change_no_result(world, tmp_path):
    base = ("--identities", "ID_1", "--objectives", "ID-Booth", "--max-train-steps", 3)
    train(world, tmp_path / "plain", *base)
    plain = lora(tmp_path / "plain", checkpoint="checkpoint-0-3")
    for name, options in {
        "online": ("--no-cache-latents",),
        "recompute": ("--gradient-checkpointing",),
        "decoder": ("--vae-gradient-checkpointing",),
        "stock": ("--no-lean-layers",),
    }.items():
        train(world, tmp_path / name, *base, *options)
        assert distance(lora(tmp_path / name, checkpoint="checkpoint-0-3"), plain) < 1e-4, name


def test_prior_preservation_trains_on_class_images(world, tmp_path):
    assert (
        train(
            world, tmp_path, "--identities", "ID_1", "--objectives", "DreamBooth", "--with-prior-preservation"
        )
        == 0
    )
    line = json.loads((tmp_path / "DreamBooth/ID_1/train_log.jsonl").read_text().splitlines()[0])
    loss = line["loss"]
    assert loss["Combined"] == pytest.approx(loss["Reconstruction"] + loss["Prior"], abs=2e-6)
    assert (tmp_path / "DreamBooth/ID_1/checkpoint-1-8" / LORA).is_file()


def test_what_is_offloaded_is_not_needed_any_more(world, tmp_path, monkeypatch):
    """On a CPU nothing moves, but an offloaded network refuses all the same; the next identity recalls it."""
    refused = []
    original = train_id_booth.FineTuning.train_cohort

    def watched(self, runs, first_step):
        for network, arguments in (
            (self.models.base.text_encoder, torch.zeros(1, 4).long()),
            (self.models.vae.encoder, torch.zeros(1, 3, 64, 64)),
        ):
            with pytest.raises(RuntimeError, match="is offloaded"):
                network(arguments)
            refused.append(type(network).__name__)
        return original(self, runs, first_step)

    monkeypatch.setattr(train_id_booth.FineTuning, "train_cohort", watched)
    options = (
        "--identities",
        "ID_1",
        "ID_2",
        "--objectives",
        "ID-Booth",
        "--max-train-steps",
        1,
        "--validation-images",
        1,
        "--validation-steps",
        1,
    )
    assert train(world, tmp_path, *options) == 0 and refused == ["CLIPTextModel", "Encoder"] * 2
    assert len(list(tmp_path.rglob("validation.jpg"))) == 2


def test_missing_class_images_are_generated_once(world, tmp_path):
    options = (
        "--identities",
        "ID_1",
        "--objectives",
        "DreamBooth",
        "--with-prior-preservation",
        "--class-folder",
        tmp_path / "class",
        "--class-inference-steps",
        2,
        "--max-train-steps",
        1,
    )
    assert train(world, tmp_path / "a", *options) == 0
    images = {path.name: path.read_bytes() for path in (tmp_path / "class/images").iterdir()}
    assert sorted(images) == [f"{n:05d}.png" for n in range(4)]
    (tmp_path / "class/images/00002.png").unlink()
    assert train(world, tmp_path / "b", *options, "--class-batch-size", 1) == 0
    assert (tmp_path / "class/images/00002.png").read_bytes() == images["00002.png"]


def test_a_class_image_that_another_run_made_meanwhile_stays(world, tmp_path, monkeypatch):
    sampled, other = class_images.sample_while_training, tmp_path / "class/images/00001.png"

    def another_run_is_faster(*arguments):
        images = list(sampled(*arguments))
        if not other.exists():
            save_png(other, np.full((64, 64, 3), 90, np.uint8))
        return images

    monkeypatch.setattr(class_images, "sample_while_training", another_run_is_faster)
    options = ("--identities", "ID_1", "--objectives", "DreamBooth", "--with-prior-preservation")
    steps = ("--class-folder", tmp_path / "class", "--class-inference-steps", 2, "--max-train-steps", 1)
    assert train(world, tmp_path / "a", *options, *steps, "--class-batch-size", 2) == 0
    assert (load_image(other) == 90).all()
    assert len(list(other.parent.iterdir())) == 4


def test_a_cohort_trains_the_loras_of_single_runs(world, tmp_path):
    options = ("--objectives", "ID-Booth", "--identities", "ID_1", "ID_2")
    train(world, tmp_path / "single", *options)
    train(world, tmp_path / "cohort", *options, "--cohort-size", 2)
    for name in ("ID_1", "ID_2"):
        assert distance(lora(tmp_path / "cohort", name=name), lora(tmp_path / "single", name=name)) < 1e-3
    assert distance(lora(tmp_path / "single", name="ID_1"), lora(tmp_path / "single", name="ID_2")) > 0.1


def test_killed_and_resumed_equals_undisturbed_to_the_bit(world, tmp_path):
    options = ("--objectives", "ID-Booth", "--identities", "ID_10", "--resume-minutes", 0)
    train(world, tmp_path / "whole", *options)
    command = [
        sys.executable,
        "train_id_booth.py",
        "--config",
        str(world / "config.py"),
        "--output-folder",
        str(tmp_path / "cut"),
        *map(str, options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stderr=subprocess.DEVNULL)
    resume = tmp_path / "cut/ID-Booth/ID_10/resume.pt"
    while not resume.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True).returncode == 0
    final = "checkpoint-1-10"
    assert equal(
        lora(tmp_path / "cut", name="ID_10", checkpoint=final),
        lora(tmp_path / "whole", name="ID_10", checkpoint=final),
    )
    log = (tmp_path / "cut/ID-Booth/ID_10/train_log.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 10


def test_the_summary_counts_what_was_done_before_an_interruption(world, tmp_path, monkeypatch):
    """Not where the state is of a version that did not keep it, which goes on all the same."""
    options = ("--identities", "ID_1", "--objectives", "PortraitBooth", "--max-train-steps", 3)
    options += ("--identity-max-timestep", 500)
    step = train_id_booth.Cohort.step

    def stopped(self, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(train_id_booth.Cohort, "step", stopped)
    with pytest.raises(Interrupted, match="saved at step 2 of 3"):
        train(world, tmp_path / "new", *options)
    monkeypatch.undo()
    state = torch.load(tmp_path / "new/PortraitBooth/ID_1/resume.pt", weights_only=True)
    (total, with_term), own = state.pop("counted"), state.pop("seconds")
    assert total == 2 and own > 0
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    torch.save(state, tmp_path / "old/PortraitBooth/ID_1/resume.pt")
    counts = {"counted": (10 * total, 10 * with_term), "seconds": 3600.0}
    torch.save(state | counts, tmp_path / "new/PortraitBooth/ID_1/resume.pt")
    rows = {}
    for output in ("old", "new"):
        assert train(world, tmp_path / output, *options) == 0
        rows[output] = json.loads((tmp_path / output / "summary.json").read_text())[0]
    last = rows["old"]["identity term"] == "100%"  # of the last step alone
    assert rows["new"]["identity term"] == f"{(10 * with_term + last) / 21:.0%}"
    assert float(rows["old"]["minutes"]) < 60 <= float(rows["new"]["minutes"])


def break_photo(folder):
    (folder / "images/photo_1.png").write_text("not a picture")


def break_embedding_size(folder):
    torch.save(torch.zeros(7), folder / "ArcFace_embeds/photo_1.pt")


def break_embedding(folder):
    (folder / "ArcFace_embeds/photo_1.pt").write_bytes(b"\x80\x04garbage")


def drop_embeddings(folder):
    for path in (folder / "ArcFace_embeds").glob("*.pt"):
        path.unlink()


def take_faces_away(folder):
    """As extraction leaves photos in which it finds none."""
    drop_embeddings(folder)
    file = folder / "ArcFace_embeds/faces.json"
    content = json.loads(file.read_text())
    for entry in content["images"].values():
        entry["status"] = "no face"
        del entry["box"], entry["landmarks"], entry["embedding_sha256"]
    atomic_write_json(file, content)


def close_folder(folder):
    folder.chmod(0)


def close_embeddings(folder):
    (folder / "ArcFace_embeds").chmod(0)


def add_photo_of_one_stem(folder):
    shutil.copy(folder / "images/photo_0.png", folder / "images/photo_0.jpg")


def empty_folder(folder):
    for path in (folder / "images").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_photo, "photo_1.png"),
        (break_embedding_size, "holds 7 numbers"),
        (break_embedding, "not a readable embedding"),
        (drop_embeddings, "run extract_arcface_embeds.py first"),
        (take_faces_away, "no face was found to embed in these photos; add photos"),
        (close_folder, "images: cannot be read (Permission denied); change its permissions"),
        (close_embeddings, "faces.json: cannot be read (Permission denied); change its permissions"),
        (add_photo_of_one_stem, "would share one embedding"),
        (empty_folder, "no photo in it"),
    ],
)
def test_one_bad_identity_does_not_stop_the_others(world, tmp_path, permissions, capsys, damage, message):
    rng = np.random.default_rng(1)
    recogniser = load_recogniser(world / "recogniser.safetensors")
    for name in ("ID_1", "ID_2"):
        write_faces(tmp_path / "faces" / name, [f"photo_{i}" for i in range(2)], rng, recogniser)
    damage(tmp_path / "faces/ID_1")
    options = ("--source-folder", tmp_path / "faces", "--objectives", "ID-Booth", "--max-train-steps", 1)
    if damage in (close_folder, add_photo_of_one_stem, empty_folder):  # what is known before training begins
        assert train(world, tmp_path / "out", *options, "--dry-run") == 1
        assert message in (said := capsys.readouterr().err) and "1 failed" in said and "1 to do" in said
    assert train(world, tmp_path / "out", *options) == 1
    rows = {row["identity"]: row for row in json.loads((tmp_path / "out/summary.json").read_text())}
    assert rows["ID_2"]["status"] == "done" and rows["ID_1"]["status"] == "failed"
    assert message in rows["ID_1"]["detail"] and "\n" not in rows["ID_1"]["detail"]


def test_non_finite_loss_stops_that_identity_and_keeps_its_checkpoint(world, tmp_path, monkeypatch):
    original = train_id_booth.Cohort.losses

    def poisoned(self, *arguments):
        losses, bands = original(self, *arguments)
        poisoned.calls += 1
        if poisoned.calls > 4:
            losses = losses * torch.tensor([[float("nan")], [1.0]])
        return losses, bands

    poisoned.calls = 0
    monkeypatch.setattr(train_id_booth.Cohort, "losses", poisoned)
    assert (
        train(
            world, tmp_path, "--identities", "ID_1", "ID_2", "--objectives", "DreamBooth", "--cohort-size", 2
        )
        == 1
    )
    rows = {row["identity"]: row for row in json.loads((tmp_path / "summary.json").read_text())}
    assert "loss not finite" in rows["ID_1"]["detail"] and rows["ID_2"]["status"] == "done"
    kept = lora(tmp_path, "DreamBooth", "ID_1", "checkpoint-0-3")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert not (tmp_path / "DreamBooth/ID_1/checkpoint-1-6").exists()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(world, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(self, data):
        if self.name == LORA and "ID_1" in str(self):
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert train(world, tmp_path, "--identities", "ID_1", "ID_2", "--objectives", "DreamBooth") == 1
    rows = {row["identity"]: row for row in json.loads((tmp_path / "summary.json").read_text())}
    assert "the disk is full" in rows["ID_1"]["detail"] and rows["ID_2"]["status"] == "done"
    assert not list((tmp_path / "DreamBooth/ID_1").glob("*checkpoint*"))


def test_corrupt_resume_state_is_named(world, tmp_path):
    folder = tmp_path / "DreamBooth/ID_1"
    folder.mkdir(parents=True)
    (folder / "resume.pt").write_bytes(b"PK\x03\x04 torn")
    options = ("--identities", "ID_1", "--objectives", "DreamBooth", "--max-train-steps", 1)
    assert train(world, tmp_path, *options) == 1
    detail = json.loads((tmp_path / "summary.json").read_text())[0]["detail"]
    assert "resume.pt: corrupt" in detail and "delete it" in detail


def test_settings_of_a_run_that_trained_nothing_block_nobody(world, tmp_path):
    atomic_write_json(tmp_path / "DreamBooth/ID_1/training_config.json", {"config": {"lora_rank": 99}})
    assert (
        train(world, tmp_path, "--identities", "ID_1", "--objectives", "DreamBooth", "--max-train-steps", 1)
        == 0
    )


def test_a_lora_of_others_in_the_place_of_ours_is_left_alone(world, tmp_path):
    theirs = tmp_path / "DreamBooth/ID_1/checkpoint-0-1" / LORA
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    options = ("--identities", "ID_1", "ID_2", "--objectives", "DreamBooth", "--max-train-steps", 1)
    assert train(world, tmp_path, *options) == 1
    rows = {row["identity"]: row for row in json.loads((tmp_path / "summary.json").read_text())}
    assert rows["ID_2"]["status"] == "done" and "no training_config.json of ours" in rows["ID_1"]["detail"]
    assert theirs.read_bytes() == b"theirs" and len(list((tmp_path / "DreamBooth/ID_1").rglob("*"))) == 2


def test_checkpoint_limit(world, tmp_path):
    options = ("--identities", "ID_1", "--objectives", "DreamBooth")
    train(world, tmp_path, *options, "--checkpoints-total-limit", 1)
    kept = [path.name for path in (tmp_path / "DreamBooth/ID_1").glob("checkpoint-*")]
    assert kept == ["checkpoint-1-6"]


def test_dry_run_writes_nothing(world, tmp_path, capsys):
    assert train(world, tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    printed = capsys.readouterr().err
    assert "ID_10" in printed and "steps: 66" in printed
    assert train(world, tmp_path / "out", "--dry-run", "--require-consent") == 1
    printed = capsys.readouterr().err
    assert "consent.json" in printed and "steps: 0" in printed and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("--negatives-folder", "None"), "negatives_folder: ID-Booth without prior"),
        (("--lora-rank", 0), "lora_rank: is 0"),
        (("--identities", "ID_3"), "no 'ID_3'"),
        (("--source-folder", "nowhere"), "nowhere: no such folder"),
        (("--optimizer", "prodigy"), "prodigyopt"),
        (("--identity-decode", "taesd"), "taesd_model"),
        (("--base-model", "nowhere/base"), "nowhere/base"),
        (("--recogniser", "nowhere.pth"), "nowhere.pth"),
        (("--device", "cuda"), "no CUDA device"),
    ],
)
def test_refusals(world, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(world, tmp_path, *overrides)
