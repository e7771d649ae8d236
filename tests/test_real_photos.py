"""Real photos and real networks through evaluation and face recognition; skipped where they are absent."""

import shutil

import numpy as np
import pytest

from arcface_files.faces import FaceAnalyser, align
from configs.evaluation_config import EvaluationConfig
from configs.fr_config import TestFRConfig, TrainFRConfig
from evaluation import evaluate
from fr_training import test_fr, train_fr
from fr_training.benchmark_bin import read_bin, write_bin
from fr_training.crops import write_crop_arrays
from fr_training.networks import embed
from tests.tiny_recognition import tiny_training
from utils.errors import UserError
from utils.images import load_image

PEOPLE = ("s1", "s5", "s9", "s20", "s26", "s35")


@pytest.fixture
def halves(tmp_path, fixtures_dir):
    """Photos 1 to 5 of six people as the real ones, 6 to 10 as the samples of a method."""
    for person in PEOPLE:
        for number in range(1, 11):
            real = tmp_path / "faces" / person / "images"
            folder = real if number <= 5 else tmp_path / "sets" / "att" / "other half" / person
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(fixtures_dir / "images" / "att_faces" / person / f"{number}.png", folder)
    return tmp_path


def test_photos_against_themselves_under_two_judges(halves, fixtures_dir):
    config = EvaluationConfig(
        samples_folder=str(halves / "sets"),
        real_folder=str(halves / "faces"),
        output_folder=str(halves / "out"),
        cache_folder=str(halves / "cache"),
        pack=str(fixtures_dir / "real_pack"),
        judge_pack=str(fixtures_dir / "judge_pack"),
        det_size=320,
        encoders=("recogniser", "dinov2"),
        replicates=100,
        verification_replicates=20,
        device="cpu",
    )
    path, sections, not_measured = evaluate.evaluate(config)
    tables = {table.name: table for section in sections for table in section.tables}
    assert [row["share"].value for row in tables["faces"].rows] == [1.0, 1.0]
    for name in ("identity_vs_real", "identity_recogniser_vs_real"):
        row = tables[name].rows[0]
        assert row["genuine_pairs"] == 6 * 25 and row["impostor_pairs"] == 30 * 25
        assert row["auc"].value > 0.995 and row["eer"].value < 0.03
        assert row["genuine"].value > 0.6 and row["impostor"].value < 0.3
    real, other = tables["identity_similarity"].rows
    assert other["similarity"].value == pytest.approx(real["similarity"].value, abs=0.1)
    turn = {row["method"]: row["yaw"].spread for row in tables["pose"].rows}
    assert all(5 < spread < 40 for spread in turn.values())
    missing = dict(not_measured)
    assert "fdbtrs/CR-FIQA" in missing["face image quality (CR-FIQA)"]
    assert "facebook/dinov2-large" in missing["diversity on dinov2"]
    assert path.stat().st_size > 50_000


def crops_of(analyser, photos):
    """The aligned crop of the one face in each photo."""
    found = analyser.detect(photos)
    return np.stack([align(photo, face.landmarks) for photo, (face,) in zip(photos, found, strict=True)])


def test_exported_pack_works_in_insightface_and_here(tmp_path, fixtures_dir):
    from insightface.app import FaceAnalysis

    people = fixtures_dir / "images" / "att_faces"
    photos = [load_image(people / person / f"{k}.png") for person in PEOPLE[:3] for k in range(1, 5)]
    detector = FaceAnalyser(fixtures_dir / "real_pack", det_size=320, device="cpu")
    write_crop_arrays(tmp_path / "crops", crops_of(detector, photos), np.repeat(np.arange(3), 4), PEOPLE[:3])
    config = tiny_training(
        tmp_path / "crops",
        tmp_path / "run",
        max_epochs=1,
        selection="none",
        export_pack=str(tmp_path / "exported"),
        detector=str(fixtures_dir / "real_pack"),
    )
    train_fr.train_seeds(config, *train_fr.prepare_data(config))
    photo = load_image(fixtures_dir / "images" / "astronaut.png")
    analyser = FaceAnalyser(tmp_path / "exported", device="cpu")
    (face,) = analyser.detect([photo])[0]
    theirs = FaceAnalysis(name=str(tmp_path / "exported"), providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_size=(512, 512))
    (found,) = theirs.get(np.ascontiguousarray(photo[..., ::-1]))
    assert found.embedding.shape == (16,)
    np.testing.assert_allclose(found.kps, face.landmarks, atol=1)
    network = train_fr.load_trained(tmp_path / "run/seed_0")
    crop = crops_of(analyser, [photo])
    ours = embed(network, crop, flip=False)[0]
    np.testing.assert_allclose(analyser.embed(crop)[0], ours, atol=1e-3 * np.abs(ours).max())
    assert ours @ found.embedding > 0.99 * np.linalg.norm(ours) * np.linalg.norm(found.embedding)
    again = TrainFRConfig(export_pack=str(fixtures_dir / "real_pack"), detector=config.detector)
    with pytest.raises(UserError, match="is no pack of train_fr"):
        train_fr.prepare_data(again)


def test_sface_on_pairs_of_att(tmp_path, fixtures_dir):
    images, same = read_bin(fixtures_dir / "benchmarks" / "att40x10_112.bin")
    kept = np.arange(0, len(same), 4)  # every fourth pair of each fold: all take minutes
    pairs = images.reshape(-1, 2, 112, 112, 3)[kept]
    write_bin(tmp_path / "att.bin", pairs.reshape(-1, 112, 112, 3), same[kept])
    recogniser = str(fixtures_dir / "real_pack")
    config = TestFRConfig(recognisers=(recogniser,), output=str(tmp_path / "test"), device="cpu")
    (result,) = test_fr.test_all(config, test_fr.find_weights(recogniser), [tmp_path / "att.bin"])
    assert result["accuracy"] >= 0.99 and result["auc"] > 0.999 and result["pairs"] == len(kept) == 300
