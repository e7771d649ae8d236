"""A project of the official code's, its layout, names and formats, through every script without a rename."""

import importlib
import json
import pickle
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from arcface_files.faces import FaceAnalyser, crop_face
from arcface_files.iresnet import iresnet_slim
from arcface_files.recogniser import embed_crops, load_recogniser
from mini.face_world import render, sample_identity, sample_view
from mini.paths import WEIGHTS

PEOPLE, PHOTOS, SAMPLES, CLASSES = 3, 4, 4, 3
SET, LORA = "FacePortrait_Photo_21_Gender_Pose_Background", "checkpoint-31-6400_stable-diffusion-2-1-base"
PROMPTS = (
    "face portrait photo of {} sks person, ",
    "face side-portrait photo of {} sks person, beach background",
)
METHODS = ("DreamBooth", "ID-Booth")
SEX = {"ID_1": "F", "ID_2": "M", "ID_3": "F"}


def save_on_cuda(tensor, path, monkeypatch):
    """torch.save as on a machine with a GPU."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(tensor, path)


def picture(path, person, view, size=128, setting="lab"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = render(sample_identity(3_000_000 + person), sample_view(view, setting), size).image
    Image.fromarray(image).save(path, quality=95)
    return image


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Its folder: photos, class images, samples, gender table, flat crops, recognition runs, benchmarks."""
    root = tmp_path_factory.mktemp("official")
    patch = pytest.MonkeyPatch()
    analyser = FaceAnalyser(str(WEIGHTS / "pack"), device="cpu")
    recogniser = load_recogniser(analyser.models["recognition"])

    def embedded(image, path):
        crop = crop_face(image, analyser.detect([image])[0][0], "box")
        save_on_cuda(embed_crops(crop[None], recogniser), path, patch)

    for number in range(1, PEOPLE + 1):
        for view in range(PHOTOS):
            name = f"TD_RGB_E_{number}_{view}"
            image = picture(root / f"tfd/images/ID_{number}/{name}.jpg", number, view)
            embedded(image, root / f"tfd/ArcFace_embeds/ID_{number}/{name}.pt")
        for method in METHODS:
            for view in range(SAMPLES):
                prompt = PROMPTS[view % 2].format("female" if number % 2 else "male")
                folder = root / f"Generated_Samples/{SET}/{method}/ID_{number}_{LORA}"
                picture(folder / f"{view}_0_{prompt}.png", number, view, setting="wild")
        comparison = root / f"Generated_Samples/{SET}/Comparison"
        picture(comparison / f"ID_{number}_{LORA}_5.0.jpg", number, 0)
    for number in range(CLASSES):
        name = f"{number}-{number:040x}"
        image = picture(root / f"class200/images/{name}.jpg", 100 + number, number)
        embedded(image, root / f"class200/ArcFace_embeds/{name}.pt")
    (root / "tufts_gender_dict.json").write_text(json.dumps(SEX))
    for label in range(4):
        for view in range(4):
            picture(root / f"flat_crops/{label}_{view}_0_face photo of sks person, .jpg", label, view, 112)
    torch.manual_seed(0)
    state = iresnet_slim(num_features=64).state_dict()
    run = root / "REC_EXP/resnet50_AUGFalse/ID-Booth"
    run.mkdir(parents=True)
    torch.save(state, run / "646_backbone.pth")
    torch.save({f"module.{name}": value for name, value in state.items()}, run / "best_backbone.pth")
    torch.save({"kernel": torch.zeros(2, 2)}, run / "646_header.pth")
    crops = [np.random.default_rng(n).integers(0, 255, (112, 112, 3), np.uint8) for n in range(40)]
    (root / "VALIDATION").mkdir()
    with open(root / "VALIDATION/lfw.bin", "wb") as stream:
        pickle.dump((crops, np.arange(20) % 2), stream, protocol=2)
    return root


def run(module, config, options, *more):
    """The exit code of a script, run in this process as if typed."""
    typed = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    argv = [module, "--config", f"configs/{config}.py", *typed, *map(str, more)]
    before, sys.argv = sys.argv, argv
    try:
        return importlib.import_module(module).main() or 0
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def unchanged(before):
    return all(file.read_bytes() == content for file, content in before.items())


def test_the_whole_way_without_a_rename(project, tmp_path):
    before = {file: file.read_bytes() for file in project.rglob("*") if file.is_file()}
    photos, samples = project / "tfd/images", project / f"Generated_Samples/{SET}"
    loras, crops, labels = tmp_path / "loras", tmp_path / "crops", tmp_path / "labels.json"

    # On the embeddings that the official code has made, and on its class images as they are.
    options = {"source-folder": photos, "class-folder": project / "class200/images", "output-folder": loras}
    options |= {"num-class-images": CLASSES, "max-train-steps": 2, "validation-images": 0}
    assert run("train_id_booth", "train_mini", options, "--with-prior-preservation") == 0
    assert sorted(path.name for path in (loras / "ID-Booth").iterdir()) == [*SEX]
    assert {path.parent.name for path in project.rglob("faces.json")} <= {"ArcFace_embeds"}

    options = {"source-folder": photos, "embeds-folder": tmp_path / "embeds"}
    assert run("extract_arcface_embeds", "extract_mini", options) == 0
    assert len(list((tmp_path / "embeds").rglob("*.pt"))) == PEOPLE * PHOTOS

    options = {"source-folder": photos, "lora-folder": loras, "output-folder": tmp_path / "samples"}
    options |= {"prompt-set": 2, "steps": 1, "methods": "ID-Booth", "sheets-folder": tmp_path / "sheets"}
    assert run("inference_id_booth", "inference_mini", options) == 0
    lines = next((tmp_path / "samples").rglob("metadata.jsonl")).read_text().splitlines()
    assert {json.loads(line)["identity"] for line in lines} == {*SEX}
    assert all((" female " in line) == (SEX[json.loads(line)["identity"]] == "F") for line in lines)

    options = {"samples-folder": samples, "real-folder": photos, "output-folder": tmp_path / "evaluation"}
    assert run("evaluation.evaluate", "evaluate_mini", options | {"cache-folder": tmp_path / "cache"}) == 0

    for source, name in ((photos, "real"), (samples / "ID-Booth", "synthetic")):
        options = {"source": source, "output": crops / name, "labels": labels}
        assert run("fr_training.align_faces", "align_mini", options) == 0
        assert {path.name for path in (crops / name).iterdir() if path.is_dir()} - {".batch"} == {*SEX}
    assert json.loads(labels.read_text()) == {"ID_1": 0, "ID_2": 1, "ID_3": 2}

    options = {"real": crops / "real", "synthetic": crops / "synthetic", "labels": labels, "count": 2}
    options |= {"output": crops / "mix.json", "choice": "balanced", "samples-metadata": None}
    assert run("fr_training.augment_dataset", "augment_mini", options) == 0
    mixed = json.loads((crops / "mix.json").read_text())["identities"]
    assert {name: len(items) for name, items in mixed.items()} == dict.fromkeys(SEX, PHOTOS + 2)

    for data in (crops / "mix.json", project / "flat_crops"):
        options = {"dataset": data, "output": tmp_path / data.stem, "network": "iresnet_tiny", "max-steps": 1}
        options |= {"batch-size": 4, "seeds": 0, "selection": "none", "schedule": "milestones"}
        assert run("fr_training.train_fr", "train_fr_mini", options) == 0

    options = {"benchmarks": "lfw", "benchmark-folder": project / "VALIDATION", "output": tmp_path / "test"}
    recognisers = ("--recognisers", project / "REC_EXP/resnet50_AUGFalse/ID-Booth", tmp_path / "mix")
    assert run("fr_training.test_fr", "test_fr_mini", options, *recognisers) == 0
    rows = json.loads((tmp_path / "test/results.json").read_text())
    assert {row["row"] for row in rows} == {"ID-Booth", "mix"}
    assert unchanged(before)
