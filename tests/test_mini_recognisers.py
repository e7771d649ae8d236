"""The builders of the miniature's recogniser, quality network and attribute classifier, on a few renders."""

import numpy as np
import pytest
from safetensors.torch import load_file

from evaluation.attributes import AttributeClassifier
from evaluation.quality import load_quality_network, quality_scores
from mini.build.attribute_classifier import CLASSES, ClassifierConfig, train_classifier
from mini.build.quality import train_quality
from mini.build.recogniser import train_recogniser
from mini.build.recogniser_data import HELD_OUT_SEED, render_set
from mini.build.render_sets import render_set as render_pictures
from utils.errors import UserError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build folder with crops of a few people, and the recogniser trained on them for an epoch."""
    folder = tmp_path_factory.mktemp("recognisers")
    crops = folder / "recogniser/recogniser_data"
    render_set(crops / "train", 0, 22, 3, 0.25)
    render_set(crops / "held_out", HELD_OUT_SEED, 4, 3, 0.0)
    result = train_recogniser(folder / "weights/pack/rec_mini.onnx", folder / "recogniser", epochs=1)
    return folder, result


def test_the_recogniser_is_written_twice_and_both_agree(built):
    folder, result = built
    assert 0 <= result["eer"] <= 1 and 0 <= result["auc"] <= 1
    assert result["onnx_difference"] < 1e-4
    assert (folder / "weights/pack/rec_mini.onnx").is_file()
    assert "fc.weight" in load_file(folder / "weights/pack/rec_mini.safetensors")


def test_the_quality_network_ships_in_half_precision_and_loads_as_cr_fiqa(built):
    folder, _ = built
    path = folder / "weights/quality.safetensors"
    result = train_quality(path, folder, epochs=1)
    assert set(result) == {"eer", "eer_kept", "eer_random"}
    assert all(str(v.dtype) != "torch.float32" for v in load_file(path).values())
    scores = quality_scores(load_quality_network(path), np.zeros((2, 112, 112, 3), np.uint8))
    assert scores.shape == (2,) and np.isfinite(scores).all()
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # rows of a batch may differ in rounding


def test_the_classifier_is_trained_on_renders_and_names_what_it_sees(tmp_path):
    config = ClassifierConfig(tmp_path, images=12, epochs=1, batch_size=4, output=tmp_path / "a.onnx")
    with pytest.raises(UserError, match="--stage render"):
        train_classifier(config)
    render_pictures(tmp_path / "renders", 12, 0)
    scores = train_classifier(config)
    assert set(scores) == set(CLASSES)
    seen = AttributeClassifier(config.output).predict(np.full((2, 64, 64, 3), 90, np.uint8))
    assert seen[0] == seen[1] and all(seen[0][name] in classes for name, classes in CLASSES.items())
