"""What a shell inside a job passes on, and names of devices: one line each, never a silent wait."""

import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from id_booth import launch
from id_booth.launch import SIZES, check_inherited_launch
from tests.conftest import PROJECT_ROOT
from utils.devices import pick_device
from utils.errors import UserError

OTHERS = ("LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")


@pytest.fixture
def environment(monkeypatch):
    """Set variables as a launcher would, and no others."""
    for name in (*SIZES, *OTHERS):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize("name", [*SIZES, "LOCAL_RANK"])
@pytest.mark.parametrize("value", ["4", "many"])
def test_inherited_variables_are_refused_by_name(environment, name, value):
    environment(**{name: value})
    with pytest.raises(UserError, match=rf"{name}={value}: set as if .* `unset {name}` to run alone"):
        check_inherited_launch()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"PMI_SIZE": "1", "WORLD_SIZE": ""},
        {"LOCAL_RANK": "-1"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "TORCHELASTIC_RUN_ID": "1"},
    ],
)
def test_a_process_alone_or_of_torchrun_begins_without_a_word(environment, capsys, values):
    environment(**values)
    check_inherited_launch()
    assert not capsys.readouterr().err


def test_a_wait_is_announced(environment, capsys):
    environment(PMI_SIZE="4", MASTER_ADDR="127.0.0.1")
    check_inherited_launch()
    assert "PMI_SIZE=4: waits for the other processes at 127.0.0.1" in capsys.readouterr().err


def test_who_is_ended_by_the_launcher_at_last_leaves_with_the_code(monkeypatch):
    """torchrun sends SIGTERM to those that leave a moment after the first."""
    state = Mock(num_processes=2)
    monkeypatch.setattr(launch, "PartialState", lambda: state)
    monkeypatch.setattr(launch, "broadcast_object_list", lambda codes: codes.__setitem__(0, 1))
    ends, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(launch.atexit, "register", lambda *how: ends.append(how))
    try:
        assert launch.leave_together(0) == 1 and state.wait_for_everyone.called
        assert ends == [(launch.end_at_once, 1)]
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["gpu", "CPU", "mps", "mps:0", "cuda:x", "cuda:", "0", "", "cuda:9999"])
def test_other_devices_are_refused_by_name(name):
    with pytest.raises(UserError, match="device: .*; choose auto, cpu, cuda, or cuda:1"):
        pick_device(name)


@pytest.mark.parametrize("count, name", [(0, "cuda"), (0, "cuda:1"), (2, "cuda:2")])
def test_a_device_that_is_not_there(monkeypatch, count, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match=f"device: (no )?{name}"):
        pick_device(name)


def test_a_numbered_device_is_the_current_one(monkeypatch):
    """CUDA graphs are recorded, and accelerate computes, on the current device, whatever tensors say."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda:1") == torch.device("cuda:1") and current == ["cuda:1"]
    assert pick_device("cuda") == torch.device("cuda") and len(current) == 1


def test_from_another_working_folder(tmp_path):
    """Configs and what they name of the project are found; results go where the user is."""
    command = [sys.executable, PROJECT_ROOT / "extract_arcface_embeds.py"]
    command += ["--config", "configs/extract_mini.py"]
    command += ["--source-folder", "faces", "--dry-run"]
    (tmp_path / "faces/Ada/images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "faces/Ada/images/1.png")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["train_id_booth", "inference_id_booth", "evaluation.evaluate"])
@pytest.mark.parametrize("options, code, words", [(["--help"], 0, "--config FILE"), (["--x"], 2, "error: ")])
def test_help_and_wrong_options_are_answered_before_the_libraries_load(script, options, code, words):
    watch = "import runpy, sys; sys.argv = sys.argv[1:]\n"
    watch += "try: runpy.run_module(sys.argv[0], run_name='__main__')\n"
    watch += "finally: assert not {'torch', 'numpy', 'diffusers'} & sys.modules.keys()"
    command = [sys.executable, "-c", watch, script, *options]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == code and words in done.stdout + done.stderr


@pytest.mark.parametrize(
    "script, option, words",
    [
        ("train_id_booth", "--source-folder", "nowhere: no such folder"),
        ("train_id_booth", "--negatives-folder", "nowhere: no such folder; give one with ArcFace_embeds/"),
        ("inference_id_booth", "--source-folder", "nowhere: no such folder, and the prompts name gender"),
        ("extract_arcface_embeds", "--source-folder", "nowhere: no such folder"),
        ("extract_arcface_embeds", "--source-folder=None --class-folder", "nowhere: no such folder; give"),
        ("evaluation.evaluate", "--real-folder", "nowhere: no such folder"),
        ("fr_training.train_fr", "--dataset", "nowhere: no such crop set"),
        ("id_booth.check_setup", "--source-folder", "nowhere: no such folder"),
    ],
)
def test_missing_data_are_named_before_the_large_libraries_load(script, option, words):
    watch = "import runpy, sys; sys.argv = sys.argv[1:]\n"
    watch += "try: runpy.run_module(sys.argv[0], run_name='__main__')\n"
    watch += "finally: assert not {'diffusers', 'transformers', 'peft'} & sys.modules.keys()"
    command = [sys.executable, "-c", watch, script, *option.split(), "nowhere"]
    command += [] if script.endswith("check_setup") else ["--dry-run"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode in (1, 2) and words in done.stderr and "Error" not in done.stderr, done.stderr
