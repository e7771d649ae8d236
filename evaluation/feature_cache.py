"""Features kept on disk by what they are of (content hash) and what made them, never by file name."""

import zipfile
from pathlib import Path

import numpy as np

from utils.errors import one_line
from utils.files import atomic_path, sha256_bytes
from utils.progress import log, progress


class FeatureCache:
    """Rows of features for images, computed once per image content and encoder.

    Args:
        folder: where to keep them, one .npz per encoder; None keeps nothing.
        encoder_id: text that changes whenever the features would: network, weights' hash, preprocessing.
    """

    def __init__(self, folder, encoder_id):
        self.path = None if folder is None else Path(folder) / f"{sha256_bytes(encoder_id.encode())[:24]}.npz"
        self.rows = self._read() if self.path is not None else {}

    def _read(self):
        if not self.path.is_file():
            return {}
        try:
            return read_features(self.path)
        except Exception as error:  # a damaged or crafted archive can fail anywhere in zipfile and numpy
            log(f"{self.path}: damaged feature cache, made anew ({one_line(error)[:120]})")
            return {}

    def fetch(self, keys, compute, batch_size=32, desc="features"):
        """Features of the items called `keys`, (N, D) float32, in that order.

        Args:
            keys: content hashes, repeats allowed.
            compute: function of a list of positions in `keys` -> (len, D) features.
        """
        first = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        missing = [position for key, position in first.items() if key not in self.rows]
        starts = range(0, len(missing), batch_size)
        for start in progress(starts, desc) if len(starts) > 1 else starts:
            positions = missing[start : start + batch_size]
            rows = np.asarray(compute(positions), dtype=np.float32)
            if next(iter(self.rows.values()), rows[0]).shape != rows.shape[1:]:
                log(f"{self.path}: features of another width, made anew")
                self.rows = {}
                return self.fetch(keys, compute, batch_size, desc)
            self.rows.update((keys[p], row) for p, row in zip(positions, rows, strict=True))
        if missing:
            self._write()
        return np.stack([self.rows[key] for key in keys]) if len(keys) else np.zeros((0, 1), np.float32)

    def _write(self):
        if self.path is None:
            return
        names = sorted(self.rows)
        with atomic_path(self.path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, keys=np.array(names), features=np.stack([self.rows[name] for name in names]))


def read_features(path):
    """{key: row} of a file that a FeatureCache wrote; ValueError, or whatever numpy raises, for another."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it is packed, as no cache is")
    with np.load(path) as stored:  # arrays only: NumPy refuses pickled objects by default
        keys, features = stored["keys"], stored["features"]
    if keys.dtype.kind != "U" or features.dtype != np.float32 or (keys.ndim, features.ndim) != (1, 2):
        raise ValueError("other numbers than a cache has")
    return dict(zip(keys.tolist(), features, strict=True))
