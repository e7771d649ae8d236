"""Claims on units of work, shards, order of work, summaries."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from id_booth.launch import gather_rows, go_over, work_order
from tests.conftest import PROJECT_ROOT
from utils import claims as module
from utils.claims import STALE_SECONDS, Claims, read_batch
from utils.config import parse_shard
from utils.errors import UserError
from utils.files import atomic_path, host, sha256_bytes, sweep_temporaries
from utils.run_record import summarise

HOLDER = """
import sys, time
from utils.claims import Claims
with Claims(sys.argv[1]) as claims:
    print(claims.take(sys.argv[2]), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder():
    """A function that lets another process claim a unit; the process ends with the test."""
    processes = []

    def hold(folder, unit):
        command = [sys.executable, "-c", HOLDER, str(folder), unit]
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.wait()


def test_a_unit_has_one_owner_until_it_gives_it_back(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("ID-Booth/ID_1") and first.take("ID-Booth/ID_1")
    assert not second.take("ID-Booth/ID_1") and second.take("ID-Booth/ID_2")
    assert set(read_batch(tmp_path)[0]) == {"ID-Booth/ID_1", "ID-Booth/ID_2"}
    first.release("ID-Booth/ID_1")
    assert second.take("ID-Booth/ID_1") and not first.held("ID-Booth/ID_1")


def test_all_or_none(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("b")
    assert not second.take_all(["a", "b", "c"]) and not second.tokens
    assert first.take_all(["a", "b", "c"])


def test_a_killed_owner_loses_its_claim_at_once_and_a_living_one_does_not(tmp_path, holder):
    owner = holder(tmp_path, "unit")
    assert not Claims(tmp_path).take("unit")
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert not read_batch(tmp_path)[0]
    assert Claims(tmp_path).take("unit")


def test_without_hard_links_or_locks_one_process_wins_all_the_same(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("utils.claims.os.link", unsupported)
    monkeypatch.setattr("utils.claims.fcntl.flock", unsupported)
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("unit") and not second.take("unit") and first.held("unit")
        first.release("unit")
        assert second.take("unit")
    assert capsys.readouterr().err.count("knows no locks") == 1
    assert not list((tmp_path / ".batch").glob("*.held"))


def test_a_process_that_this_user_cannot_see_is_judged_by_its_heartbeat(tmp_path, monkeypatch, holder):
    holder(tmp_path, "unit")
    monkeypatch.setattr("utils.claims.process_start", lambda pid: 0)  # /proc mounted with hidepid
    file = Claims(tmp_path).path("unit")
    assert not Claims(tmp_path).take("unit")
    os.utime(file, (time.time() - STALE_SECONDS - 60,) * 2)
    assert Claims(tmp_path).take("unit")


def test_a_claim_from_the_future_ends(tmp_path):
    file = Claims(tmp_path).path("unit")
    file.parent.mkdir()
    file.write_text(json.dumps({"unit": "unit", "token": "t", "host": "elsewhere", "pid": 1, "started": 5}))
    os.utime(file, (time.time() + 86400 * 365,) * 2)
    assert Claims(tmp_path).take("unit")


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "linked .batch", "linked lock"])
def test_what_is_no_claim_is_refused_by_name(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("utils.outputs.opened", [tmp_path / "out"])
    batch, mine = tmp_path / "out/.batch", tmp_path / "mine"
    mine.mkdir()
    (mine / "key").write_text("precious")
    file = Claims(tmp_path / "out").path("unit")
    if kind == "linked .batch":
        batch.parent.mkdir()
        batch.symlink_to(mine)
    else:
        batch.mkdir(parents=True)
        if kind == "folder":
            file.mkdir()
        else:
            target = mine / ("absent" if kind.startswith("dangling") else "key")
            (batch / ".lock" if kind == "linked lock" else file).symlink_to(target)
    with pytest.raises(UserError, match="is a folder|is a link|through links"):
        Claims(tmp_path / "out").take("unit")
    assert sorted(path.name for path in mine.iterdir()) == ["key"]
    assert (mine / "key").read_text() == "precious"


def test_an_owner_on_another_machine_is_judged_by_its_heartbeat(tmp_path):
    mine = Claims(tmp_path)
    file = mine.path("unit")
    file.parent.mkdir()
    file.write_text(json.dumps({"unit": "unit", "token": "t", "host": "elsewhere", "pid": 1, "started": 5}))
    assert not mine.take("unit")
    old = time.time() - module.STALE_SECONDS - 60
    os.utime(file, (old, old))
    assert mine.take("unit")


def test_the_heartbeat_keeps_a_claim_young(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    with Claims(tmp_path) as claims:
        claims.take("unit")
        os.utime(claims.path("unit"), (1, 1))
        deadline = time.monotonic() + 30
        while claims.path("unit").stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert claims.path("unit").stat().st_mtime > 2
    assert not read_batch(tmp_path)[0]


def test_a_sleeper_finds_its_claim_taken_over_and_leaves_it_alone(tmp_path):
    claims = Claims(tmp_path)
    claims.take("unit")
    claims.path("unit").write_text(json.dumps({"unit": "unit", "token": "somebody else's"}))
    assert not claims.held("unit")
    claims.release("unit")
    assert claims.path("unit").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unit": 5}', "[" * 100_000])
def test_a_damaged_claim_counts_by_its_age(tmp_path, text):
    claims = Claims(tmp_path)
    file = claims.path("unit")
    file.parent.mkdir()
    file.write_text(text)
    assert not claims.take("unit")
    os.utime(file, (1, 1))
    assert claims.take("unit")


def test_failures_are_known_to_the_run_that_had_them(tmp_path):
    Claims(tmp_path, "run 1").fail("unit", "no photo")
    assert Claims(tmp_path, "run 1").failed_now("unit") == "no photo"
    assert Claims(tmp_path, "run 2").failed_now("unit") is None
    assert read_batch(tmp_path)[1]["unit"]["reason"] == "no photo"
    Claims(tmp_path).succeed("unit")
    assert not read_batch(tmp_path)[1]


def test_claims_and_failures_name_no_machine_and_no_folder(tmp_path):
    claims = Claims(tmp_path, "run 1")
    claims.take("unit")
    claims.fail("unit", f"{tmp_path}/faces/a.png: broken")
    for file in (tmp_path / ".batch").iterdir():
        text = file.read_text()
        assert str(tmp_path) not in text and host() not in text and f'"{socket.gethostname()}' not in text
    assert claims.failed_now("unit") == "a.png: broken" and claims.held("unit")


def test_names_of_units_never_leave_the_folder(tmp_path):
    claims = Claims(tmp_path / "out")
    for unit in ("../../escape", "/etc/passwd", "a" * 5000, "ü\n"):
        assert claims.take(unit)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_process_goes_over_all_units_its_own_first(count):
    groups = [[f"{i}a", f"{i}b"] for i in range(4)]
    orders = [work_order(groups, index, count) for index in range(count)]
    for order in orders:
        assert sorted(order) == sorted(unit for group in groups for unit in group)
    firsts = [order[0] for order in orders[:4]]
    assert firsts[: min(count, 4)] == [f"{i}a" for i in range(min(count, 4))]


def test_units_held_by_others_are_tried_again_while_that_helps():
    calls = []

    def do(unit):
        calls.append(unit)
        free = unit == "free" or (unit == "dying" and calls.count(unit) == 2)
        return [{"unit": unit, "status": "done" if free else "elsewhere"}]

    rows = gather_rows(go_over(["free", "dying", "held"], do), ("unit",))
    assert {row["unit"]: row["status"] for row in rows} == {
        "free": "done",
        "dying": "done",
        "held": "elsewhere",
    }
    assert calls.count("free") == 1 and calls.count("held") == 3


@pytest.mark.parametrize("text", ["", "1", "1/1", "-1/3", "a/b", "0/0", "0/3/4", "²/3", "0/" + "9" * 50])
def test_wrong_shards(text):
    with pytest.raises(UserError, match="not of the form i/n"):
        parse_shard(text)


def test_sweeping_spares_the_living(tmp_path):
    machine = sha256_bytes(host().encode())[:8]
    for name in (
        f".a.{machine}-{os.getpid()}-{16 * '1'}.tmp",
        f".b.{machine}-4999999-{16 * '1'}.tmp",
        f".c.00000000-1-{16 * '1'}.tmp",
        f".e.{machine}-4999999-12.tmp",  # not of our form
        ".hidden",
    ):
        (tmp_path / name).write_text("x")
    (tmp_path / f".d.{machine}-4999999-{16 * '1'}.old").mkdir()
    sweep_temporaries(tmp_path)
    kept = sorted(path.name[:3] for path in tmp_path.iterdir())
    assert kept == [".a.", ".c.", ".e.", ".hi"]


def test_a_summary_sweeps_what_a_kill_left_of_the_last_one(tmp_path):
    left = tmp_path / f".summary.txt.{sha256_bytes(host().encode())[:8]}-4999999-{16 * '1'}.tmp"
    left.write_text("x")
    summarise([{"status": "done"}], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.json", "summary.txt"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on a network disk
        monkeypatch.setattr("utils.files.ctypes.CDLL", lambda *_, **__: None)
    for text in ("old", "new"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(text)
    assert (tmp_path / "folder/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
