"""Long computations in pieces that are kept on the disk, so that an interrupted one goes on."""

from pathlib import Path

import numpy as np

from utils.files import atomic_path
from utils.progress import progress


def chunked(folder, name, count, make, size=50):
    """Arrays for ``count`` items, made and kept ``size`` at a time in ``folder``.

    Args:
        make: range of item numbers -> mapping of arrays with one row per item.
    Returns:
        mapping of arrays with ``count`` rows.
    """
    chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    parts = []
    with progress(desc=name, total=count) as bar:
        for chunk in chunks:
            path = Path(folder) / f"{name}_{chunk.start:05d}_{len(chunk)}.npz"
            if not path.is_file():
                with atomic_path(path) as temporary, open(temporary, "wb") as stream:
                    np.savez(stream, **make(chunk))
            with np.load(path) as arrays:
                parts.append(dict(arrays))
            bar.update(len(chunk))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
