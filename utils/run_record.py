"""What a run was: configuration, command, code version, packages. And how it ended: the summary."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

from utils.config import as_dict
from utils.files import atomic_write_json, atomic_write_text
from utils.progress import log

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "insightface",
            "onnxruntime", "numpy", "pillow")  # fmt: skip


def code_version():
    """The git commit of the project, with ``+changes`` when the tree differs; "unknown" outside git."""
    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def git(*arguments):
    """The output of a git command run in the project folder."""
    command = ["git", "-C", str(PROJECT_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def project_relative(path):
    """A path as it may stand in metadata: relative to the project or the working folder, else its last part.

    Hub ids pass unchanged; absolute paths of the machine never leave it.
    """
    text = str(path)
    if not Path(text).is_absolute():
        return text
    for root in (PROJECT_ROOT, Path.cwd()):
        if Path(text).is_relative_to(root):
            return str(Path(text).relative_to(root))
    return Path(text).name


def describe_run(config):
    """The record of a run as a dict: resolved config, command, commit, versions, seed, start time."""
    command = [project_relative(sys.argv[0]), *sys.argv[1:]]
    return {
        "config": as_dict(config),
        "command": shlex.join(command),
        "code_version": code_version(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seed": getattr(config, "seed", None),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_run_record(folder, config, name="run.json"):
    """Write :func:`describe_run` to ``folder/name``."""
    atomic_write_json(Path(folder) / name, describe_run(config))


def summarise(rows, folder=None, name="summary"):
    """Print a table of result rows (dicts with equal keys) and keep it as JSON and text in ``folder``.

    Returns the exit code for the script: 1 when a row's ``status`` is "failed", else 0.
    """
    if not rows:
        return 0
    columns = list(rows[0])
    table = [columns, *[[str(row.get(column, "")) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in table)  # fmt: skip
    log(text)
    if folder is not None:
        atomic_write_json(Path(folder) / f"{name}.json", rows)
        atomic_write_text(Path(folder) / f"{name}.txt", text + "\n")
    return int(any(row.get("status") == "failed" for row in rows))
