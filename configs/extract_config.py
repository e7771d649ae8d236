"""The fields of extract_arcface_embeds.py's configuration."""

import dataclasses
from typing import Literal

from utils.config import BaseConfig
from utils.errors import UserError

FacePolicy = Literal["largest", "central", "refuse"]
Crop = Literal["aligned", "box"]


@dataclasses.dataclass
class ExtractConfig(BaseConfig):
    """Find the face in every photo, cut it out, and store its embedding beside the photos."""

    # data
    source_folder: str | None = "FACE_DATASET"
    """Identities: ID_1/images/* or images/ID_1/*; embeddings go to ArcFace_embeds in the same nesting."""
    identities: tuple[str, ...] = ()
    """Only these identities; empty means all."""
    require_consent: bool = False
    """Refuse identities without a consent.json that holds and allows to train (see id_booth/consent.py)."""
    class_folder: str | None = None
    """Flat folder of class images (images/*), embedded to its ArcFace_embeds/; None means there is none."""
    embeds_folder: str | None = None
    """Embeddings and records go to EMBEDS_FOLDER/ID_1/ (of class images: EMBEDS_FOLDER/class images/), for
    photos that may only be read; None puts them beside the photos. Training needs the same."""

    # networks
    pack: str = "buffalo_l"
    """insightface pack (folder, or name under ~/.insightface/models): detector and recogniser."""
    recogniser: str | None = "arcface_files/ArcFace_r100_ms1mv3_backbone.pth"
    """Weights (.pth, .safetensors or .onnx), the same as in training; None takes the pack's own."""
    device: str = "auto"
    """"auto" takes CUDA where there is one; "cpu", "cuda" or "cuda:1"."""

    # detection
    det_size: int | None = None
    """Square in pixels that photos are scaled to for detection; None keeps them as they are, up to 640."""
    detection_threshold: float = 0.5
    """Lowest score of a face, 0 to 1; 0.5 is insightface's."""
    detection_pad: float = 0.0
    """Black margin per side for the detector, as a fraction of it; 0.5 helps where faces fill the photo."""
    multiple_faces: FacePolicy = "largest"
    """Which of several faces is the person: the largest, the most central, or none (refuse the photo)."""

    crop: Crop = "aligned"
    """What is embedded: the face aligned by its five landmarks, as recognisers were trained, or the detected
    box, stretched, as the official code does. Training makes the other in memory where it compares that."""

    # work
    batch_size: int = 32
    """Photos per pass through the networks; does not change the embeddings."""
    threads: int | None = None
    """CPU threads of torch and of the detector; None: torch's own choice, under a launcher a fair share."""
    workers: int = 4
    """Threads that decode photos."""

    def check(self):
        """Refuse what cannot work, before anything heavy starts."""
        if self.source_folder is None and self.class_folder is None:
            raise UserError("source_folder, class_folder: both empty, nothing to embed; give at least one")
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: is {getattr(self, name)}, must be at least 1")
        if self.det_size is not None and (self.det_size < 32 or self.det_size % 32):
            raise UserError(f"det_size: is {self.det_size}, must be a multiple of 32, for example 320 or 640")
        if not 0 < self.detection_threshold < 1:
            raise UserError(f"detection_threshold: is {self.detection_threshold}, must lie between 0 and 1")
        if not 0 <= self.detection_pad <= 2:
            raise UserError(f"detection_pad: is {self.detection_pad}, must lie between 0 and 2")
