"""The published evaluation: its rules of sampling, its runs, its config; and what ours does instead."""

import random

import numpy as np
import pytest

from configs.evaluation_config import EvaluationConfig
from evaluation import evaluate, measure_diversity
from evaluation.diversity import authpct, frechet_distance, kernel_distance_subsets, prdc, vendi_score
from evaluation.encoders import PixelEncoder
from evaluation.image_sets import REAL, REFERENCE, published_rows, reference_photos
from evaluation.measure_diversity import Features
from evaluation.quality import published_sample
from tests.evaluation_world import BLACK, BLUE, GREEN, RED, config_for, make_world, paint, shades
from utils.config import load_config
from utils.images import load_image
from utils.run_record import PROJECT_ROOT


def test_a_set_is_cut_only_beyond_two_thousand_more(tmp_path):
    assert len(published_rows(2_299, 2_500)) == 2_299  # the lab photos
    assert len(published_rows(12_000, 10_000)) == 12_000
    np.random.seed(5)  # as dgm-eval draws
    expected = sorted(np.random.choice(12_001, 10_000, replace=False))
    assert published_rows(12_001, 10_000, seed=5).tolist() == expected


def test_quality_is_of_ten_thousand_faces_drawn_with_seed_seven():
    names = [f"{i}.png" for i in range(120)]
    random.seed(7)
    assert [names[i] for i in published_sample(120, 50)] == random.sample(names, 50)
    assert published_sample(50, 50) == published_sample(50, None) == list(range(50))


def test_the_reference_is_drawn_before_a_picture_is_opened(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(b"")
    drawn = reference_photos(tmp_path, 10)
    assert len(drawn) == 10 and list(drawn.paths) == list(reference_photos(tmp_path, 10).paths)
    assert len(reference_photos(tmp_path, 10, slack=20)) == len(reference_photos(tmp_path)) == 30


def random_features(**sizes):
    """Features of sets by name, three people each."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=(size, 3)).astype(np.float32), np.array([f"ID_{i % 3}" for i in range(size)]))
        for name, size in sizes.items()
    }


def test_the_run_against_photos_in_the_wild_cuts_each_set_by_itself(monkeypatch):
    monkeypatch.setattr(measure_diversity, "PRDC_IMAGES", 40)
    monkeypatch.setitem(measure_diversity.RUNS, "ffhq", measure_diversity.Run("", REFERENCE, 400))
    features = random_features(**{REFERENCE: 2_500, REAL: 30, "ID-Booth": 90})
    config = EvaluationConfig(replicates=20, nearest_neighbours=2)
    sets = Features(features, REFERENCE, "ffhq", config)
    assert {name: len(rows) for name, rows in sets.kept.items()} == {
        REFERENCE: 400,
        REAL: 30,
        "ID-Booth": 90,
    }
    row = sets.row("ID-Booth")
    reference = features[REFERENCE][0][published_rows(2_500, 400)]
    samples, labels = features["ID-Booth"]
    assert row["compared"] == row["images"] == 90
    assert row["fd"].value == pytest.approx(frechet_distance(reference, samples))
    kd = kernel_distance_subsets(reference, samples, subsets=100, size=90)  # of 90, as no more are there
    assert (row["kd"].value, row["kd"].spread) == pytest.approx(kd)
    assert row["authentic"] == pytest.approx(authpct(reference, samples))
    scores = [vendi_score(samples[labels == name]) for name in ("ID_0", "ID_1", "ID_2")]
    assert row["vendi"].value == pytest.approx(np.mean(scores))
    assert row["vendi"].spread == pytest.approx(np.std(scores))
    random_state = np.random.RandomState(0)  # forty of each
    pair = [rows[random_state.choice(len(rows), 40, replace=False)] for rows in (reference, samples)]
    assert row["density"] == pytest.approx(prdc(*pair, 2)["density"])
    assert f"{REFERENCE} (2,500)" in sets.note() and "ID-Booth (" not in sets.note()


def test_ours_takes_equally_many_and_says_what_it_cut():
    features = random_features(**{REAL: 30, "ID-Booth": 90})
    sets = Features(features, REAL, "equal", EvaluationConfig(replicates=20, nearest_neighbours=2))
    row = sets.row("ID-Booth")
    assert row["images"] == 90 and row["compared"] == 30
    assert (
        "30 seeded images of each set, as many as real photos has; cut to them: ID-Booth (90)" in sets.note()
    )
    assert row["authentic"] == pytest.approx(authpct(features[REAL][0], features["ID-Booth"][0]))
    assert "Vendi on 10 images of each identity" in sets.note()
    assert "compared" not in sets.row(REAL)


@pytest.fixture
def wild_world(tmp_path, monkeypatch):
    """The painted world with five photos in the wild, one of them without a face."""
    world = make_world(tmp_path, monkeypatch)
    paint(world / "wild", [*shades(RED, 2), GREEN, BLUE, BLACK])
    return world


def test_published_runs_in_a_report(wild_world):
    config = config_for(
        wild_world,
        encoders=("pixels",),
        encoder_input="crops",
        diversity_runs=("ffhq", "lab", "equal"),
        reference_folder=str(wild_world / "wild"),
        quality_images=3,
        score_files=True,
    )
    _, sections, not_measured = evaluate.evaluate(config)
    assert [what for what, _ in not_measured] == ["prompt adherence (CLIP score)", "groups of people"]
    tables = {table.name: table for section in sections for table in section.tables}
    images = {
        run: {r["method"]: r["images"] for r in tables[name].rows}
        for run, name in (
            ("ffhq", "diversity_pixels_ffhq"),
            ("lab", "diversity_pixels_lab"),
            ("equal", "diversity_pixels"),
        )
    }
    assert images["ffhq"] == {REAL: 12, "NonFineTuned": 6, "ID-Booth": 9}  # black pictures have no crop
    wild = [load_image(wild_world / "wild" / f"{i:03d}.png") for i in range(4)]
    photos = [load_image(path) for path in sorted((wild_world / "faces").glob("*/images/*.png"))]
    encoder = PixelEncoder()
    rows = {row["method"]: row for row in tables["diversity_pixels_ffhq"].rows}
    assert rows[REAL]["fd"].value == pytest.approx(frechet_distance(encoder(wild), encoder(photos)), rel=1e-3)
    assert "fd" not in {r["method"]: r for r in tables["diversity_pixels_lab"].rows}[REAL]
    for name in ("faces", "quality", "pose"):
        assert [row["method"] for row in tables[name].rows][-1] == REFERENCE
    assert [row["faces"] for row in tables["quality"].rows] == [3, 3, 3, 3]
    assert {row["method"]: row["images"] for row in tables["faces"].rows}[REFERENCE] == 5
    assert "drawn with seed 7" in tables["quality"].note
    scores = wild_world / "out/scores/identity_vs_real/ID-Booth"
    pairs = {row["method"]: row for row in tables["identity_vs_real"].rows}["ID-Booth"]
    assert len((scores / "genuines.txt").read_text().splitlines()) == pairs["genuine_pairs"] == 36


def test_missing_photos_in_the_wild_cost_their_run_only(wild_world):
    options = dict(encoders=("pixels",), diversity_runs=("ffhq", "lab"), judge_pack=None)
    _, _, not_measured = evaluate.evaluate(config_for(wild_world, **options))
    assert "none given" in dict(not_measured)["diversity on pixels (ffhq)"]
    gone = config_for(wild_world, **options, reference_folder=str(wild_world / "gone"))
    _, sections, not_measured = evaluate.evaluate(gone)
    assert "gone: no images" in dict(not_measured)["diversity on pixels (ffhq)"]
    names = [table.name for section in sections for table in section.tables]
    assert "diversity_pixels_lab" in names


def test_the_published_config_is_the_published_protocol():
    config = load_config(PROJECT_ROOT / "configs/evaluate_published.py", (), EvaluationConfig)
    config.check()
    assert config.encoders[:3] == ("dinov2", "clip", "mae") and config.encoder_input == "crops"
    assert (config.diversity_runs, config.reference_images) == (("ffhq", "lab"), 10_000)
    assert [measure_diversity.RUNS[run].nsample for run in config.diversity_runs] == [10_000, 2_500]
    assert (measure_diversity.KD_SUBSETS, measure_diversity.KD_SUBSET) == (100, 1_000)
    assert measure_diversity.PRDC_IMAGES == 10_000 and config.nearest_neighbours == 5
    assert (config.protocol, config.fmr_rule, config.seed) == ("id-booth-code", "nearest", 0)
    assert config.pad == 0.5 and config.face_policy == "largest" and config.judge_pack is None
    assert config.recogniser.endswith("ArcFace_r100_ms1mv3_backbone.pth")
    assert (config.quality_weights, config.quality_colour) == ("models/32572backbone.pth", "BGR")
    assert config.quality_images == 10_000
    assert (config.pose, config.pose_border) == ("6drepnet", 30)


def test_our_config_is_none_of_that():
    config = load_config(PROJECT_ROOT / "configs/evaluate_sd21.py", (), EvaluationConfig)
    assert config.diversity_runs == ("equal",) and config.protocol == "all" and config.judge_pack
    assert config.fmr_rule == "at_most" and config.quality_colour == "RGB" and config.quality_images is None
