"""Folders of the miniature: the shipped weights, and the build's intermediate files."""

import os
from pathlib import Path

from utils.run_record import PROJECT_ROOT

WEIGHTS = PROJECT_ROOT / "mini/weights"


def build_dir():
    """Folder for renders and checkpoints: MINI_BUILD_DIR, or build/mini in the project."""
    return Path(os.environ.get("MINI_BUILD_DIR", PROJECT_ROOT / "build/mini"))
