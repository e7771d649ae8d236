"""The benchmarks measure what they say, and the published way computes what ours computes."""

from dataclasses import replace

import pytest
import torch

from benchmarks import measure, profile_step, train_step
from benchmarks.literal import LiteralStep, copy_adapter
from benchmarks.settings import PUBLISHED, make_cohort, make_fine_tuning, make_setting
from benchmarks.time_to_quality import first_time, look_steps
from utils.errors import UserError
from utils.files import read_json


def test_expected_time_weights_the_kinds():
    runs = [(1.0, "face"), (1.2, "face"), (1.1, "face"), (0.2, "no face")]
    assert measure.describe_runs(runs)["seconds"] == pytest.approx(0.75 * 1.1 + 0.25 * 0.2)
    shares = {"face": 0.7, "no face": 0.3}
    figures = measure.describe_runs(runs, shares)
    assert figures["seconds"] == pytest.approx(0.7 * 1.1 + 0.3 * 0.2)
    assert figures["low"] == pytest.approx(0.7 * 1.05 + 0.3 * 0.2) and figures["runs"] == 4
    with pytest.raises(ValueError, match="no run of some kind"):
        measure.describe_runs(runs[:3], shares)


def test_ways_take_turns_at_being_first():
    order = []
    ways = {name: lambda number, name=name: order.append((number, name)) for name in "abc"}
    runs = measure.alternate(ways, rounds=3, warmup=0)
    assert [name for _, name in order] == list("abcbcacab")
    assert [number for number, _ in order] == [0] * 3 + [1] * 3 + [2] * 3
    assert all(len(run) == 3 and run[0][0] >= 0 for run in runs.values())


def test_peak_memory_sees_what_came_and_went():
    with measure.PeakMemory() as peak:
        torch.ones(50 * 2**18).sum()
    assert 45 < peak.mib < 120


def test_the_profile_names_the_parts_of_a_step(tmp_path):
    config = make_setting(tmp_path, "mini", people=1, photos_each=2, class_images=2)
    fine_tuning, photos = make_fine_tuning(config, "mini")
    fine_tuning.models.set_cohort_size(1)
    cohort = make_cohort(fine_tuning, photos, train_step.EvenSteps)
    profile_step.label_parts(cohort)
    rows = profile_step.profile_steps(cohort, points=(50, 100), steps=1)
    shares = {row["what"]: row["share"] for row in rows}
    parts = ("UNet forward", "decoder forward", "recogniser forward", "backward and the rest")
    assert all(0 < shares[part] < 1 for part in parts) and sum(shares[part] for part in parts) <= 1


def test_points_of_the_curve():
    assert look_steps(10, 4) == {2, 5, 8, 10}
    curve = [(1.0, 0.2), (2.0, 0.5), (3.0, 0.6)]
    assert first_time(curve, 0.5) == 2.0 and first_time(curve, 0.9) is None


def test_the_published_recipe_has_the_same_losses_with_and_without_caches(tmp_path):
    options = train_step.StepBenchmark(rounds=4)
    config = make_setting(tmp_path, "mini", people=1, photos_each=2, class_images=2)
    ways = train_step.build_ways(options, replace(config, learning_rate=0.0))
    losses = {name: [ways[name](number) for number in range(3)] for name in ("literal", "cached")}
    differences = train_step.loss_differences(losses["literal"], losses["cached"])
    assert max(differences.values()) < 1e-3
    fast, cached = ways["fast"](0), ways["cached"](0)
    assert fast[:2] == pytest.approx(cached[:2], rel=1e-5)
    assert ways["floor"](0) is None


@pytest.mark.parametrize("saturated", ["clamp", "straight-through"])
def test_the_published_recipe_has_the_gradient_of_the_official_step(tmp_path, monkeypatch, saturated):
    """The clamp included: with saturated pixels that keep their gradient it is another one."""
    config = make_setting(tmp_path, "mini", people=1, photos_each=2, class_images=2)
    config = replace(config, **PUBLISHED | {"saturated_pixels": saturated})
    fine_tuning, photos = make_fine_tuning(config, "mini")
    models = fine_tuning.models
    models.set_cohort_size(1)
    # Not 300: there a unit of the recogniser lies at its kink, and noise of 1e-6 in the decoded picture moves
    # our own gradient by 2.7e-3 or not at all (at 400 by 2e-6).
    monkeypatch.setattr(train_step.EvenSteps, "points", (400, 400))
    cohort = make_cohort(fine_tuning, photos, train_step.EvenSteps)
    literal = LiteralStep(fine_tuning, photos[0])
    train_step.fill_adapters(models.adapters)
    copy_adapter(literal.unet, models.lora["unet"])
    gradients = {}

    def keep(parameters, _):
        gradients.update({id(weight): weight.grad.flatten().clone() for weight in parameters})

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    literal.step(cohort.draw(0))
    monkeypatch.setattr(cohort, "update", lambda: None)
    assert cohort.step(0)[0][0, 2] > 0
    layers = [literal.unet.get_submodule(name) for name in models.lora["unet"]]
    pairs = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
    theirs = torch.cat([gradients[id(weight)] for pair in pairs for weight in pair])
    ours = models.adapters.weights.grad[0]
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    assert difference < 1e-4 if saturated == "clamp" else difference > 1e-3


def test_half_precision_takes_the_way_that_a_card_takes(tmp_path):
    options = train_step.StepBenchmark(geometry="tiny", precision="bf16", rounds=4)
    config = make_setting(tmp_path, "tiny", precision="bf16")
    ways = train_step.build_ways(options, replace(config, learning_rate=0.0))
    literal, cached = ways["literal"](0), ways["cached"](0)
    assert literal == pytest.approx(cached, rel=0.02)
    assert not (tmp_path / "base").exists()


def test_a_device_that_is_not_there_is_refused_and_the_one_that_is_used_is_named(tmp_path, monkeypatch):
    config = make_setting(tmp_path, "tiny", device="cuda", precision="bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cuda asked for"):
        make_fine_tuning(config, "tiny")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some Card-1")
    measure.report("step", {}, [{"a": 1}], tmp_path, "cuda")
    measure.report("step", {}, [{"a": 1}], tmp_path)
    named = {path.name: read_json(path)["machine"]["device"] for path in tmp_path.glob("step*.json")}
    assert named == {"step_some_card_1.json": "Some Card-1", "step.json": "cpu"}


def test_runs_of_a_block_are_timed_together():
    numbers = []
    runs = measure.alternate({"a": numbers.append}, rounds=2, warmup=1, block=3)
    assert numbers == [0, 1, 2, 0, 1, 2, 3, 4, 5] and len(runs["a"]) == 2
