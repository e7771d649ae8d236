"""Evaluations at their edges: one image each, copies, damaged pictures, NaN features, no face at all."""

import numpy as np
import pytest

from evaluation import evaluate
from tests.evaluation_world import BLACK, Page, config_for, make_world, paint, write_config
from utils.files import read_json

# No weights and no attributes.csv in these tests.
NEVER_HERE = ["diversity on dinov2", "prompt adherence (CLIP score)", "groups of people"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


def tables_of(config):
    """{table name: Table}, and the list of what was not measured."""
    _, sections, not_measured = evaluate.evaluate(config)
    return {table.name: table for section in sections for table in section.tables}, not_measured


def test_one_image_each_leaves_out_what_needs_two(world):
    for path in (world / "sets").rglob("*.png"):
        if path.stem != "000":
            path.unlink()
    tables, not_measured = tables_of(config_for(world))
    vs_samples, vs_real = tables["identity_vs_samples"], tables["identity_vs_real"]
    assert [row["method"] for row in vs_samples.rows] == ["real photos"]
    assert "ID-Booth: no genuine pair" in vs_samples.note
    assert [row["method"] for row in vs_real.rows] == ["NonFineTuned", "ID-Booth"]
    diversity = {row["method"]: row for row in tables["diversity_pixels"].rows}
    assert "vendi" not in diversity["ID-Booth"] and diversity["ID-Booth"]["fd"].value > 0
    assert [what for what, _ in not_measured] == NEVER_HERE


def test_samples_that_are_the_real_photos(world):
    for path in (world / "faces").rglob("*.png"):
        person, name = path.parts[-3], path.name
        target = world / "sets" / "one" / "ID-Booth" / person / name
        target.write_bytes(path.read_bytes())
    config = config_for(world, methods=("ID-Booth",), encoders=("pixels",), nearest_neighbours=1)
    tables, _ = tables_of(config)
    row = {row["method"]: row for row in tables["diversity_pixels"].rows}["ID-Booth"]
    assert row["fd"].value == pytest.approx(0, abs=1e-6) and row["kd"].value <= 0
    assert row["precision"] == row["recall"] == row["coverage"] == 1.0 and row["authentic"] == 0.0


def test_a_damaged_picture_is_named_and_the_rest_is_measured(world, capsys):
    (world / "sets" / "one" / "NonFineTuned" / "ID_2" / "000.png").write_bytes(b"no picture")
    write_config(world / "evaluate_test.py", config_for(world))
    assert evaluate.main(["--config", str(world / "evaluate_test.py")]) == 0
    results = read_json(world / "out/results.json")
    tables = {table["name"]: table["rows"] for table in results["tables"]}
    rows = {row["method"]: row for row in tables["faces"]}
    assert rows["NonFineTuned"]["unreadable"] == 1 and rows["NonFineTuned"]["images"] == 9
    assert rows["NonFineTuned"]["share"] == 5 / 8  # of those that were looked at
    images = {row["method"]: row["images"] for row in tables["attributes"]}
    assert images == {"NonFineTuned": 8, "ID-Booth": 9}
    assert {row["method"]: row["images"] for row in tables["diversity_pixels"]}["NonFineTuned"] == 8
    assert [entry["what"] for entry in results["not_measured"]] == [*NEVER_HERE, "NonFineTuned"]
    shown, page = capsys.readouterr(), Page((world / "out/report.html").read_text()).text
    assert "ID_2/000.png: damaged image" in page
    assert "not measured: NonFineTuned (ID_2/000.png: damaged image)" in shown.err
    # Methods of other samples are no rivals.
    message = "so no method is marked as the better: NonFineTuned has 8 of 9 samples (ID_2: 2 of 3)."
    assert (
        message in shown.err
        and " *" not in shown.out
        and message in page.split("Samples beside the photos")[0]
    )
    assert not any(names for table in results["tables"] for names in table["best"].values())


def test_a_plan_names_who_lacks_samples(world, capsys):
    write_config(world / "evaluate_test.py", config_for(world))
    for gone, has in {
        "ID_2/*": "6 of 9 samples (ID_2: 0 of 3)",
        "ID_*/00[01]*": "2 of 9 samples (ID_",
    }.items():
        for path in (world / "sets/one/ID-Booth").glob(gone):
            path.unlink()
        assert evaluate.main(["--config", str(world / "evaluate_test.py"), "--dry-run"]) == 0
        assert f"marked as the better: ID-Booth has {has}" in capsys.readouterr().out


def test_features_that_are_not_numbers_cost_their_own_section_only(world, monkeypatch):
    broken = lambda self, images: np.full((len(images), 4), np.nan, np.float32)  # noqa: E731
    monkeypatch.setattr("evaluation.encoders.PixelEncoder.__call__", broken)
    tables, not_measured = tables_of(config_for(world, encoders=("pixels", "attributes")))
    assert "NaN or infinite in 12 rows" in dict(not_measured)["diversity on pixels"]
    assert "diversity_attributes" in tables and "diversity_pixels" not in tables


def test_a_method_without_any_face_has_no_figures_and_disturbs_nobody(world):
    paint(world / "sets" / "one" / "Nothing" / "ID_1", [BLACK] * 3)
    config = config_for(world, encoders=("recogniser",), nearest_neighbours=1)
    tables, not_measured = tables_of(config)
    assert {row["method"]: row["share"].value for row in tables["faces"].rows}["Nothing"] == 0.0
    assert "Nothing: no face found" in tables["identity_vs_real"].note
    assert [row["method"] for row in tables["identity_vs_real"].rows] == ["NonFineTuned", "ID-Booth"]
    for name in ("identity_similarity", "quality", "pose", "diversity_recogniser"):
        rows = {row["method"]: row for row in tables[name].rows}
        figures = [value for value in rows["Nothing"].values() if not isinstance(value, str)]
        assert all(value is None or value == 0 for value in figures) and "ID-Booth" in rows
    assert "prompt adherence (CLIP score)" in dict(not_measured)
