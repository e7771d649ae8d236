"""The builders of the miniature's recogniser, quality network and attribute classifier, on a few renders."""

import numpy as np
import pytest
from safetensors.torch import load_file

from arcface_files.recogniser import load_recogniser
from evaluation.attributes import AttributeClassifier
from evaluation.quality import load_quality_network, quality_scores
from fr_training.crops import load_crops
from fr_training.networks import embed
from mini.build.attribute_classifier import CLASSES, ClassifierConfig, train_classifier
from mini.build.quality import train_quality
from mini.build.recogniser import train_recogniser
from mini.build.recogniser_data import render_set
from mini.build.render_sets import render_set as render_pictures
from mini.world.identity import HELD_OUT
from utils.errors import UserError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build folder with crops of a few people, and the figures of a recogniser trained on them."""
    folder = tmp_path_factory.mktemp("recognisers")
    crops = folder / "recogniser/recogniser_data"
    render_set(crops / "train", 0, 22, 3, 0.25)
    render_set(crops / "held_out", HELD_OUT, 8, 4, 0.0)
    result = train_recogniser(folder / "weights/pack/rec_mini.onnx", folder / "recogniser", epochs=8)
    return folder, result


def test_the_recogniser_learns_and_is_written_twice(built):
    folder, result = built
    held_out = load_crops(folder / "recogniser/recogniser_data/held_out")
    network = load_recogniser(folder / "weights/pack/rec_mini.safetensors").eval()
    rows = embed(network, held_out.images, flip=False)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first, second = np.triu_indices(len(rows), 1)
    cosine, same = (rows[first] * rows[second]).sum(1), held_out.labels[first] == held_out.labels[second]
    genuine, impostor = cosine[same], cosine[~same]
    assert result["auc"] == pytest.approx((genuine[:, None] > impostor).mean(), abs=1e-3)
    errors = [max((genuine < at).mean(), (impostor >= at).mean()) for at in np.sort(cosine)]
    assert result["eer"] == pytest.approx(min(errors), abs=0.02)
    # Networks with random weights tell these people apart with an AUC from .68 to .75.
    assert result["auc"] > 0.78
    assert result["onnx_difference"] < 1e-4
    assert (folder / "weights/pack/rec_mini.onnx").is_file()


def test_the_quality_network_ships_in_half_precision_and_loads_as_cr_fiqa(built):
    folder, recogniser = built
    path = folder / "weights/quality.safetensors"
    result = train_quality(path, folder, epochs=1)
    assert set(result) == {"eer", "eer_kept", "eer_random"}
    assert result["eer"] == pytest.approx(recogniser["eer"], abs=1e-6)  # nothing discarded, the same network
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
