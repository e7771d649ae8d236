"""Choosing samples: each rule, marks, duplicates, balance, the files; and who takes them."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from configs.curate_config import CurateConfig
from configs.fr_config import AugmentConfig, StudyConfig
from evaluation import curate
from evaluation.curation import (
    KEEP,
    MARKED,
    OVER,
    REJECT,
    REJECTED,
    TAKEN,
    read_curation,
    read_marks,
    reasons,
)
from evaluation.image_sets import REAL
from evaluation.measurements import NEAREST as NEAREST
from evaluation.measurements import NUMBERS, OF_JUDGE, TEXTS, Measurements, as_texts, write_measurements
from fr_training import study
from fr_training.augment_dataset import build_manifest
from fr_training.crops import load_crops
from fr_training.results import curation_table, paired_table
from id_booth.prompts import BACKGROUNDS
from tests.memory import peak_growth
from utils.errors import UserError
from utils.files import atomic_write_json, sha256_bytes
from utils.images import save_png

PLACES = list(BACKGROUNDS)[:2]


def table(people=2, each=8, photos=5, method="M"):
    """Measurements in which every sample passes: similarity 0.8, photos of others 0.0 to 0.4, two places."""
    names = [f"ID_{k + 1}" for k in range(people)]
    rows = [(REAL, name, f"{name}/images/{k}.png") for name in names for k in range(photos)]
    real = len(rows)
    rows += [(method, name, f"{name}/{k:03d}.png") for name in names for k in range(each)]
    count = len(rows)
    columns = {name: as_texts([None] * count) for name in (*TEXTS, *NEAREST, "judge_other_person")}
    for column, name in enumerate(("method", "identity", "file")):
        columns[name] = as_texts([row[column] for row in rows])
    columns["sha256"] = as_texts([sha256_bytes("".join(row).encode()) for row in rows])
    for i in range(real, count):
        columns["background"][i], columns["pose"][i] = PLACES[i % 2], "side" if i // 2 % 2 else "frontal"
    usual = {"detection_score": 0.9, "quality": 1.5, "photo_likeness": 0.5, "sample_likeness": 0.5}
    columns |= {name: np.full(count, usual.get(name, 0.0)) for name in NUMBERS}
    values = {"similarity": 0.8, "other_similarity": 0.1, "margin": 0.7}
    columns |= {f"judge_{name}": np.full(count, values[name]) for name in OF_JUDGE}
    highest = np.linspace(0.4, 0.0, 101).tolist()
    return Measurements(columns, {"judge": {"title": "J", "comparisons": 1000, "highest": highest}})


def row_of(measurements, file):
    return measurements["file"].tolist().index(file)


def reason_of(measurements, file, marks=None, **changes):
    config = CurateConfig(**({"most": None} | changes))
    return reasons(measurements, config, marks or {})[0][row_of(measurements, file)]


@pytest.mark.parametrize(
    "column, value, reason",
    [
        ("detection_score", np.nan, "no face"),
        ("judge_similarity", 0.35, "not similar"),  # ten of a thousand reach 0.364 at FMR 0.01
        ("judge_similarity", np.nan, "not similar"),
        ("judge_similarity", 0.37, TAKEN),
        ("judge_margin", -0.01, "like another person"),
        ("quality", 1.4, "low quality"),
        ("photo_likeness", 0.98, "copy of a photo"),
    ],
)
def test_each_rule_names_its_reason(column, value, reason):
    measurements = table()
    measurements[column][row_of(measurements, "ID_1/003.png")] = value
    assert reason_of(measurements, "ID_1/003.png") == reason
    assert reason_of(measurements, "ID_1/002.png") == TAKEN
    none = dict(fmr=None, least_margin=None, quality_quantile=None, copy_likeness=None)
    assert reason_of(measurements, "ID_1/003.png", **none) == ("no face" if reason == "no face" else TAKEN)
    digest = measurements["sha256"][row_of(measurements, "ID_1/003.png")]
    assert reason_of(measurements, "ID_1/003.png", {digest: KEEP}) == MARKED
    assert reason_of(measurements, "ID_1/003.png", {digest: REJECT}) == REJECTED


def test_the_threshold_is_that_of_the_false_match_rate():
    _, rules = reasons(table(), CurateConfig(fmr=0.01), {})
    text = next(rule.text for rule in rules if rule.name == "not similar")
    assert "of 0.360 or more by the judge; 10 of 1,000 comparisons" in text and "say little" not in text
    _, rules = reasons(table(), CurateConfig(fmr=0.005), {})
    assert "5 of 1,000" in rules[1].text and "fewer than ten say little" in rules[1].text


def test_of_duplicates_the_most_similar_stays_or_the_marked():
    measurements = table(people=1)
    chain = {"000": "001", "001": "002", "002": "001"}
    for k, (one, other) in enumerate(chain.items()):
        i = row_of(measurements, f"ID_1/{one}.png")
        measurements["nearest_sample"][i] = f"ID_1/{other}.png"
        measurements["sample_likeness"][i], measurements["judge_similarity"][i] = 0.99, 0.8 + 0.01 * k
    found = [reason_of(measurements, f"ID_1/{one}.png") for one in chain]
    assert found == ["duplicate", "duplicate", TAKEN]
    keep = {measurements["sha256"][row_of(measurements, "ID_1/000.png")]: KEEP}
    assert [reason_of(measurements, f"ID_1/{one}.png", keep) for one in chain] == [
        MARKED,
        "duplicate",
        "duplicate",
    ]
    measurements["judge_margin"][row_of(measurements, "ID_1/002.png")] = -1  # its twin is not hidden by it
    assert [reason_of(measurements, f"ID_1/{one}.png") for one in chain] == [
        "duplicate",
        TAKEN,
        "like another person",
    ]


def test_the_rest_is_balanced_and_marked_ones_count_first():
    measurements = table(people=1, each=8)
    reason, _ = reasons(measurements, CurateConfig(most=4), {})
    taken = reason == TAKEN
    assert taken.sum() == 4 and (reason == OVER).sum() == 4
    for name in ("background", "pose"):
        assert sorted(Counter(measurements[name][taken]).values()) == [2, 2]
    again, _ = reasons(measurements, CurateConfig(most=4), {})
    others = [reasons(measurements, CurateConfig(most=4, seed=seed), {})[0] for seed in range(1, 6)]
    assert (again == reason).all() and any((other != reason).any() for other in others)
    keep = {digest: KEEP for digest in measurements["sha256"][measurements.of_method("M")][:4:2]}
    reason, _ = reasons(measurements, CurateConfig(most=4), keep)
    assert (reason == MARKED).sum() == 2 and (reason == TAKEN).sum() == 2
    assert (measurements["background"][reason == TAKEN] != measurements["background"][reason == MARKED]).all()


def test_command_writes_what_it_plans_and_nothing_in_a_dry_run(tmp_path, capsys):
    measurements = table()
    measurements["identity"][measurements["identity"] == "ID_2"] = "<b>|ID_2"
    measurements["quality"][row_of(measurements, "ID_1/003.png")] = 0.0
    write_measurements(tmp_path / "out", measurements)
    marks = tmp_path / "marks.json"
    digest = measurements["sha256"][row_of(measurements, "ID_2/000.png")]
    given = {digest: {"mark": "reject", "note": "blurred"}, "0" * 64: {"mark": "keep"}}
    atomic_write_json(marks, {"kind": "id-booth-marks", "marks": given})
    file = tmp_path / "curate_test.py"
    config = CurateConfig(
        measurements=str(tmp_path / "out"), marks=str(marks), output_folder=str(tmp_path / "chosen")
    )
    file.write_text(f"from configs.curate_config import CurateConfig\nconfig = {config!r}\n")
    assert curate.main(["--config", str(file), "--dry-run"]) == 0
    plan = capsys.readouterr()
    assert "1 of 2 marks are of files that were not measured here" in plan.out + plan.err
    assert "out: marked reject" in plan.out + plan.err and not (tmp_path / "chosen").exists()
    assert curate.main(["--config", str(file)]) == 0
    content = read_curation(tmp_path / "chosen/curation.json")
    assert [len(of) for of in content["samples"]["M"].values()] == [7, 7]
    assert content["counts"]["people"]["M"] == {"ID_1": 7, "<b>|ID_2": 7}
    assert str(tmp_path) not in json.dumps(content)
    lines = (tmp_path / "chosen/curation.csv").read_text().splitlines()
    assert len(lines) == 1 + 16 and sum(line.endswith("low quality") for line in lines) == 1
    card = (tmp_path / "chosen/README.md").read_text()
    assert "14 of 16 generated images" in card and "<b>" not in card and "by a person's marks" in card
    assert "quality of 1.500 or more, the 0.05 quantile" in card
    assert curate.main(["--config", str(file)]) == 0  # again, over its own files


def test_wrong_input_is_one_line(tmp_path):
    measurements = table()
    with pytest.raises(UserError, match="judge: no 'x' in .*; there are judge"):
        reasons(measurements, CurateConfig(judge="x"), {})
    measurements["quality"][:] = np.nan
    with pytest.raises(UserError, match="quality_quantile: no quality was measured"):
        reasons(measurements, CurateConfig(), {})
    alone = dataclasses.replace(table(people=1))
    alone.judges["judge"] |= {"comparisons": 0, "highest": []}
    with pytest.raises(UserError, match="fmr: the real photos are of one person"):
        reasons(alone, CurateConfig(), {})
    for content in ({}, [], {"kind": "id-booth-marks", "marks": [1]}, {"kind": "id-booth-marks"}):
        atomic_write_json(tmp_path / "marks.json", content)
        with pytest.raises(UserError, match="marks.json: no marks of gallery.html"):
            read_marks(tmp_path / "marks.json")
    atomic_write_json(tmp_path / "marks.json", {"kind": "id-booth-marks", "marks": {"a": {"mark": "maybe"}}})
    with pytest.raises(UserError, match="'maybe' is neither keep nor reject"):
        read_marks(tmp_path / "marks.json")
    for content in (
        {},
        [],
        {"kind": "id-booth-curation", "rules": [], "samples": {"M": {"ID": [{"file": 1}]}}},
    ):
        atomic_write_json(tmp_path / "curation.json", content)
        with pytest.raises(UserError, match="curation.json: no curation.json of evaluation.curate"):
            read_curation(tmp_path / "curation.json")
    for wrong in ({"fmr": 0.5}, {"copy_likeness": 2.0}, {"most": 0}, {"quality_quantile": -1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            CurateConfig(**wrong).check()


def test_a_choice_of_nothing_says_which_rule_to_ease(tmp_path, capsys):
    write_measurements(tmp_path / "out", table())
    config = CurateConfig(measurements=str(tmp_path / "out"), output_folder=str(tmp_path / "chosen"))
    (tmp_path / "c.py").write_text(f"from configs.curate_config import *\nconfig = {config!r}\n")
    assert curate.main(["--config", str(tmp_path / "c.py"), "--least-margin", "0.8"]) == 0
    said = capsys.readouterr().err
    assert "no sample passes; 16 of 16 are left out as 'like another person'" in said
    assert REJECTED not in said  # there are no marks


def test_a_choice_is_made_without_torch():
    """Which takes seconds to load and is not needed."""
    code = "import sys, evaluation.curate; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_twenty_thousand_samples_in_five_seconds_and_a_gibibyte(tmp_path):
    measurements = table(people=100, each=200, photos=20)
    twins = np.flatnonzero(measurements.of_method("M"))[::10]
    measurements["sample_likeness"][twins] = 0.99
    measurements["nearest_sample"][twins] = measurements["file"][twins + 1]
    write_measurements(tmp_path / "out", measurements)
    file = tmp_path / "config.py"
    config = CurateConfig(measurements=str(tmp_path / "out"), output_folder=str(tmp_path / "chosen"))
    file.write_text(f"from configs.curate_config import CurateConfig\nconfig = {config!r}\n")
    start = time.perf_counter()
    assert peak_growth(lambda: curate.main(["--config", str(file)])) < 2**30
    assert time.perf_counter() - start < 20  # five seconds on a machine with nothing else to do
    assert len(read_curation(tmp_path / "chosen/curation.json")["samples"]["M"]) == 100


# ----------------------------------------------------------------------------------- who takes the choice


@pytest.fixture
def crops(tmp_path):
    """Crop sets of two people: three real crops each, six synthetic; and a curation of four of those."""
    rng, hashes = np.random.default_rng(0), {}
    for folder, count in (("real", 3), ("synthetic/M", 6)):
        for name in ("ID_1", "ID_2"):
            for k in range(count):
                path = tmp_path / "FR" / folder / name / f"{k:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_png(path, rng.integers(0, 255, (112, 112, 3), np.uint8))
                hashes[f"{name}/{path.name}"] = {"sha256": f"{folder}{name}{k}", "face": True}
        atomic_write_json(tmp_path / "FR" / folder / "alignment.json", {"images": hashes})
    atomic_write_json(tmp_path / "FR/labels.json", {"ID_1": 0, "ID_2": 1})
    samples = {
        name: [{"file": f"{name}/{k:03d}.png", "sha256": f"synthetic/M{name}{k}"} for k in (1, 2, 4, 5)]
        for name in ("ID_1", "ID_2")
    }
    content = {"kind": "id-booth-curation", "rules": ["a usable face"], "samples": {"M": samples}}
    atomic_write_json(tmp_path / "curation.json", content)
    return tmp_path


def augmenting(world, **changes):
    options = dict(
        real=str(world / "FR/real"),
        synthetic=str(world / "FR/synthetic/M"),
        labels=str(world / "FR/labels.json"),
        output=str(world / "FR/set.json"),
        curation=str(world / "curation.json"),
        count=4,
    )
    return AugmentConfig(**(options | changes))


def test_augment_takes_what_was_chosen_and_train_reads_it(crops):
    manifest = build_manifest(augmenting(crops))
    taken = [item["file"] for item in manifest["identities"]["ID_1"] if item["kind"] == "synthetic"]
    assert taken == [f"synthetic/M/ID_1/{k:03d}.png" for k in (1, 2, 4, 5)]
    assert manifest["curation"]["rules"] == ["a usable face"] and len(manifest["curation"]["sha256"]) == 64
    atomic_write_json(crops / "FR/set.json", manifest)
    assert len(load_crops(crops / "FR/set.json")) == 2 * (3 + 4)
    with pytest.raises(UserError, match="too few images, ID_1 has 4 of 5"):
        build_manifest(augmenting(crops, count=5))


def test_a_choice_of_other_images_is_refused(crops):
    shutil.copytree(crops / "FR/synthetic/M", crops / "FR/synthetic/other")
    with pytest.raises(UserError, match="no samples of 'other', the name of the crop set; there are M"):
        build_manifest(augmenting(crops, synthetic=str(crops / "FR/synthetic/other")))
    state = json.loads((crops / "FR/synthetic/M/alignment.json").read_text())
    state["images"]["ID_1/002.png"]["sha256"] = "new"
    atomic_write_json(crops / "FR/synthetic/M/alignment.json", state)
    with pytest.raises(
        UserError, match="ID_1/002.png: is not the crop of the image that .*curation.json chose"
    ):
        build_manifest(augmenting(crops))


def test_study_has_a_row_more_for_each_count(crops):
    config = StudyConfig(
        real=str(crops / "FR/real"),
        synthetic=str(crops / "FR/synthetic"),
        labels=str(crops / "FR/labels.json"),
        counts=(2, 4),
        curation=str(crops / "curation.json"),
        output=str(crops / "FR/study"),
    )
    rows = study.plan_rows(config)
    assert [row.name for row in rows if row.with_real] == [
        "real",
        "real+M_2",
        "real+M_4",
        "real+M_2_curated",
        "real+M_4_curated",
    ]
    manifest, shortage = study.mix(study.mixture(config, rows[-1]))
    assert not shortage and "curation" in manifest
    assert "curation" not in study.mix(study.mixture(config, rows[-3]))[0]
    assert study.curated_pairs(config, rows)[1] == ("M", 4, "real+M_4", "real+M_4_curated", 8, 8)


def test_difference_of_curation_is_paired():
    results = [
        {"row": row, "seed": seed, "benchmark": "lfw", "accuracy": base + 0.01 * seed}
        for row, base in (("p", 0.8), ("c", 0.82), ("p2", 0.7), ("c2", 0.73))
        for seed in (0, 1, 2)
    ]
    table = curation_table(results, [("A", 4, "p", "c", 8, 8), ("B", 4, "p2", "c2", 8, 7)])
    first, both, second = (table.rows[k] for k in (0, 1, 2))
    assert first["difference"].value == pytest.approx(0.02) and first["pairs"] == 3
    assert both["method"] == "all, 4" and both["difference"].value == pytest.approx(0.025)
    half = 2.5706 * 0.005 * (6 / 5) ** 0.5 / 6**0.5  # Student's t for five degrees of freedom
    assert both["difference"].high - both["difference"].value == pytest.approx(half, rel=1e-3)
    assert second["method"] == "B, 4" and (both["first"], both["second"]) == (16, 15)
    assert "not equally large" in table.note
    equal = curation_table(results, [("A", 4, "p", "c", 8, 8)])
    assert "not equally large" not in equal.note


def test_gain_over_real_photos_is_pooled_over_the_sets_of_a_method():
    results = [
        {"row": row, "seed": seed, "benchmark": "lfw", "accuracy": base + 0.01 * seed}
        for row, base in (("real", 0.8), ("real+A_0_4", 0.82), ("real+A_1_4", 0.83), ("real+oracle_4", 0.9))
        for seed in (0, 1)
    ]
    pairs = [(name, 4, "real", f"real+{name}_4", 0, 8) for name in ("A_0", "A_1", "oracle")]
    rows = {row["method"]: row for row in paired_table("gain", "", ("a", "b"), results, pairs).rows}
    assert [*rows] == ["A_0, 4", "A, 4", "all, 4", "A_1, 4", "oracle, 4"]
    assert rows["A, 4"]["difference"].value == rows["all, 4"]["difference"].value == pytest.approx(0.025)
    assert rows["A, 4"]["pairs"] == 4 and rows["oracle, 4"]["pairs"] == 2
