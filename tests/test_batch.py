"""Batches: failures stay alone, memory runs out, two runs share a folder, consent, status, many processes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import train_id_booth
from tests.conftest import PROJECT_ROOT
from tests.test_claims import holder  # noqa: F401  (a fixture)
from tests.test_train import LORA, equal, lora, train, world  # noqa: F401  (world is a fixture)
from utils.files import atomic_write_json
from utils.progress import log_once

SHORT = ("--identities", "ID_1", "ID_2", "--objectives", "DreamBooth", "--max-train-steps", 2)


def summary(output, name="summary"):
    """Rows of a summary by identity."""
    return {row["identity"]: row for row in json.loads((output / f"{name}.json").read_text())}


def checkpoint(output, name):
    return lora(output, "DreamBooth", name, "checkpoint-0-2")


def test_out_of_memory_is_tried_again_with_gradient_checkpointing(world, tmp_path, monkeypatch):  # noqa: F811
    train(world, tmp_path / "plain", *SHORT)
    step, calls = train_id_booth.Cohort.step, []

    def hungry(self, number):
        calls.append((self.names, self.models.unet.is_gradient_checkpointing))
        if not self.models.recomputes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, number)

    monkeypatch.setattr(train_id_booth.Cohort, "step", hungry)
    assert train(world, tmp_path / "hungry", *SHORT, "--cohort-size", 2) == 0
    assert calls == [(["ID_1", "ID_2"], False), *[(["ID_1"], True)] * 2, *[(["ID_2"], True)] * 2]
    for name in ("ID_1", "ID_2"):
        plain, again = checkpoint(tmp_path / "plain", name), checkpoint(tmp_path / "hungry", name)
        assert all(torch.allclose(plain[key], again[key], atol=1e-5) for key in plain)


@pytest.mark.parametrize(
    "error, words",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (ZeroDivisionError("who\nknows why"), "ZeroDivisionError: who knows why"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_goes_wrong_ends_one_identity_only(world, tmp_path, monkeypatch, error, words):  # noqa: F811
    step = train_id_booth.Cohort.step

    def fails(self, number):
        if self.names == ["ID_1"] and number == 1:
            raise error
        return step(self, number)

    monkeypatch.setattr(train_id_booth.Cohort, "step", fails)
    assert train(world, tmp_path, *SHORT) == 1
    rows = summary(tmp_path)
    assert rows["ID_1"]["status"] == "failed" and words in rows["ID_1"]["detail"]
    assert rows["ID_2"]["status"] == "done"
    assert "1 failed" in (tmp_path / "summary.txt").read_text()
    monkeypatch.setattr(train_id_booth.Cohort, "step", step)
    assert train(world, tmp_path, *SHORT) == 0  # a new run tries again what failed
    assert {row["status"] for row in summary(tmp_path).values()} == {"done", "done before"}


def test_a_name_that_is_none_for_a_folder_stops_nobody_else(world, tmp_path, capsys):  # noqa: F811
    for name in ("ID_1", "ID_2"):
        shutil.copytree(world / "faces" / name, tmp_path / "faces" / name.replace("ID_1", "A\nB"))
    options = ("--source-folder", tmp_path / "faces", *SHORT[3:])
    train(world, tmp_path / "out", *options, "--dry-run")
    assert "1 failed" in (said := capsys.readouterr().err) and "1 to do" in said
    assert train(world, tmp_path / "out", *options) == 1
    rows = summary(tmp_path / "out")
    assert rows["ID_2"]["status"] == "done" and not (tmp_path / "out/DreamBooth/A\nB").exists()
    assert "not usable as a folder name; give a plain name" in rows["A\nB"]["detail"]


def test_a_repeated_command_keeps_the_record_of_the_run_that_trained(world, tmp_path):  # noqa: F811
    one = ("--identities", "ID_1", "--objectives", "PortraitBooth", "--max-train-steps", 2)
    assert train(world, tmp_path, *one, "--seed", 0) == 0
    record, first = (tmp_path / "run.json").read_text(), summary(tmp_path)["ID_1"]
    assert first["identity term"].endswith("%") and first["minutes"]
    before = {**first, "status": "done before"}
    assert train(world, tmp_path, *one) == 0
    assert (tmp_path / "run.json").read_text() == record and summary(tmp_path)["ID_1"] == before
    (tmp_path / "summary.json").unlink()  # as where the first run was stopped before its end
    assert train(world, tmp_path, "--identities", "ID_1", "ID_2", *one[2:]) == 0
    assert summary(tmp_path)["ID_1"] == before and summary(tmp_path)["ID_2"]["status"] == "done"
    old, new = json.loads(record), json.loads((tmp_path / "run.json").read_text())
    assert "--seed 0" not in new["command"]
    kept = {key: old[key] for key in ("command", "code_version", "started")}
    assert new["earlier_runs"] == [kept] and "--seed 0" in kept["command"]


def test_two_runs_share_a_folder(world, tmp_path, holder):  # noqa: F811
    owner = holder(tmp_path, "DreamBooth/ID_1")
    assert train(world, tmp_path, *SHORT) == 0
    assert summary(tmp_path)["ID_1"]["status"] == "elsewhere"
    assert summary(tmp_path)["ID_2"]["status"] == "done"
    assert not (tmp_path / "DreamBooth/ID_1/checkpoint-0-2").exists()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert train(world, tmp_path, *SHORT) == 0
    assert summary(tmp_path)["ID_1"]["status"] == "done"


def test_a_run_whose_claim_was_taken_over_writes_nothing_more(world, tmp_path, monkeypatch):  # noqa: F811
    step = train_id_booth.Cohort.step

    def slept(self, number):
        for file in (tmp_path / ".batch").glob("*.json"):
            file.write_text('{"unit": "DreamBooth/ID_1", "token": "another process"}')
        return step(self, number)

    monkeypatch.setattr(train_id_booth.Cohort, "step", slept)
    assert train(world, tmp_path, "--identities", "ID_1", *SHORT[3:]) == 0
    assert summary(tmp_path)["ID_1"]["detail"] == "another process took it over"
    assert not list((tmp_path / "DreamBooth/ID_1").glob("checkpoint-*"))


def test_shards_make_the_loras_of_one_run(world, tmp_path):  # noqa: F811
    train(world, tmp_path / "one", *SHORT)
    for shard in range(3):  # one shard more than there are identities
        assert train(world, tmp_path / "shards", *SHORT, "--shard", f"{shard}/3") == 0
    for name in ("ID_1", "ID_2"):
        assert equal(checkpoint(tmp_path / "one", name), checkpoint(tmp_path / "shards", name))
    assert list(summary(tmp_path / "shards", "summary-1-of-3")) == ["ID_2"]


def test_consent_is_required_where_asked_for(world, tmp_path, request):  # noqa: F811
    given = {"who": "form 1", "purpose": "research", "until": "2099-01-01"}
    request.addfinalizer(lambda: [file.unlink() for file in (world / "faces").glob("*/consent.json")])
    atomic_write_json(world / "faces/ID_1/consent.json", given)
    atomic_write_json(world / "faces/ID_2/consent.json", {**given, "until": "2020-01-01"})
    options = ("--objectives", "DreamBooth", "--max-train-steps", 1, "--require-consent")
    assert train(world, tmp_path, *options) == 1
    rows = summary(tmp_path)
    assert rows["ID_1"]["status"] == "done" and "consent ended on 2020-01-01" in rows["ID_2"]["detail"]
    assert "consent is required" in rows["ID_10"]["detail"]
    folder = tmp_path / "DreamBooth/ID_1"
    consent = json.loads((folder / "training_config.json").read_text())["consent"]
    assert consent["purpose"] == ["train", "generate"] and consent["text"] == "research"
    with safe_open(folder / "checkpoint-0-1" / LORA, "pt") as file:
        notes = file.metadata()
    assert notes["identity"] == "ID_1" and notes["consent_sha256"] == consent["sha256"]
    with open(folder / "checkpoint-0-1" / LORA, "rb") as file:
        assert b"form 1" not in file.read()


def test_training_over_a_consent_that_ended_is_said(world, tmp_path, request, capsys):  # noqa: F811
    """Whether it would begin, go on, or is finished; required or not."""
    request.addfinalizer(lambda: [file.unlink() for file in (world / "faces").glob("*/consent.json")])
    options = ("--objectives", "DreamBooth", "--max-train-steps", 1, "--identities", "ID_1")
    assert train(world, tmp_path, *options) == 0
    with safe_open(tmp_path / "DreamBooth/ID_1/checkpoint-0-1" / LORA, "pt") as file:
        assert file.metadata()["identity"] == "ID_1" and "consent_sha256" not in file.metadata()
    ended = {"who": "form 1", "purpose": ["train"], "until": "2020-01-01"}
    atomic_write_json(world / "faces/ID_1/consent.json", ended)
    log_once.cache_clear()
    capsys.readouterr()
    assert train(world, tmp_path, *options) == 0
    assert "consent ended on 2020-01-01" in capsys.readouterr().err
    assert train(world, tmp_path, *options, "--require-consent") == 1
    assert "consent ended on 2020-01-01" in summary(tmp_path)["ID_1"]["detail"]
    atomic_write_json(world / "faces/ID_1/consent.json", ended | {"withdrawn": "2026-11-01"})
    assert train(world, tmp_path, *options) == 1
    assert "consent was withdrawn" in summary(tmp_path)["ID_1"]["detail"]


def test_a_lora_of_somebody_else_is_not_taken_for_done(world, tmp_path):  # noqa: F811
    options = ("--objectives", "DreamBooth", "--max-train-steps", 1)
    assert train(world, tmp_path, *options, "--identities", "ID_2") == 0
    (tmp_path / "DreamBooth/ID_2").rename(tmp_path / "DreamBooth/ID_1")
    assert train(world, tmp_path, *options, "--identities", "ID_1") == 1
    assert "is a LoRA of 'ID_2', in the folder of 'ID_1'" in summary(tmp_path)["ID_1"]["detail"]


@pytest.mark.parametrize("where", ["class", "negatives"])
def test_a_photo_of_the_person_among_other_people_is_refused(world, tmp_path, where):  # noqa: F811
    """A prior or a negative that shows the very person would teach the opposite of what it is for."""
    shutil.copytree(world / "class", tmp_path / "class")
    shutil.copytree(world / "class", tmp_path / "negatives")
    shutil.copy(world / "faces/ID_2/images/photo_1.png", tmp_path / where / "images/stranger.png")
    options = ("--class-folder", tmp_path / "class", "--negatives-folder", tmp_path / "negatives")
    options += ("--with-prior-preservation", "--objectives", "DreamBooth", "--max-train-steps", 1)
    assert train(world, tmp_path / "out", *options) == 1
    rows = summary(tmp_path / "out")
    assert [rows[name]["status"] for name in ("ID_1", "ID_2", "ID_10")] == ["done", "failed", "done"]
    assert "photo_1.png: is among the class images too" in rows["ID_2"]["detail"]


def test_status_and_plan_read_the_folder_alone(world, tmp_path, holder, capsys):  # noqa: F811
    options = ("--objectives", "DreamBooth", "--max-train-steps", 2)
    assert train(world, tmp_path, "--identities", "ID_1", *options) == 0
    holder(tmp_path, "DreamBooth/ID_2")
    capsys.readouterr()
    assert train(world, tmp_path, *options, "--status") == 0
    printed = capsys.readouterr().err
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith("ID_")}
    assert "done" in lines["ID_1"] and "running" in lines["ID_2"] and "to do" in lines["ID_10"]
    assert "left: 4 steps" in printed and "for 1 process" in printed
    train(world, tmp_path, *options, "--dry-run")
    assert "steps: 4" in capsys.readouterr().err


def test_records_and_summaries_name_no_folder_of_this_machine(world, tmp_path):  # noqa: F811
    train(world, tmp_path, *SHORT, "--learning-rate", 1e-3)
    (world / "faces/ID_3/images").mkdir(parents=True)
    train(world, tmp_path, "--identities", "ID_3", *SHORT[3:], "--learning-rate", 1e-3)
    (world / "faces/ID_3/images").rmdir()
    (world / "faces/ID_3").rmdir()
    assert "no photo in it" in (tmp_path / "summary.json").read_text()
    for file in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.txt"), *tmp_path.rglob("*.jsonl")]:
        if ".batch" not in file.parts:
            assert str(world) not in file.read_text() and str(tmp_path) not in file.read_text(), file


# ------------------------------------------------------------------------------- many processes, and kills


def run_module(*arguments):
    """A script of the tests in a process of its own, since it forks; its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=PROJECT_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_any_number_of_processes_makes_the_same_files():
    lines = run_module("tests.processes").splitlines()
    assert len(lines) == 10 and all(line.endswith("equal") for line in lines[:8])
    assert all(line.endswith("exit codes [1, 1]; together") for line in lines[8:])


def test_killed_at_random_moments_and_run_again_equals_undisturbed():
    lines = run_module("tests.faults", "--kills", 2).splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["extraction", "training", "sampling", "recognition"]
    assert lines[-1] == "0 faults"


def test_torchrun_shares_the_identities(world, tmp_path):  # noqa: F811
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", 2, "train_id_booth.py"]
    options = ["--config", world / "config.py", "--output-folder", tmp_path / "two", *SHORT]
    run_module(*launcher, *options)
    assert {row["status"] for row in summary(tmp_path / "two").values()} == {"done"}
    train(world, tmp_path / "one", *SHORT)
    for name in ("ID_1", "ID_2"):
        assert equal(checkpoint(tmp_path / "one", name), checkpoint(tmp_path / "two", name))


@pytest.mark.parametrize("kind", ["bin", "faces", "metadata", "config", "lora"])
def test_mutated_inputs_are_refused_in_one_line(kind):
    assert "0 faults" in run_module("tests.fuzz", "--count", 60, "--kinds", kind)
