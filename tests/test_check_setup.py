"""python -m id_booth.check_setup."""

import pytest

from id_booth import check_setup
from id_booth.batch_status import duration
from tests.test_train import world  # noqa: F401  (a fixture)


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


@pytest.mark.parametrize("config", ["train_sd21_fast", "train_sd21", "inference_sd21", "extract_sd21"])
def test_real_configs_are_checked_without_their_weights(config, capsys, tmp_path):
    overrides = ["--source-folder", str(tmp_path)]
    code, lines = check(capsys, "--config", f"configs/{config}.py", *overrides)
    assert code == 1 and {"config", "device", "disk"} <= lines.keys()


def test_what_the_script_refuses_is_not_approved(world, capsys, tmp_path):  # noqa: F811
    _, lines = check(capsys, "--config", world / "config.py", "--mixed-precision", "fp16")
    assert "missing" in lines["device"] and "fp16 needs a GPU" in lines["device"]
    options = ["--source-folder", tmp_path, "--lora-folder", tmp_path, "--device", "cpu"]
    code, lines = check(capsys, "--config", "configs/inference_mini.py", *options, "--precision", "fp16")
    assert code == 1 and "fp16 needs a GPU" in lines["device"]
    assert "attributes.csv: not found" in lines["attributes"]


def test_config_of_another_script(capsys):
    code, lines = check(capsys, "--config", "configs/train_fr_mini.py")
    assert code == 1 and "TrainFRConfig" in lines["config"]


def test_durations():
    assert [duration(s) for s in (0.4, 90, 150, 9000, 200_000)] == [
        "0 s",
        "90 s",
        "2.5 min",
        "2.5 h",
        "2.3 days",
    ]
