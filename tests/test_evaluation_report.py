"""The whole evaluation on painted pictures: report, tables, refusals; and every notebook, cell by cell."""

import base64
import csv
import html
import json
import re

import numpy as np
import pytest

from evaluation import evaluate, plots
from evaluation.error_rates import ScoreSample
from evaluation.tables import Column, Table, Value
from fr_training.results import results_section
from id_booth.sampling.provenance import COMPOSITE_SOURCE_TYPE, DIGITAL_SOURCE_TYPE, png_chunks, read_record
from tests.evaluation_world import BLACK, EVIL, Page, config_for, make_world, paint, write_config
from utils.errors import UserError
from utils.images import load_image, save_png
from utils.text_tables import visible

FIGURES = {"auc": 0.9, "eer": 0.1, "tar@far=1e-3": 0.5, "tar@far=1e-4": 0.3}
FR_RESULTS = [
    {"row": row, "seed": f"seed_{seed}", "benchmark": "lfw", "accuracy": base + 0.01 * seed, **FIGURES}
    for row, base in (("real", 0.8), ("real+ID-Booth_21", 0.85), ("real+oracle_21", 0.95))
    for seed in (0, 1)
]


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


def read_rows(path):
    """{method: row} of a table's CSV file."""
    with open(path, encoding="utf-8", newline="") as stream:
        return {row["method"]: row for row in csv.DictReader(stream)}


def test_one_command_gives_the_report_and_its_tables(world):
    path, sections, not_measured = evaluate.evaluate(config_for(world))
    text = path.read_text()
    page = Page(text)
    assert [what for what, _ in not_measured] == [
        "diversity on dinov2",
        "prompt adherence (CLIP score)",
        "groups of people",
    ]
    assert "script" not in page.tags and EVIL in page.text and EVIL not in text
    outside = [url for url in page.urls if not url.startswith(("data:image/jpeg;base64,", "#"))]
    assert outside[0] == "gallery.html" and all((path.parent / url).is_file() for url in outside)
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
    assert not re.search(r"url\((?!#)|@import", text)
    captions = [caption for section in sections for caption, _ in section.figures]
    assert sum("(CMC)" in caption for caption in captions) == 2  # of each judge, against the photos
    assert page.tags.count("img") == 3 * 3 * 2  # people, sets, pictures of each
    assert str(world) not in text  # folders of this machine stay here
    names = [table.name for section in sections for table in section.tables]
    assert len(names) == len(set(names))
    for name in names:
        assert all((world / "out" / "tables" / f"{name}.{s}").is_file() for s in ("csv", "json", "md", "tex"))
    results = json.loads((world / "out" / "results.json").read_text())
    assert {entry["what"] for entry in results["not_measured"]} == {what for what, _ in not_measured}
    assert results["run"]["config"]["seed"] == 0 and "torch" in results["run"]["packages"]


def test_figures_of_the_tables(world):
    _, sections, _ = evaluate.evaluate(config_for(world))
    tables = {table.name: table for section in sections for table in section.tables}
    faces = {row["method"]: row["share"].value for row in tables["faces"].rows}
    assert faces == {"real photos": 1.0, "NonFineTuned": 2 / 3, "ID-Booth": 1.0}
    real = {row["method"]: row for row in tables["identity_vs_real"].rows}
    assert real["ID-Booth"]["eer"].value == 0.0 and real["ID-Booth"]["genuine"].value > 0.99
    assert real["NonFineTuned"]["eer"].value > 0.2
    best = tables["identity_vs_real"].to_json()["best"]
    assert best["eer"] == ["ID-Booth"] and best["genuine"] == ["ID-Booth"]
    assert tables["identity_similarity"].best["similarity"] == {2}  # never the real photos
    assert tables["attributes"].rows[0]["gender"].value in (0.0, 1.0)
    first = tables["overview"]
    assert [row["method"] for row in first.rows] == ["real photos", "NonFineTuned", "ID-Booth"]
    booth, base = first.rows[2], first.rows[1]
    assert booth["faces/share"].value == 1.0 and booth["identity_vs_real/eer"].value == 0.0
    assert base["diversity_pixels/vendi"].value > 0 and "diversity_attributes/vendi" not in base
    assert first.best["identity_vs_real/eer"] == {2} and "on 16 x 16 pixels" in first.note
    authentic = {row["method"]: row.get("authentic") for row in tables["diversity_pixels"].rows}
    assert authentic["ID-Booth"] == 0.0 and authentic["real photos"] is None


def give_records(world, identity=None):
    """Samples as our own script writes them; ``identity`` for one that lies in the wrong folder."""
    for path in (world / "sets/one").rglob("*.png"):
        method, person = path.parts[-3:-1]
        record = {"identity": identity or person, "method": method, "prompt": "p", "code_version": "1"}
        record["digital_source_type"] = DIGITAL_SOURCE_TYPE
        save_png(path, load_image(path), png_chunks(record))


def test_thumbnails_are_marked_where_their_pictures_are(world):
    give_records(world)
    path, *_ = evaluate.evaluate(config_for(world, encoders=("pixels",)))
    pictures = [
        base64.b64decode(url.partition(",")[2]) for url in Page(path.read_text()).urls if "base64" in url
    ]
    marked = [DIGITAL_SOURCE_TYPE.encode() in picture for picture in pictures]
    assert marked.count(True) == 2 * 3 * 2 and marked.count(False) == 3 * 2  # methods, and the real photos
    for picture, mark in zip(pictures, marked, strict=True):
        record = read_record_of(picture, world)
        assert bool(record) == mark and COMPOSITE_SOURCE_TYPE.encode() not in picture
        assert not mark or record["method"] in ("ID-Booth", "NonFineTuned")


def read_record_of(picture, world):
    (world / "thumbnail.jpg").write_bytes(picture)
    return read_record(world / "thumbnail.jpg")


def test_a_sample_of_somebody_else_is_refused(world):
    give_records(world, identity="ID_9")
    with pytest.raises(UserError, match="000.png: is of 'ID_9', in the folder of 'ID_1'; move it"):
        evaluate.evaluate(config_for(world))


def test_the_report_names_no_place_of_the_machine(world):
    (world / "faces/ID_1/images/broken.png").write_bytes(b"no picture")
    secret = "hf_" + "s" * 34
    changes = {"clip_weights": str(world / "no/such/clip"), "title": f"Faces of {world}/lab with {secret}"}
    evaluate.evaluate(
        config_for(world, **{k: v for k, v in changes.items() if hasattr(config_for(world), k)})
    )
    for file in (world / "out").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(world).encode() not in content and secret.encode() not in content, file
    assert "broken.png" in (world / "out/report.html").read_text()


def test_same_seed_same_tables_and_methods_do_not_disturb_each_other(world):
    evaluate.evaluate(config_for(world))
    first = read_rows(world / "out" / "tables" / "identity_vs_real.csv")
    evaluate.evaluate(config_for(world, output_folder=str(world / "again"), methods=("ID-Booth",)))
    alone = read_rows(world / "again" / "tables" / "identity_vs_real.csv")
    assert list(alone) == ["ID-Booth"] and alone["ID-Booth"]["eer"] == "0.0"
    assert alone["ID-Booth"].items() <= first["ID-Booth"].items()


def test_one_identity_and_one_image_each_are_named_not_zero(world):
    path, sections, _ = evaluate.evaluate(config_for(world, identities=("ID_1",)))
    tables = {table.name: table for section in sections for table in section.tables}
    assert tables["identity_vs_real"].rows == [] and "no impostor pair" in tables["identity_vs_real"].note
    assert "two identities" in path.read_text()
    assert np.isnan(tables["identity_similarity"].rows[1]["similarity"].low)


def test_no_face_in_real_photos_is_refused(world):
    for path in (world / "faces").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="no images"):
        evaluate.evaluate(config_for(world))
    paint(world / "black" / "ID_1" / "images", [BLACK])
    with pytest.raises(UserError, match="no face found in any real photo"):
        evaluate.evaluate(config_for(world, real_folder=str(world / "black")))


def test_command_line(world, capsys):
    file = world / "evaluate_test.py"
    write_config(file, config_for(world))
    assert evaluate.main(["--config", str(file), "--dry-run"]) == 0
    assert "ID-Booth: 9 images of 3 identities" in capsys.readouterr().out
    assert not (world / "out").exists()
    assert evaluate.main(["--config", str(file), "--encoders", "pixels"]) == 0
    assert "report.html" in capsys.readouterr().out
    with pytest.raises(UserError, match="det_size"):
        evaluate.main(["--config", str(file), "--det-size", "100"])


def test_recognition_results_as_a_section(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(FR_RESULTS))
    section = results_section(tmp_path)
    table = section.tables[0]
    assert table.rows[0]["lfw/accuracy"].value == pytest.approx(0.805)
    assert table.rows[0]["lfw/accuracy"].spread == pytest.approx(0.01 / 2**0.5)
    assert table.best["lfw/accuracy"] == {1}  # never the oracle
    assert section.figures[0][0].startswith("lfw") and "svg" in Page(section._repr_html_()).tags
    with pytest.raises(UserError, match="fr_training.study"):
        results_section(tmp_path / "nowhere")


def example_table():
    rows = [
        {"method": "real photos", "x": Value(0.9), "n": 3},
        {"method": "A & B_1", "x": Value(0.5, 0.4, 0.6, spread=0.1), "n": 1200},
        {"method": EVIL, "x": Value(float("nan")), "n": None},
        {"method": "C", "x": Value(0.25), "n": 5},
    ]
    value = Column("x", "value", "high", digits=2)
    columns = [Column("method", "method"), value, Column("n", "count", "low")]
    return Table("example", "Title <i>", columns, rows, reference_rows=("real photos",))


def test_table_in_four_forms():
    table = example_table()
    assert table.best == {"x": {1}, "n": {3}}
    page = table._repr_html_()
    assert "<b>0.50 ± 0.10</b><small>[0.40, 0.60]</small>" in page
    assert "<script>" not in page and "<i>" not in page
    assert table.to_csv().splitlines()[:3] == [
        "method,x,n,x_low,x_high,x_spread",
        "real photos,0.9,3,,,",
        "A & B_1,0.5,1200,0.4,0.6,0.1",
    ]
    assert table.to_json()["rows"][2]["x"] is None and table.to_json()["best"]["x"] == ["A & B_1"]
    assert r"A \& B\_1 & \textbf{0.50 $\pm$ 0.10 [0.40, 0.60]} & 1,200 \\" in table.to_latex()
    assert r"| A &amp; B\_1 | **0.50 ± 0.10 [0.40, 0.60]** | 1,200 |" in table.to_markdown()
    assert f"{'A & B_1'.ljust(len(EVIL))}  0.50 ± 0.10 [0.40, 0.60] *  1,200" in table.to_text()
    assert Table("empty", "", table.columns, []).to_csv() == "method,x,n\n"


def test_equal_values_have_no_best():
    rows = [{"method": name, "x": 0.5} for name in ("A", "B")]
    assert Table("t", "t", [Column("method", "m"), Column("x", "x", "high")], rows).best == {"x": set()}


@pytest.mark.parametrize(
    "name", [r"$\frac{x$", "$x$", "$$", "_hidden", "a\x1b[2J\n", '<b>&"', r"\$5", "李 \u202e"]
)
def test_a_name_is_no_formula_in_a_plot(name):
    """matplotlib would set it as one, end with a parse error, or leave it out of the legend."""
    score = tuple(ScoreSample(np.linspace(*ends, 50)) for ends in ((0.4, 0.9), (-0.2, 0.5)))
    shown = html.escape(visible(name), quote=False)
    for svg in (
        plots.score_histograms({name: score}, "one"),
        plots.det_curves({name: score, "other": score}, "two"),
        plots.match_curves({name: np.array([1, 3]), "other": np.array([1])}, "five"),
        plots.densities({name: np.eye(3), "other": np.eye(3)}, ["a", name, "c"], "three", "mm"),
        plots.dots({name: {"ID_1": 0.5}}, "four", name),
    ):
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert any(shown in text for text in texts), texts
        assert "<b>" not in svg


def test_plots_are_inline_and_follow_the_text_colour():
    scores = {"<A>": tuple(ScoreSample(np.linspace(*ends, 50)) for ends in ((0.4, 0.9), (-0.2, 0.5)))}
    for svg in (
        plots.score_histograms(scores, "one"),
        plots.det_curves(scores, "two"),
        plots.match_curves({"<A>": np.array([1, 1, 4])}, "five"),
        plots.densities({"<A>": np.eye(3)}, ["a", "b", "c"], "three", ""),
        plots.densities({"one value": np.ones((2, 1))}, ["a"], "four", ""),
    ):
        assert svg.startswith('<svg role="img"') and "<metadata>" not in svg and "#000000" not in svg
        assert "currentColor" in svg and "<A>" not in svg
        fetched = re.findall(r'(?:href|src)="([^"]*)"', svg)
        assert all(link.startswith("#") for link in fetched)
