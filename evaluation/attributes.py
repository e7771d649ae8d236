"""A network file that says what a picture shows, for prompt adherence and as an encoder of what is shown.

Any ONNX file will do that takes (N, 3, H, W) float32 RGB in [0, 1], has one output (N, classes) of logits per
attribute, named after it, and one (N, D) named "features", and lists the classes of each attribute as JSON in
its metadata under "classes": {"gender": ["male", "female"], ...}. Attributes and classes are those of the
prompts: gender, age and background in their words, pose as frontal or side.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.nn import functional

from arcface_files.face_pack import load_onnx, session_options
from utils.errors import UserError, one_line
from utils.files import sha256_file

FEATURES = "features"


class AttributeClassifier:
    """The network in an ONNX file; as an encoder (see :mod:`evaluation.encoders`) its features.

    classes: attribute -> tuple of class names.

    Raises:
        UserError: the file is missing, no ONNX network, or without class names or outputs.
    """

    licence, of_faces = "that of the file", False

    def __init__(self, path):
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: no attribute classifier; give an ONNX file as in evaluation/attributes.py"
            )
        load_onnx(path)  # which refuses what onnxruntime should not see
        try:
            options = session_options()
            self.session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own kinds
            raise UserError(f"{path}: not a readable ONNX network; copy or export it anew") from error
        self.classes = classes_of(self.session, path)
        self.name = f"attribute classifier {path.name}"
        self.identifier = f"attributes|{sha256_file(path)}"

    def predict(self, images):
        """What uint8 RGB pictures of any square size show: one dict attribute -> class name each."""
        best = [logits.argmax(1) for logits in self.run(list(self.classes), images)]
        return [
            {name: of[row[i]] for (name, of), row in zip(self.classes.items(), best, strict=True)}
            for i in range(len(images))
        ]

    def __call__(self, images):
        """Features of uint8 RGB pictures, float32 (N, D)."""
        return self.run([FEATURES], images)[0]

    def run(self, outputs, images):
        """The named outputs, a list of arrays with one row per picture."""
        source = self.session.get_inputs()[0]
        try:
            return self.session.run(outputs, {source.name: as_batch(images, tuple(source.shape[2:]))})
        except Exception as error:  # as above; too little memory looks like any
            reason = f"fails on {len(images)} pictures ({one_line(error)[-160:]})"
            raise UserError(f"{self.name}: {reason}; use another") from error


def classes_of(session, path):
    """{attribute: class names} of the file's metadata; UserError where they do not fit the outputs."""
    stored = session.get_modelmeta().custom_metadata_map.get("classes", "")
    sizes = {output.name: output.shape[1:] for output in session.get_outputs()}
    try:
        classes = {name: tuple(of) for name, of in json.loads(stored).items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UserError(
            f'{path}: no class names; put them as JSON into its metadata under "classes"'
        ) from None
    wrong = [name for name, of in classes.items() if sizes.get(name) != [len(of)]]
    if wrong or FEATURES not in sizes:
        name = wrong[0] if wrong else FEATURES
        raise UserError(
            f"{path}: output {name!r} is missing or of another width than its classes; export it anew"
        )
    return classes


def as_batch(images, size):
    """uint8 RGB pictures as float32 (N, 3, *size) in [0, 1], resized by area where they have another size."""
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 for image in images]
    sized = [
        one if one.shape[-2:] == size else functional.interpolate(one, size, mode="area") for one in tensors
    ]
    return torch.cat(sized).numpy()
