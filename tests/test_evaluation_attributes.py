"""The classifier of attributes: an ordinary ONNX file, equal to the network it was exported from."""

import json

import numpy as np
import onnx
import pytest
import torch

from evaluation.attributes import FEATURES, AttributeClassifier, as_batch
from evaluation.encoders import make_encoder
from mini.build.attribute_classifier import (
    CLASSES,
    CLASSIFIER,
    AttributeNetwork,
    export_classifier,
    targets,
)
from utils.errors import UserError


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (96, 128, 256, 128)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(file, network with the weights in it): random weights that half precision holds exactly."""
    torch.manual_seed(0)
    network = AttributeNetwork()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape).abs().half() if value.dim() == 1 else value.half())
    path = tmp_path_factory.mktemp("attributes") / "attributes.onnx"
    export_classifier(network, path)
    return path, network.eval()


def test_the_file_sees_what_the_network_sees(exported, pictures):
    path, network = exported
    classifier = AttributeClassifier(path)
    with torch.inference_mode():
        expected = network(torch.from_numpy(as_batch(pictures, (128, 128))))
    np.testing.assert_allclose(classifier(pictures), expected[FEATURES], rtol=1e-4, atol=1e-4)
    assert classifier(pictures).shape == (4, 192) and classifier.classes == CLASSES
    for name, logits in zip(CLASSES, classifier.run(list(CLASSES), pictures), strict=True):
        np.testing.assert_allclose(logits, expected[name], rtol=1e-3, atol=1e-3)
    best = {name: expected[name].argmax(1).tolist() for name in CLASSES}
    seen = [{name: CLASSES[name][best[name][i]] for name in CLASSES} for i in range(4)]
    assert classifier.predict(pictures) == seen
    assert isinstance(make_encoder("attributes", path), AttributeClassifier)


def test_weights_are_stored_in_half_precision(exported):
    kinds = {weight.data_type for weight in onnx.load(str(exported[0])).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds
    assert CLASSIFIER.stat().st_size < 500_000


def test_the_shipped_file_names_the_miniatures_classes():
    assert AttributeClassifier(CLASSIFIER).classes == CLASSES


def test_targets_of_a_picture():
    truth = {"yaw": -40.0, "gender": "female", "age": "old", "background": "beach", "skin": "tan"}
    truth |= {"hair": "long curly red hair", "beard": "stubble", "glasses": "round"}
    beach = CLASSES["background"].index("beach")
    expected = {"gender": 1, "age": 2, "background": beach, "pose": 1}
    assert targets(truth) == expected | {"skin": 1, "hair": 4, "beard": 0, "glasses": 1}
    assert targets(truth | {"yaw": 22.0})["pose"] == -100
    assert targets(truth | {"hair": "bald head", "beard": "goatee"}) == targets(truth) | {
        "hair": 0,
        "beard": 1,
    }


@pytest.mark.parametrize(
    "stored, message",
    [
        (None, "no class names"),
        ("[1]", "no class names"),
        ('{"gender": 2}', "no class names"),
        (json.dumps({"gender": ["male"]}), "output 'gender'"),
        (json.dumps({"mood": ["good", "bad"]}), "output 'mood'"),
    ],
)
def test_a_file_without_fitting_class_names_is_refused(exported, tmp_path, stored, message):
    model = onnx.load(str(exported[0]))
    del model.metadata_props[:]
    if stored is not None:
        onnx.helper.set_model_props(model, {"classes": stored})
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(UserError, match=f"other.onnx: {message}"):
        AttributeClassifier(tmp_path / "other.onnx")


def test_no_file_and_no_network_are_refused(tmp_path):
    with pytest.raises(UserError, match="no attribute classifier"):
        AttributeClassifier(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(UserError, match="not a readable ONNX file"):
        AttributeClassifier(tmp_path / "bad.onnx")
