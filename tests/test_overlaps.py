"""No script writes into what it reads: any overlap of its folders is refused before a file is touched."""

import sys

import numpy as np
import pytest

import inference_id_booth
import train_id_booth
from evaluation import evaluate
from fr_training import align_faces
from utils.errors import UserError
from utils.images import save_png

OVERLAPS = (".", "ID_1", "ID_1/images", "ID_1/new", "..")
SCRIPTS = {
    "train": (
        train_id_booth,
        ("--config", "configs/train_mini.py", "--source-folder", "{}"),
        "--output-folder",
    ),
    "class images": (
        train_id_booth,
        ("--config", "configs/train_mini.py", "--source-folder", "{}", "--output-folder", "{}_loras"),
        "--class-folder",
    ),
    "sample": (
        inference_id_booth,
        ("--config", "configs/inference_mini.py", "--source-folder", "{}", "--lora-folder", "{}"),
        "--output-folder",
    ),
    "evaluate": (
        evaluate,
        ("--config", "configs/evaluate_mini.py", "--real-folder", "{}", "--samples-folder", "{}_samples"),
        "--output-folder",
    ),
    "align": (align_faces, ("--config", "configs/align_mini.py", "--source", "{}"), "--output"),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_an_output_that_overlaps_the_photos_is_refused(tmp_path, monkeypatch, script, overlap):
    faces, rng = tmp_path / "here" / "faces", np.random.default_rng(0)
    for name in ("ID_1", "ID_2"):
        save_png(faces / name / "images" / "0.png", rng.integers(0, 255, (64, 64, 3), np.uint8))
    for name in ("ID_1", "ID_2"):
        save_png(
            tmp_path / "here" / "faces_samples" / "ID-Booth" / name / "0.png", np.zeros((64, 64, 3), np.uint8)
        )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    module, options, output = SCRIPTS[script]
    options = [option.replace("{}", str(faces)) for option in options]
    monkeypatch.setattr(sys, "argv", ["script", *options, output, str(faces / overlap)])
    with pytest.raises(UserError, match="overlaps|holds files that this project did not write"):
        module.main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
