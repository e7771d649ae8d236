"""Who judges identity: recognisers of packs and of files; and which methods were trained to please them.

A judge is circular for a method whose identity loss was computed with it. The content hash of the weights
decides: training notes that of the loss's recogniser in the LoRA, sampling in each sample's record.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcface_files.recogniser import embed_crops, load_recogniser
from evaluation.inputs import unit_rows
from id_booth.diffusion.lora_files import LOSS_RECOGNISER, NO_RECOGNISER
from id_booth.sampling.provenance import read_metadata
from utils.files import sha256_file

JUDGE, RECOGNISER = "judge", "recogniser"
CIRCULAR, INDEPENDENT, UNKNOWN = "circular", "independent", "unknown"
SAME_NETWORK = 0.999  # cosine between the embeddings of two files of one network


class RecogniserFile:
    """A recogniser from its own file, which embeds crops as a pack's recogniser does.

    Args:
        path: .pth, .safetensors or .onnx. device: torch.device.
    """

    def __init__(self, path, device="cpu", batch_size=32):
        self.network, self.batch_size = load_recogniser(path, device), batch_size
        self.models = {"recognition": self.network.path}

    def embed(self, crops):
        """Embeddings float32 (N, D), not normalised, of aligned uint8 RGB crops (N, 112, 112, 3)."""
        return embed_crops(crops, self.network, self.batch_size).numpy()


@dataclass
class Judge:
    """A recogniser that judges: `embed` and `models` as a FaceAnalyser's; `hashes` of its weights' files."""

    name: str
    embedder: object

    def __post_init__(self):
        self.path = Path(self.embedder.models["recognition"])
        self.hashes = {sha256_file(self.path)}

    @property
    def title(self):
        """How a report names it: folder, file, and the first digits of its hash."""
        return f"{self.path.parent.name}/{self.path.name} ({sha256_file(self.path)[:8]})"

    def relation(self, images):
        """What it is to a method: circular, independent, or unknown where a sample does not say."""
        named = loss_recognisers(images)
        if named & self.hashes:
            return CIRCULAR
        return UNKNOWN if None in named else INDEPENDENT


def loss_recognisers(images):
    """Hashes of the recognisers that the samples of an ImageSet were to please; None for what is not said."""
    records = read_metadata(images.folder)
    names = (path.relative_to(images.folder).as_posix() for path in images.paths)
    named = {records.get(name, {}).get(LOSS_RECOGNISER) or None for name in names}
    return named - {NO_RECOGNISER}


def join_same_networks(judges, real):
    """Let judges that are one network in two files, by their embeddings of the photos, share their hashes."""
    first, second = (real.embeddings[judge.name].astype(np.float64) for judge in judges)
    if not len(first) or first.shape != second.shape:
        return
    cosines = (unit_rows(first, "real", np.float64) * unit_rows(second, "real", np.float64)).sum(1)
    if cosines.min() > SAME_NETWORK:
        both = judges[0].hashes | judges[1].hashes
        judges[0].hashes = judges[1].hashes = both
