"""The table of samples: against a few lines of numpy on real photos, its files, its thresholds, damage."""

import csv
import json
import shutil

import numpy as np
import pytest

from arcface_files.faces import FaceAnalyser, align
from configs.evaluation_config import EvaluationConfig
from evaluation import evaluate
from evaluation.bootstrap import unpaired_difference, verification_replicates
from evaluation.comparison import open_comparison
from evaluation.image_sets import REAL
from evaluation.measure_people import group_section
from evaluation.measure_samples import measure_samples
from evaluation.measurements import read_measurements, threshold_at_fmr, write_measurements
from tests.evaluation_world import config_for, make_world, paint, shades
from utils.errors import UserError
from utils.files import sha256_file
from utils.images import load_image, save_png

ATT, LONDON = ("s1", "s5", "s9", "s26"), ("001", "009", "017")


@pytest.fixture(scope="module")
def photos(tmp_path_factory, fixtures_dir):
    """Some AT&T and neutral London photos as the real ones, others as samples; s1 has a copy, and twins."""
    root = tmp_path_factory.mktemp("photos")
    chosen = {(name, "png"): ([1, 2, 3], [4, 5, 6]) for name in ATT}
    chosen |= {(name, "jpg"): (["neutral"], ["smiling"]) for name in LONDON}
    for (name, form), (real, samples) in chosen.items():
        source = fixtures_dir / "images" / ("att_faces" if form == "png" else "london") / name
        for folder, stems in (
            (root / "faces" / name / "images", real),
            (root / "sets/one/method" / name, samples),
        ):
            folder.mkdir(parents=True)
            for stem in stems:
                shutil.copy(source / f"{stem}.{form}", folder)
    shutil.copy(root / "faces/s1/images/2.png", root / "sets/one/method/s1/7.png")
    brighter = np.clip(load_image(root / "sets/one/method/s1/4.png") * 1.05, 0, 255).astype(np.uint8)
    save_png(root / "sets/one/method/s1/8.png", brighter)
    return root


@pytest.fixture(scope="module")
def measured(photos, fixtures_dir):
    config = EvaluationConfig(
        samples_folder=str(photos / "sets/one"),
        real_folder=str(photos / "faces"),
        cache_folder=None,
        pack=str(fixtures_dir / "real_pack"),
        judge_pack=str(fixtures_dir / "judge_pack"),
        det_size=320,
        device="cpu",
    )
    return measure_samples(open_comparison(config))


def embedded(folder, pack):
    """{(person, file): unit embedding} of the photos in folder/*/images/* or folder/*/*."""
    analyser, found = FaceAnalyser(pack, det_size=320, device="cpu"), {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        photo = load_image(path)
        face = max(analyser.detect([photo])[0], key=lambda one: np.prod(one.box[2:] - one.box[:2]))
        vector = analyser.embed(align(photo, face.landmarks)[None])[0].astype(np.float64)
        found[path.relative_to(folder).parts[0], path.name] = vector / np.linalg.norm(vector)
    return found


@pytest.mark.parametrize("judge, pack", [("judge", "judge_pack"), ("recogniser", "real_pack")])
def test_similarities_and_thresholds_agree_with_plain_numpy(measured, photos, fixtures_dir, judge, pack):
    real = embedded(photos / "faces", fixtures_dir / pack)
    samples = embedded(photos / "sets/one/method", fixtures_dir / pack)
    rows = [row for row in measured.records() if row["method"] == "method"]
    assert len(rows) == len(samples) == 17
    for row in rows:
        vector = samples[row["identity"], row["file"].split("/")[1]]
        means = {
            person: np.mean([vector @ photo for (name, _), photo in real.items() if name == person])
            for person in (*ATT, *LONDON)
        }
        own = means.pop(row["identity"])
        assert row[f"{judge}_similarity"] == pytest.approx(own, abs=2e-5)
        assert row[f"{judge}_other_person"] == max(means, key=means.get)
        assert row[f"{judge}_margin"] == pytest.approx(own - max(means.values()), abs=2e-5)
    impostors = sorted(
        np.mean([vector @ photo for (name, _), photo in real.items() if name == other])
        for (person, _), vector in real.items()
        for other in (*ATT, *LONDON)
        if other != person
    )
    threshold, matches = measured.threshold(judge, 0.05)
    assert matches == int(0.05 * len(impostors)) == 4
    assert threshold == pytest.approx(impostors[-matches - 1], abs=2e-5)


def test_copies_and_twins_are_found(measured, photos):
    rows = {row["file"]: row for row in measured.records() if row["method"] == "method"}
    copy, twin, single = rows["s1/7.png"], rows["s1/8.png"], rows["001/smiling.jpg"]
    assert copy["nearest_photo"] == "s1/images/2.png" and copy["photo_likeness"] == pytest.approx(1, abs=1e-5)
    assert twin["nearest_sample"] == "s1/4.png" and twin["sample_likeness"] > 0.99
    assert rows["s1/4.png"]["nearest_sample"] == "s1/8.png" and rows["s1/4.png"]["photo_likeness"] < 0.97
    assert single["nearest_sample"] is None and single["sample_likeness"] is None
    assert copy["sha256"] == sha256_file(photos / "faces/s1/images/2.png")
    lone = next(row for row in measured.records() if row["method"] == REAL and row["identity"] == "001")
    assert lone["judge_similarity"] is None and lone["judge_other_similarity"] is not None


def test_the_files_say_the_same(measured, tmp_path):
    write_measurements(tmp_path, measured)
    again = read_measurements(tmp_path)
    assert again.records() == measured.records() and again.judges == measured.judges
    with open(tmp_path / "measurements.csv", encoding="utf-8", newline="") as stream:
        rows = [*csv.DictReader(stream)]
    assert [row["sha256"] for row in rows] == measured["sha256"].tolist()
    assert set(json.loads((tmp_path / "measurements.json").read_text())["columns"]) == set(rows[0])


@pytest.mark.parametrize(
    "damage", ["absent", "no parquet", "other kind", "scores out of order", "column gone"]
)
def test_damaged_measurements_are_refused_in_one_line(measured, tmp_path, damage):
    if damage != "absent":
        write_measurements(tmp_path, measured)
    file = tmp_path / "measurements.json"
    if damage == "no parquet":
        (tmp_path / "measurements.parquet").write_bytes(b"PAR1 not really")
    elif damage != "absent":
        about = json.loads(file.read_text())
        about["kind"] = "another" if damage == "other kind" else about["kind"]
        if damage == "scores out of order":
            about["judges"]["judge"]["highest"] = [0.1, 0.9]
        if damage == "column gone":
            del about["columns"]["quality"]
        file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="measurements.*evaluate the samples"):
        read_measurements(tmp_path)


def test_threshold_lets_no_more_through_than_allowed():
    highest = [0.9, 0.8, 0.8, 0.7, 0.6]
    assert threshold_at_fmr(highest, 100, 0.01) == (np.nextafter(0.8, 1), 1)
    assert threshold_at_fmr(highest, 100, 0.02) == (np.nextafter(0.8, 1), 1)  # of two equal scores neither
    assert threshold_at_fmr(highest, 100, 0.001) == (np.nextafter(0.9, 1), 0)
    assert np.isnan(threshold_at_fmr([], 0, 0.01)[0])
    with pytest.raises(UserError, match="fmr: 0.1 is above"):
        threshold_at_fmr(highest, 100, 0.1)


def test_an_evaluation_writes_them_beside_its_results(tmp_path, monkeypatch):
    world = make_world(tmp_path, monkeypatch)
    (world / "sets/one/ID-Booth/ID_1/broken.png").write_bytes(b"no picture")
    evaluate.evaluate(config_for(world, encoders=("pixels",)))
    found = read_measurements(world / "out")
    assert len(found) == 12 + 9 + 10 and str(world) not in (world / "out/measurements.csv").read_text()
    rows = {(row["method"], row["file"]): row for row in found.records()}
    black, broken = rows["NonFineTuned", "ID_1/002.png"], rows["ID-Booth", "ID_1/broken.png"]
    assert black["detection_score"] is None and black["quality"] is None and black["seen_gender"]
    assert broken["sha256"] is None and broken["seen_gender"] is None
    first = rows["ID-Booth", "ID_1/000.png"]
    assert first["gender"] == "male" and first["pose"] == "frontal" and first["background"] is None
    assert first["quality"] is not None and first["yaw"] is not None and first["judge_margin"] > 0
    wrong = rows["NonFineTuned", "ID_1/001.png"]  # green, in the folder of red
    assert wrong["judge_other_person"] == "ID_2" and wrong["judge_margin"] < 0
    alone = config_for(world, identities=("ID_1",), output_folder=str(world / "alone"), encoders=("pixels",))
    evaluate.evaluate(alone)
    lonely = read_measurements(world / "alone")
    assert np.isnan(lonely["judge_margin"]).all() and np.isnan(lonely.threshold("judge", 0.01)[0])


def tables_of(sections):
    return {table.name: table for section in sections for table in section.tables}


def test_people_groups_and_fixed_rates(tmp_path, monkeypatch):
    world = make_world(tmp_path, monkeypatch)
    (world / "faces/attributes.csv").write_text("identity,gender,age\nID_1,F,30\nID_2,M,70\nID_3,F,33\n")
    path, sections, _ = evaluate.evaluate(config_for(world, encoders=("pixels",)))
    tables, rows = tables_of(sections), read_measurements(world / "out").records()

    def mean(method, column, *people):
        mine = [r for r in rows if r["method"] == method and r[column] is not None]
        means = [np.mean([r[column] for r in mine if r["identity"] == name]) for name in people]
        return pytest.approx(np.mean(means), abs=1e-5)

    fixed = {row["method"]: row for row in tables["thresholds"].rows}["judge, FMR 1 %"]
    assert fixed["matches"] == 0 and fixed["comparisons"] == 24 and fixed["accepted_2"].value == 1.0
    assert "no more than a hint: judge, FMR 1 %" in tables["thresholds"].note
    worst = tables["people"].rows[0]
    assert (worst["method"], worst["identity"]) == ("NonFineTuned", "ID_3")
    assert worst["share"] == pytest.approx(2 / 3)
    assert worst["judge_similarity"] == mean("NonFineTuned", "judge_similarity", "ID_3")
    paired = tables["method_differences"].rows[0]
    assert paired["method"] == "NonFineTuned minus ID-Booth" and paired["people"] == 3
    sides = [mean(name, "quality", "ID_1", "ID_2", "ID_3").expected for name in ("NonFineTuned", "ID-Booth")]
    assert paired["quality"].value == pytest.approx(sides[0] - sides[1], abs=1e-5)
    female, male = (r for r in tables["groups_gender"].rows if r["method"] == "ID-Booth")
    assert female["people"] == 2 and female["quality"].value == mean("ID-Booth", "quality", "ID_1", "ID_3")
    assert male["people"] == 1 and np.isnan(male["quality"].low) and "judge_eer" not in male
    assert female["judge_eer"].value == 0.0
    assert "below 10: female (2), male (1)" in tables["groups_gender"].note
    gap = next(r for r in tables["groups_gender_differences"].rows if r["method"] == "ID-Booth")
    assert gap["group"] == "female minus male" and np.isnan(gap["quality"].low)
    assert gap["quality"].value == pytest.approx(female["quality"].value - male["quality"].value)
    assert {r["group"] for r in tables["groups_age"].rows} == {"middle-aged", "old"}
    text = path.read_text()
    assert "1 in 100 comparisons of different people" in text and 'href="tables/people.csv"' in text
    assert "FMR100 on 0, FMR1000 on 0. Below 10" in text


def test_without_attributes_the_groups_are_named_as_not_measured(tmp_path, monkeypatch):
    world = make_world(tmp_path, monkeypatch)
    _, sections, not_measured = evaluate.evaluate(config_for(world, encoders=("pixels",), gallery=False))
    assert "no attributes.csv beside the photos" in dict(not_measured)["groups of people"]
    assert "groups_gender" not in tables_of(sections) and not (world / "out/gallery.html").exists()
    (world / "people.json").write_text('{"ID_9": "M"}')
    config = config_for(world, encoders=("pixels",), gallery=False, groups_file=str(world / "people.json"))
    assert "knows neither gender nor age" in dict(evaluate.evaluate(config)[2])["groups of people"]


def test_difference_of_groups_has_the_interval_of_both():
    rng = np.random.default_rng(0)
    first, second = ({f"{k}{i}": rng.normal(mean, 1) for i in range(60)} for k, mean in (("a", 1), ("b", 0)))
    difference, low, high = unpaired_difference(first, second, 2000)
    a, b = ([*of.values()] for of in (first, second))
    assert difference == pytest.approx(np.mean(a) - np.mean(b))
    half = 1.96 * np.sqrt(np.var(a) / 60 + np.var(b) / 60)
    assert high - low == pytest.approx(2 * half, rel=0.08)


def test_error_rates_of_groups_by_hand(tmp_path, monkeypatch):
    """Cosines of colours are known: yellow to cyan 0.5, either to green 0.71."""
    world, people = make_world(tmp_path, monkeypatch), {"ID_4": (200, 200, 0), "ID_5": (0, 200, 200)}
    for name, colour in people.items():
        paint(world / "faces" / name / "images", shades(colour, 2))
        paint(world / "sets/one/ID-Booth" / name, [(200, 200, 0), (0, 200, 200)])
    rows = "ID_1,F\nID_2,M\nID_3,F\nID_4,F\nID_5,M\n"
    (world / "faces/attributes.csv").write_text("identity,gender\n" + rows)
    comparison = open_comparison(config_for(world, methods=("ID-Booth",), verification_replicates=40))
    tables = tables_of([group_section(comparison, measure_samples(comparison))])
    found = {(row["method"], row["group"]): row for row in tables["groups_gender"].rows}
    # Men: green's three samples are green, cyan's yellow and cyan. Genuine scores are 1 (14) and 0.5 (2),
    # impostor scores 0.71 (14): between 0.71 and 1 the FMR is 0 and the FNMR one in eight.
    men, women = found["ID-Booth", "male"], found["ID-Booth", "female"]
    assert men["people"] == 2 and women["people"] == 3
    assert found[REAL, "male"]["judge_eer"].value == 0.0
    assert men["judge_eer"].value == men["recogniser_eer"].value == pytest.approx(2 / 16 / 2)
    gap = next(row for row in tables["groups_gender_differences"].rows if row["method"] == "ID-Booth")
    assert gap["judge_eer"].value == pytest.approx(women["judge_eer"].value - men["judge_eer"].value)
    faces, draws = comparison.methods[0], []
    for group in (["ID_1", "ID_3", "ID_4"], ["ID_2", "ID_5"]):
        sides = [(one.embeddings["judge"], one.labels) for one in (faces, comparison.real)]
        sides = [part[np.isin(labels, group)] for rows, labels in sides for part in (rows, labels)]
        draws.append(verification_replicates(*sides, replicates=40)["eer"])
    for cell, of in ((women["judge_eer"], draws[0]), (gap["judge_eer"], draws[0] - draws[1])):
        assert (cell.low, cell.high) == pytest.approx(np.nanquantile(of, [0.025, 0.975]))


def test_a_face_is_cut_once_for_its_embedding_and_its_pixels(tmp_path, monkeypatch):
    world = make_world(tmp_path, monkeypatch)
    config = config_for(world, judge_pack=None, attributes_file=None, quality_weights=None)
    comparison = open_comparison(config)
    monkeypatch.setattr("evaluation.face_sets.load_image", lambda path: pytest.fail(f"read again: {path}"))
    found = measure_samples(comparison)
    assert not np.isnan(found["photo_likeness"][~np.isnan(found["detection_score"])]).any()
