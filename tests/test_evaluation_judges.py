"""Who judges, in which format, and for which methods a judge is circular."""

import json

import numpy as np
import pytest
import torch

from arcface_files.iresnet import IResNet
from arcface_files.recogniser import load_recogniser
from evaluation import evaluate
from evaluation.image_sets import method_samples
from evaluation.judges import Judge, RecogniserFile, join_same_networks
from fr_training.networks import export_onnx, save_network
from tests.evaluation_world import RED, ColourAnalyser, config_for, make_world, paint
from utils.files import sha256_file

HASH = "0" * 64


@pytest.fixture
def samples(tmp_path):
    """Two samples of a method."""
    paint(tmp_path / "ID-Booth" / "ID_1", [RED, RED])
    return method_samples(tmp_path / "ID-Booth")


def note_loss(folder, *values):
    """Records of the images of a method's folder, with the hash of their loss's recogniser."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    values = values * len(names) if len(values) == 1 else values
    records = [
        {"file_name": name, "prompt": "p"} | ({} if value is None else {"loss_recogniser_sha256": value})
        for name, value in zip(names, values, strict=True)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    "values, relation",
    [
        (["own", "own"], "circular"),
        ([HASH, "own"], "circular"),
        ([None, "own"], "circular"),
        ([HASH, HASH], "independent"),
        (["none", HASH], "independent"),
        (["none", "none"], "independent"),
        ([None, HASH], "unknown"),
        (["", ""], "unknown"),
    ],
)
def test_the_hash_in_the_records_decides(samples, tmp_path, values, relation):
    judge = Judge("judge", ColourAnalyser(tmp_path, "rec"))
    own = sha256_file(tmp_path / "rec")
    note_loss(samples.folder, *(own if value == "own" else value for value in values))
    assert judge.relation(samples) == relation


def test_samples_without_records_are_unknown(samples, tmp_path):
    assert Judge("judge", ColourAnalyser(tmp_path, "rec")).relation(samples) == "unknown"


def test_the_report_says_what_the_judge_is_to_each_method(tmp_path, monkeypatch):
    world = make_world(tmp_path, monkeypatch)
    (world / "loss").write_bytes(b"loss")
    note_loss(world / "sets/one/ID-Booth", sha256_file(world / "loss"))
    note_loss(world / "sets/one/NonFineTuned", "none")
    path, sections, _ = evaluate.evaluate(config_for(world, encoders=()))
    tables = {table.name: table for section in sections for table in section.tables}
    told = {
        name: {row["method"]: row["judge"] for row in tables[f"{name}_similarity"].rows}
        for name in ("identity", "identity_recogniser")
    }
    assert told["identity"] == {
        "real photos": None,
        "NonFineTuned": "independent",
        "ID-Booth": "independent",
    }
    assert told["identity_recogniser"]["ID-Booth"] == "circular"
    assert told["identity_recogniser"]["NonFineTuned"] == "independent"
    assert "Circular for ID-Booth: they were trained" in path.read_text()
    assert "pleased" not in sections[0].tables[0].note
    _, sections, _ = evaluate.evaluate(config_for(world, encoders=(), judge_pack=None))
    assert "the recogniser in the loss of ID-Booth: circular" in sections[0].tables[0].note


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16).eval()


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "onnx"])
def test_a_file_of_any_format_judges(network, tmp_path, suffix):
    path = tmp_path / f"loss.{suffix}"
    if suffix == "pth":
        torch.save(network.state_dict(), path)
    else:
        {"safetensors": save_network, "onnx": export_onnx}[suffix](network, path)
    crops = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    judge = Judge("recogniser", RecogniserFile(path, batch_size=2))
    with torch.inference_mode():
        expected = network(torch.from_numpy(crops.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1)
    np.testing.assert_allclose(judge.embedder.embed(crops), expected, atol=1e-4)
    assert judge.hashes == {sha256_file(path)} and path.name in judge.title


def test_one_network_in_two_formats_is_one_judge(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "loss.pth")
    export_onnx(network, tmp_path / "rec.onnx")
    judges = [Judge(name, RecogniserFile(tmp_path / name)) for name in ("loss.pth", "rec.onnx")]
    crops = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)

    class Photos:
        embeddings = {judge.name: judge.embedder.embed(crops) for judge in judges}

    join_same_networks(judges, Photos)
    assert judges[0].hashes == judges[1].hashes and len(judges[0].hashes) == 2
    torch.manual_seed(1)
    save_network(IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16), tmp_path / "other.safetensors")
    judges[1] = Judge("other", RecogniserFile(tmp_path / "other.safetensors"))
    judges[0].hashes = {"x"}
    Photos.embeddings["other"] = judges[1].embedder.embed(crops)
    join_same_networks(judges, Photos)
    assert judges[0].hashes == {"x"}


def test_an_evaluation_with_the_recogniser_from_a_file(network, tmp_path, monkeypatch):
    world = make_world(tmp_path, monkeypatch)
    torch.save(network.state_dict(), world / "ArcFace.pth")
    note_loss(world / "sets/one/ID-Booth", sha256_file(world / "ArcFace.pth"))
    config = config_for(
        world, encoders=("recogniser",), judge_pack=None, recogniser=str(world / "ArcFace.pth")
    )
    path, sections, _ = evaluate.evaluate(config)
    tables = {table.name: table for section in sections for table in section.tables}
    assert tables["identity_recogniser_similarity"].rows[2]["judge"] == "circular"
    assert "ArcFace.pth" in tables["diversity_recogniser"].title
    faces = load_recogniser(world / "ArcFace.pth")
    assert faces.embedding_size == 16 and "ArcFace.pth (" in path.read_text()
