"""benchmarks.gpu at a tiny size on the CPU, so that none of it meets a card for the first time."""

import time

import pytest
import tyro

from benchmarks.gpu import card, driver, scripts, steps
from benchmarks.gpu.results import Record, ceiling, read_results, report


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """A function that gives a Run of a stage; photos are made once."""
    output, folder = tmp_path_factory.mktemp("gpu"), tmp_path_factory.mktemp("work")

    def make(stage):
        return driver.Run("cpu", "tiny", output, folder, Record(output, stage))

    driver.prepare(make("prepare"))
    return make


def rows(run):
    return [row for row in read_results(run.output) if row["stage"] == run.record.stage]


def test_card_and_ceilings(make_run):
    card.describe_card(make_run("card"))
    assert {"device", "python", "packages"} <= {row["what"] for row in rows(make_run("card"))}
    card.measure_ceilings(make_run("ceilings"))
    assert ceiling(make_run("").output) > 1e8


def test_steps_of_all_ways(make_run):
    run = make_run("step")
    steps.measure_steps(run)
    found = {(row["way"], row["mode"], row["people"]) for row in rows(run) if "way" in row}
    assert found == {
        *(("published", "eager", 1), ("published, cached", "eager", 1)),
        *(("fast", mode, people) for mode in ("eager", "graph") for people in (1, 4)),
    }
    assert all(row["ms_per_person"] > 0 for row in rows(run) if "way" in row)
    steps.automatic_cohort(make_run("memory"))
    assert rows(make_run("memory"))[-1]["finished"] == "3 of 3"


def test_images_photos_and_crops(make_run):
    scripts.measure_sampling(make_run("sampling"))
    ways = [row["way"] for row in rows(make_run("sampling"))]
    assert ways == ["published", "published", "ours, LoRA auto", "ours, LoRA fused", "published"]
    scripts.measure_extraction(make_run("extraction"))
    assert {row["detector"] for row in rows(make_run("extraction"))} == {"CPUExecutionProvider"}
    scripts.measure_recogniser(make_run("recogniser"))
    assert len(rows(make_run("recogniser"))) == 3


def test_operations_are_those_of_stable_diffusion():
    counted = card.Operations("sd21")
    giga = [round(value / 2e9, 1) for value in (counted.unet, counted.decode(64, 64), counted.recogniser)]
    assert giga == [402.1, 1257.3, 12.1]


def works(run):
    run.record(what="a")


def fails(run):
    raise RuntimeError("no such kernel")


def hangs(run):
    run.record(what="before it hung")
    time.sleep(60)


def test_what_fails_or_hangs_costs_itself_alone(tmp_path, monkeypatch):
    stages = {"fails": (fails, 20), "hangs": (hangs, 5.2), "works": (works, 20), "late": (works, 20)}
    monkeypatch.setattr(driver, "STAGES", stages)
    monkeypatch.setattr(driver, "GRACE", 0)
    options = driver.GpuBenchmark("cpu", "tiny", output=tmp_path)
    for name in stages:
        deadline = time.monotonic() + (3 if name == "late" else 100)
        driver.stage(name, options, tmp_path, deadline)
    results = read_results(tmp_path)
    status = {row["stage"]: row["status"] for row in results if "status" in row}
    assert status == {
        "fails": "failed, exit code 1",
        "hangs": "stopped after 5 s",
        "works": "done",
        "late": "left out: no time",
    }
    assert [row["what"] for row in results if "what" in row] == ["before it hung", "a"]
    assert "no such kernel" in (tmp_path / "stages.log").read_text()


def test_the_table_is_of_what_there_is(tmp_path, capsys):
    Record(tmp_path, "step")(way="published", people=1, ms_per_person=200.0)
    Record(tmp_path, "step")(way="fast", people=8, ms_per_person=20.0, status=None)
    with open(tmp_path / "gpu.jsonl", "a") as stream:
        stream.write('{"stage": "torn')
    report(tmp_path)
    assert "| fast | 8 | 20 | 10.00 |" in capsys.readouterr().out.replace(" None |", "")
    assert (tmp_path / "summary.md").is_file()


def test_the_command_line_is_read(monkeypatch):
    assert tyro.cli(driver.GpuBenchmark, args=["--minutes", "3", "--stages", "card", "step"]).minutes == 3
