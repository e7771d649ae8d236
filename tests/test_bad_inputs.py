"""Bad inputs to every script: each ends in one documented line, and earlier results stay as they were."""

import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import inference_id_booth
import train_id_booth
from fr_training import align_faces, augment_dataset, test_fr, train_fr
from fr_training.benchmark_bin import read_bin
from tests import miniature_runs as runs
from tests.bad_data import DATA, EVIL, cut
from tests.tiny_base import make_tiny_base, make_tiny_lora
from utils.errors import UserError
from utils.files import atomic_write_json
from utils.images import save_png

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """People with embeddings and LoRAs, made by the scripts themselves, and the results of earlier runs."""
    root = tmp_path_factory.mktemp("world")
    runs.make_world(root)
    argv, sys.argv = sys.argv, ["x"]
    runs.embed_world(root)
    runs.lora_world(root)
    runs.sample(root, root / "samples")
    sys.argv = argv
    return root


@pytest.fixture(autouse=True)
def signals():
    """The scripts' signal handlers end with each test."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def copy(world, tmp_path):
    """A copy that a test may damage; the networks are shared."""
    for name in ("faces", "loras", "crops"):
        shutil.copytree(world / name, tmp_path / name)
    for name in ("base", "pack", "class"):
        (tmp_path / name).symlink_to(world / name)
    return tmp_path


def outcome(call, folder):
    """(exit code, message): the refusal, or the details of what failed in the summary."""
    argv = sys.argv
    try:
        code = call() or 0
    except UserError as error:
        return 2, str(error)
    finally:
        sys.argv = argv
    rows = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").is_file() else []
    return code, "\n".join(row["detail"] for row in rows if row["status"] == "failed")


# ------------------------------------------------------------------------------------- settings of training


TRAINING = [
    (("--lora-rnk", 8), "lora-rank"),
    (("--lora-rank", "eight"), "lora-rank|int"),
    (("--lora-rank", 0), "lora_rank: is 0, must be at least 1"),
    (("--learning-rate", "nan"), "learning_rate is nan"),
    (("--learning-rate", "inf"), "rate is inf"),
    (("--shard", "2/2"), "shard: '2/2' is not"),
    (("--cohort-size", 0), "cohort_size: is 0"),
    (("--objectives", "DreamBoth"), "DreamBooth"),
    (("--identities", "ID_7"), "no 'ID_7'"),
    (("--identities", "../ID_1"), "no '../ID_1'"),
    (("--source-folder", "nowhere"), "no such folder"),
    (("--base-model", "nowhere/x"), "nowhere/x"),
    (("--base-model", "tests"), "model_index.json"),
    (("--recogniser", "nowhere.pth"), "nowhere.pth"),
    (("--pack", "nowhere"), "nowhere"),
    (("--optimizer", "prodigy"), "needs prodigyopt"),
    (("--identity-decode", "taesd"), "taesd_model"),
    (("--negatives-folder", "None"), "negatives_folder"),
    (("--negatives-folder", "tests"), "no embedding"),
    (("--push-to-hub",), "push_to_hub: needs"),
    (("--device", "cuda"), "no CUDA device"),
    (("--max-train-steps", 0), "max_train_steps: is 0"),
    (("--learning-rate", -1), "learning_rate: is -1.0, must be above 0"),
    (("--lora-alpha", 0), "lora_alpha: is 0.0, must be above 0"),
    (("--adam-beta1", 1.5), "adam_beta1: is 1.5, must be from 0 to below 1"),
    (("--identity-loss-weight", -1), "identity_loss_weight: is -1.0, must be at least 0"),
    (("--lr-warmup-steps", -5), "lr_warmup_steps: is -5"),
    (("--resolution", 100), "resolution: is 100, must be a multiple of 8"),
    (("--max-grad-norm", 0), "max_grad_norm: is 0.0, must be above 0; 1e9 clips nothing"),
    (("--snr-gamma", 0), "snr_gamma: is 0.0, must be above 0, or None"),
    (("--identity-sampling-factor", 0), "identity_sampling_factor: is 0.0, must be above 0"),
    (("--triplet-margin", -5), "triplet_margin: is -5.0, must be at least 0"),
    (("--face-margin", -4), "face_margin: is -4, must be at least 0"),
    (("--resume-minutes", -1), "resume_minutes: is -1.0, must be at least 0"),
    (("--lr-warmup-steps", 5, "--max-train-steps", 4, "--dry-run"), "lr_warmup_steps: is 5, of 4 steps in"),
    (("--lora-targets",), "lora_targets: empty; name layers"),
    (("--objectives", "ID-Booth", "ID-Booth"), "objectives: ID-Booth, ID-Booth names one twice"),
    (("--class-folder", ""), "class_folder: is empty"),
    (("--output-folder", "/proc/x"), "/proc/x: cannot be written .*name another place"),
]


@pytest.mark.parametrize("options, message", TRAINING)
def test_training_settings(world, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as caught:
        runs.train(world, tmp_path / "out", *options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.safetensors"))


# --------------------------------------------------------------------------------------- data of training


@pytest.mark.parametrize("name", DATA)
def test_training_data(copy, name):
    """One identity's data are bad: it fails in one line, the other is trained, the earlier LoRAs stay."""
    damage, message = DATA[name]
    earlier = runs.artefacts(copy / "loras")
    damage(copy / "faces/ID_1")
    options = ["--identities", "ID_1", "ID_2", "--max-train-steps", 1]
    if name.startswith("consent"):
        options.append("--require-consent")
        given = {"who": "a", "purpose": "b", "until": "2099-01-01"}
        atomic_write_json(copy / "faces/ID_2/consent.json", given)
    code, found = outcome(lambda: runs.train(copy, copy / "out", *options), copy / "out")
    assert code == 1 and len(set(found.splitlines())) == 1
    assert re.search(message, found)
    assert len(list((copy / "out").glob("*/ID_2/checkpoint-*"))) == 2
    assert not list((copy / "out").glob("*/ID_1/checkpoint-*"))
    assert runs.artefacts(copy / "loras") == earlier and not list(copy.rglob("trap"))


STATES = {
    "resume state cut": ("resume.pt", b"PK\x03\x04", "resume.pt: corrupt"),
    "resume state runs code": ("resume.pt", EVIL, "resume.pt: corrupt"),
    "record cut": ("training_config.json", b'{"config": ', "not readable as JSON"),
    "record a list": ("training_config.json", b"[]", "damaged; delete it"),
    "record of others": ("training_config.json", b'{"config": {"lora_rank": 99}}', "with lora_rank = 99"),
}


@pytest.mark.parametrize("name", STATES)
def test_state_of_an_earlier_training(world, tmp_path, name):
    file, content, message = STATES[name]
    folder = tmp_path / "DreamBooth/ID_1"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    if name == "record of others":  # it counts where something was trained with it
        (folder / "resume.pt").write_bytes(b"x")
    options = ("--identities", "ID_1", "--objectives", "DreamBooth", "--max-train-steps", 1)
    code, found = outcome(lambda: runs.train(world, tmp_path, *options), tmp_path)
    assert code == 1 and message in found and "\n" not in found
    assert (folder / file).read_bytes() == content


# ---------------------------------------------------------------------------------------------- sampling


SAMPLING = [
    (("--methods", "Nobody"), "no 'Nobody'; there are NonFineTuned, DreamBooth"),
    (("--methods", "../x"), "not usable as a folder name"),
    (("--identities", "a/b"), "not usable as a folder name"),
    (("--set-name", ".."), "not usable"),
    (("--set-name", "a\nb"), "not usable"),
    (("--checkpoint", "checkpoint-9-9"), "there are checkpoint"),
    (("--scheduler", "ddpmm"), "choose from ddpm"),
    (("--resolution", 60), "multiple of 8"),
    (("--steps", 0), "steps: is 0"),
    (("--guidance", "nan"), "guidance is nan"),
    (("--shard", "x"), "shard"),
    (("--precision", "fp16", "--set-name", "b"), "fp16 needs a GPU"),
    (("--prompt-set", "nowhere.txt"), "nowhere.txt"),
    (("--attributes-file", "nowhere.csv"), "nowhere.csv"),
    (("--base-model", "no/such/x"), "no such folder"),
    (("--steps", 1001), "steps: is 1001, must be at most 1000"),
    (("--sheet-thumb", 100_000), "sheet_thumb: is 100000, must be at most 1024"),
    (("--output-folder", ""), "output_folder: is empty"),
    (("--methods", "ID-Booth", "ID-Booth"), "methods: ID-Booth, ID-Booth names one twice"),
    (("--steps", 3), "was made with steps 2, now it is 3"),
]


@pytest.mark.parametrize("options, message", SAMPLING)
def test_sampling_settings(world, options, message):
    earlier = runs.artefacts(world / "samples")
    methods = () if "--methods" in options else ("--methods", "ID-Booth")
    with pytest.raises(UserError, match=message) as caught:
        runs.sample(world, world / "samples", *methods, *options)
    assert "\n" not in str(caught.value)
    assert runs.artefacts(world / "samples") == earlier


def other_base(folder):
    make_tiny_lora(folder, make_tiny_base(folder.parent / "other", channels=(16, 16)))


def spoil(change):
    """A damage to the tensors of a LoRA file."""

    def damage(folder):
        tensors = {key: value.contiguous() for key, value in change(load_file(folder / LORA)).items()}
        save_file(tensors, folder / LORA)

    return damage


LORAS = {
    "cut": (lambda f: cut(f / LORA), "not a readable LoRA"),
    "empty": (lambda f: (f / LORA).write_bytes(b""), "not a readable LoRA"),
    "a pickle": (lambda f: (f / LORA).write_bytes(EVIL), "not a readable LoRA"),
    "not finite": (spoil(lambda t: {k: v * torch.nan for k, v in t.items()}), "not finite"),
    "half a layer": (spoil(lambda t: dict(list(t.items())[:1])), "half a layer"),
    "no LoRA": (spoil(lambda t: {"weight": torch.zeros(3)}), "LoRA"),
    "of another base model": (other_base, "does not fit"),
    "flat tensors": (spoil(lambda t: {k: v.flatten() for k, v in t.items()}), "LoRA"),
    "numbers": (spoil(lambda t: {k: v.sum() for k, v in t.items()}), "LoRA"),
}


@pytest.mark.parametrize("name", LORAS)
def test_lora_files(copy, name):
    damage, message = LORAS[name]
    damage(next((copy / "loras/ID-Booth/ID_1").glob("checkpoint-*")))
    options = ("--methods", "ID-Booth", "--identities", "ID_1", "ID_2", "--prompt-set", 1)
    code, found = outcome(lambda: runs.sample(copy, copy / "out", *options), copy / "out/set")
    assert code == 1 and message in found and "\n" not in found
    assert [path.parent.name for path in (copy / "out/set").glob("*/*/*.png")] == ["ID_2"]
    assert not list(copy.rglob("trap"))


@pytest.mark.parametrize("text", ["identity,gender\nID_1,X\nID_2,F\n", "nonsense\n", "", "identity\nID_1\n"])
def test_attributes(copy, text):
    (copy / "faces/attributes.csv").write_text(text)
    options = ("--methods", "ID-Booth", "--identities", "ID_1", "--prompt-set", 1)
    code, found = outcome(lambda: runs.sample(copy, copy / "out", *options), copy / "out/set")
    assert code in (1, 2) and found and "\n" not in found
    assert not list((copy / "out").rglob("*.png"))


def test_a_bad_row_of_attributes_costs_one_person(copy, capsys):
    (copy / "faces/attributes.csv").write_text(f'identity,gender\nID_1,"{"x" * 200_000}\nID_2,F\n')
    options = ("--methods", "ID-Booth", "--identities", "ID_1", "ID_2", "--prompt-set", 1)
    code, found = outcome(lambda: runs.sample(copy, copy / "out", *options), copy / "out/set")
    assert code == 1 and "ID_1: gender is not known" in found and "\n" not in found
    assert [path.parent.name for path in (copy / "out/set").glob("*/*/*.png")] == ["ID_2"]
    assert "whose rows are bad, mend these: ID_1: " in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- extraction


EXTRACTION = [
    (("--det-size", 100), "det_size: is 100"),
    (("--detection-threshold", 2), "detection_threshold"),
    (("--source-folder", "nowhere"), "nowhere: no such folder"),
    (("--pack", "nowhere"), "nowhere"),
    (("--recogniser", "nowhere.onnx"), "nowhere.onnx"),
    (("--recogniser", "README.md"), "README.md"),
    (("--workers", 0), "workers: is 0"),
    (("--source-folder", ""), "source_folder: is empty"),
    (("--source-folder", "x" * 300), "source_folder: 'xxx"),
    (("--embeds-folder", "/proc/x"), "/proc/x: cannot be written ("),
    (("--threads", -1), "threads: is -1"),
    (("--multiple-faces", "all"), "largest"),
]


@pytest.mark.parametrize("options, message", EXTRACTION)
def test_extraction_settings(world, options, message):
    earlier = runs.artefacts(world / "faces")
    code, found = outcome(lambda: runs.embed(world, *options), world)
    assert code == 2 and message in found and "\n" not in found
    assert runs.artefacts(world / "faces") == earlier


PHOTOS = ["cut", "is text", "empty", "a bomb", "a program", "a strip"]


@pytest.mark.parametrize("name", ["no photo", *(f"photo {what}" for what in PHOTOS)])
def test_extraction_data(copy, name, capsys):
    DATA[name][0](copy / "faces/ID_1")
    code, _ = outcome(lambda: runs.embed(copy), copy)
    assert code == 1
    rows = {row["identity"]: row for row in json.loads((copy / "faces/extract_summary.json").read_text())}
    assert rows["ID_1"]["status"] == "failed" and rows["ID_2"]["status"] == "done"


def odd_names(faces):
    """Photos among what is none, people whose names are no text, or text that is no number."""
    photos = faces / "ID_1/images"
    shutil.copy(photos / "0.png", photos / "1².png")
    shutil.copytree(faces / "ID_1", faces / "1²")
    shutil.copytree(faces / "ID_1", faces / "bad\udcff")
    shutil.copy(photos / "0.png", photos / "x\udcff.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "folder.png").mkdir()
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "._0.png").write_bytes(b"Mac OS X")
    (faces / "__MACOSX/images").mkdir(parents=True)


def test_extraction_and_training_among_odd_names_and_files(copy, capsys):
    odd_names(copy / "faces")
    assert outcome(lambda: runs.embed(copy), copy)[0] == 0
    rows = {row["identity"]: row for row in json.loads((copy / "faces/extract_summary.json").read_text())}
    people = {"1²", *(path.name for path in (copy / "faces").glob("ID_*"))}
    assert rows.keys() == people and {row["status"] for row in rows.values()} == {"done"}
    assert (copy / "faces/ID_1/ArcFace_embeds/1².pt").is_file()
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 2 and "4 left out" in lines[1] and r"bad\udcff" in lines[0]
    options = ("--identities", "1²", "ID_1", "--objectives", "DreamBooth", "--max-train-steps", 1)
    assert outcome(lambda: runs.train(copy, copy / "out", *options), copy / "out")[0] == 0


@pytest.mark.parametrize(
    "name",
    [
        "faces.json cut",
        "faces.json a list",
        "faces.json deep",
        "entry a number",
        "embedding of noise",
        "embedding runs code",
    ],
)
def test_extraction_makes_anew_what_is_damaged(copy, name):
    good = runs.artefacts(copy / "faces")
    DATA[name][0](copy / "faces/ID_1")
    assert outcome(lambda: runs.embed(copy), copy)[0] == 0
    assert runs.artefacts(copy / "faces") == good


# ------------------------------------------------------------------------------------------- recognition


def wrong_size(root):
    save_png(root / "set/A/0.png", np.zeros((64, 64, 3), np.uint8))
    return ["--dataset", root / "set"]


def broken_manifest(root):
    (root / "m.json").write_text('{"kind": "something"}')
    return ["--dataset", root / "m.json"]


RECOGNITION = {
    "no data set": (train_fr, lambda root: ["--dataset", root / "nowhere"], "no such crop set"),
    "crops of another size": (train_fr, wrong_size, "crops are 112 x 112"),
    "not a manifest": (train_fr, broken_manifest, "not a manifest"),
    "a seed below 0": (train_fr, lambda _: ["--seeds", 0, -1], "seeds: -1 is negative"),
    "a seed twice": (train_fr, lambda _: ["--seeds", 0, 0], "seeds: 0, 0 names one twice"),
    "test: a benchmark twice": (test_fr, lambda _: ["--benchmarks", "b", "b"], "benchmarks: b, b names one"),
    "align: no source": (align_faces, lambda root: ["--source", root / "nowhere"], "nowhere"),
    "augment: no crops": (augment_dataset, lambda root: ["--real", root / "nowhere"], "nowhere"),
    "augment: nothing at all": (augment_dataset, lambda _: ["--real", "None", "--synthetic", "None"], "both"),
    "test: no recogniser": (test_fr, lambda root: ["--recognisers", root / "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("name", RECOGNITION)
def test_recognition(tmp_path, name):
    module, arguments, message = RECOGNITION[name]
    config = {
        train_fr: "train_fr_mini",
        align_faces: "align_mini",
        augment_dataset: "augment_mini",
        test_fr: "test_fr_mini",
    }[module]
    argv = ["--config", f"configs/{config}.py", *map(str, arguments(tmp_path))]
    with pytest.raises(UserError, match=message) as caught:
        module.main(argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", EVIL, b"\x80\x04]\x94.", b"\x80\x05N."])
def test_verification_files(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bin") as caught:
        read_bin(tmp_path / "a.bin")
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("trap"))


# ----------------------------------------------------------------------------------------- config files


@pytest.mark.parametrize("script", [train_id_booth, inference_id_booth, train_fr])
@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "config = 5",
        "config = TrainConfig(",
        "import nowhere_at_all",
        "raise SystemExit(3)",
        "\0",
        "config = 1 / 0",
    ],
)
def test_config_files(tmp_path, script, text):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match=r"c\.py") as caught:
        script.main(["--config", str(tmp_path / "c.py")])
    assert "\n" not in str(caught.value)
