"""Losses and weights against numbers computed by hand; the table, and a further objective in it."""

import json
import math
import shutil

import pytest
import torch

from configs.train_config import TrainConfig
from evaluation import evaluate
from id_booth.objectives import (
    OBJECTIVES,
    Objective,
    check_objectives,
    denoising_loss,
    identity_loss,
    timestep_weight,
    triplet_identity_loss,
    with_objectives,
)
from tests import miniature_runs as runs
from utils.errors import UserError

# Unit vectors at 0, 60, 90 and 180 degrees, with lengths that must not matter.
AT = {
    angle: torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]]) * (1 + angle)
    for angle in (0, 60, 90, 180)
}


def test_identity_loss_is_one_minus_cosine():
    loss = [identity_loss(AT[0], AT[angle]).item() for angle in (0, 60, 90, 180)]
    assert loss == pytest.approx([0, 0.5, 1, 2], abs=1e-6)


@pytest.mark.parametrize(
    "positive, negative, margin, expected",
    [
        (60, 90, 1.0, 0.5),
        (90, 60, 1.0, 1.5),
        (0, 90, 1.0, 0.0),
        (0, 180, 1.0, 0.0),
        (60, 90, 0.2, 0.0),
        (90, 60, 0.2, 0.7),
    ],
)
def test_triplet_identity_loss(positive, negative, margin, expected):
    loss = triplet_identity_loss(AT[0], AT[positive], AT[negative], margin)
    assert loss.shape == (1,) and loss.item() == pytest.approx(expected, abs=1e-6)


def test_triplet_with_margin_one_is_identity_loss_plus_repulsion():
    generator = torch.Generator().manual_seed(0)
    a, p, n = torch.randn(3, 50, 512, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(a, n)
    expected = (identity_loss(a, p) + cosine).clamp(min=0)
    assert torch.allclose(triplet_identity_loss(a, p, n), expected, atol=1e-6)


def test_only_the_anchor_side_is_pulled():
    a = torch.tensor([[1.0, 0.2]], requires_grad=True)
    triplet_identity_loss(a, AT[90], AT[0]).sum().backward()
    # Down the gradient the anchor turns away from the negative (x axis) towards the positive (y axis).
    assert -a.grad[0, 0] < 0 < -a.grad[0, 1]


def test_timestep_weight():
    t = torch.tensor([0, 250, 500, 999])
    assert timestep_weight(t, 1000).tolist() == pytest.approx([1, 0.5625, 0.25, 1e-6], rel=1e-4)
    assert timestep_weight(t, 1000, "linear").tolist() == pytest.approx([1, 0.75, 0.5, 1e-3], rel=1e-4)
    assert timestep_weight(t, 1000, "none").tolist() == [1, 1, 1, 1]


def test_denoising_loss_is_per_item():
    output = torch.zeros(2, 1, 2, 2)
    target = torch.stack([torch.full((1, 2, 2), 2.0), torch.tensor([[[1.0, 0], [0, 1]]])])
    assert denoising_loss(output, target).tolist() == [4.0, 0.5]
    assert denoising_loss(output, target, torch.tensor([0.5, 2.0])).tolist() == [2.0, 1.0]


def test_the_table_says_what_an_objective_needs():
    needs = {name: (one.needs_faces, one.needs_negatives) for name, one in OBJECTIVES.items()}
    assert needs == {"DreamBooth": (False, False), "PortraitBooth": (True, False), "ID-Booth": (True, True)}
    a, p, n = AT[0], AT[60], AT[90]
    assert OBJECTIVES["PortraitBooth"].identity_values(a, p, None, 1.0).item() == pytest.approx(0.5)
    assert OBJECTIVES["ID-Booth"].identity_values(a, p, n, 0.7).item() == pytest.approx(0.2)


def test_objectives_are_named_or_all():
    assert check_objectives(()) == tuple(OBJECTIVES) and check_objectives(["ID-Booth"]) == ("ID-Booth",)
    with pytest.raises(UserError, match="no 'IDBooth'; did you mean ID-Booth.*PortraitBooth, ID-Booth"):
        check_objectives(["IDBooth"])
    alone = {"with_prior_preservation": False, "objectives": ("ID-Booth",)}
    with pytest.raises(UserError, match="negatives_folder: ID-Booth"):
        with_objectives(TrainConfig(**alone))
    assert with_objectives(TrainConfig(**alone, negatives_folder="tests")).objectives == ("ID-Booth",)


def make_term(code):
    """The function ``term`` that some code defines, with its source where inspect looks for it."""
    import linecache

    name = f"<{hash(code)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    scope = {"__name__": "toy"}
    exec(compile(code, name, "exec"), scope)
    return scope["term"]


def test_a_digest_follows_the_formula_and_not_its_remarks():
    plain = "def half(x):\n    return x / 2\n\ndef term(a, p):\n    return half(1 - (a * p).sum(1))\n"
    told = plain.replace("(a, p):\n", '(a, p):\n    """What it is."""\n    # why\n')
    digests = [Objective(make_term(code)).digest() for code in (plain, told, plain.replace("x / 2", "x / 3"))]
    assert digests[0] == digests[1] != digests[2]
    assert len({one.digest() for one in OBJECTIVES.values()}) == 3


def toy_term(anchor, positive):
    """Squared distance of unit embeddings, halved."""
    unit = torch.nn.functional.normalize
    return (unit(anchor) - unit(positive)).square().sum(1) / 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos, networks and class images of a few thousand weights, embedded."""
    runs.preload()
    world = runs.make_world(tmp_path_factory.mktemp("toy"))
    runs.embed_world(world)
    return world


def test_a_toy_objective_is_trained_sampled_and_reported(world, tmp_path, monkeypatch):
    """Registered from outside, with no other edit and without being named on any command line."""
    monkeypatch.setitem(OBJECTIVES, "Toy", Objective(toy_term, needs_faces=True))
    people = ("--identities", "ID_1", "ID_2")
    assert runs.train(world, world / "loras", *people, "--objectives", "--max-train-steps", 1) == 0
    rows = json.loads((world / "loras/summary.json").read_text())
    assert [row["objective"] for row in rows if row["identity"] == "ID_1"] == list(OBJECTIVES)
    log = json.loads((world / "loras/Toy/ID_1/train_log.jsonl").read_text().splitlines()[-1])
    assert log["loss"]["ID"] >= 0

    assert runs.sample(world, tmp_path / "samples", *people, "--methods") == 0
    rows = json.loads((tmp_path / "samples/set/summary.json").read_text())
    assert {row["method"] for row in rows} == {"NonFineTuned", *OBJECTIVES}

    options = {
        "samples-folder": tmp_path / "samples/set",
        "real-folder": world / "faces",
        "device": "cpu",
        "pack": world / "pack",
        "encoders": "pixels",
        "output-folder": tmp_path / "report",
        "cache-folder": None,
        "quality-weights": None,
        "attributes-file": None,
    }
    assert evaluate.main(runs.command("configs/evaluate_mini.py", options)) == 0
    assert "Toy" in (tmp_path / "report/report.html").read_text()
    overview = json.loads((tmp_path / "report/tables/overview.json").read_text())
    assert "Toy" in [row["method"] for row in overview["rows"]]


def test_an_unknown_objective_is_refused_everywhere(world, tmp_path):
    known = "DreamBooth, PortraitBooth, ID-Booth"
    with pytest.raises(UserError, match=f"no 'Nobody'.*{known}"):
        runs.train(world, tmp_path, "--objectives", "Nobody")
    with pytest.raises(UserError, match=f"no 'Nobody'.*{known}"):
        runs.sample(world, tmp_path, "--methods", "Nobody")
    shutil.copytree(world / "faces/ID_1/images", tmp_path / "samples/ID-Booth/ID_1")
    options = {"samples-folder": tmp_path / "samples", "real-folder": world / "faces", "methods": "Nobody"}
    options |= {"output-folder": tmp_path / "report", "cache-folder": None}
    with pytest.raises(UserError, match="Nobody.*ID-Booth"):
        evaluate.main(runs.command("configs/evaluate_mini.py", options))


def test_a_changed_formula_is_not_done_before(world, tmp_path, monkeypatch):
    options = ("--identities", "ID_1", "--objectives", "PortraitBooth", "--max-train-steps", 1)
    assert runs.train(world, tmp_path, *options) == 0
    assert runs.train(world, tmp_path, *options) == 0
    monkeypatch.setitem(OBJECTIVES, "PortraitBooth", Objective(toy_term, needs_faces=True))
    assert runs.train(world, tmp_path, *options) == 1
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    assert row["status"] == "failed" and "identity term has changed" in row["detail"]
