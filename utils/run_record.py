"""What a run was: configuration, command, code version, packages. And how it ended: the summary."""

import functools
import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from utils.config import as_dict
from utils.files import atomic_write_json, atomic_write_text, sweep_temporaries
from utils.progress import log
from utils.text_tables import aligned, lines_of

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "insightface",
    "onnxruntime",
    "numpy",
    "pillow",
)
# A path from the root on; not the tail of a relative one or of an address.
ABSOLUTE = re.compile(r"(?<![\w.:/~-])/[^\s:;,'\"()]+/[^\s:;,'\"()]+")
# Access tokens of the Hugging Face hub and of GitHub, should somebody put one on the command line.
TOKEN = re.compile(r"\b(hf|ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{16,}")


@functools.cache
def code_version():
    """The git commit at the start of the run, ``+changes`` if the tree differs; "unknown" outside git."""
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


def publishable(value):
    """A value, or a dict, list or tuple of values, without machine paths and access tokens."""
    if isinstance(value, dict):
        return {key: publishable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [publishable(item) for item in value]
    if not isinstance(value, str):
        return value
    option, equals, rest = value.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={publishable(rest)}"
    return TOKEN.sub("[token]", project_relative(Path(value).expanduser() if value[:1] == "~" else value))


def without_folders(value):
    """A text, or a dict with texts, in which absolute paths keep their last parts only, at most three."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return TOKEN.sub("[token]", ABSOLUTE.sub(last_parts, value))


def last_parts(match):
    """The end of an absolute path, without its first three folders, which name a machine and its users."""
    parts = match[0].split("/")[1:]
    return "/".join(parts[3:][-3:] or parts[-1:])


def describe_run(config):
    """The record of a run as a dict: resolved config, command, commit, versions, seed, start time.

    Folders of the machine are shortened and access tokens blotted out, since records travel with the data.
    """
    return {
        "config": publishable(as_dict(config)),
        "command": shlex.join(publishable(sys.argv)),
        "code_version": code_version(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seed": getattr(config, "seed", None),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_run_record(folder, config, name="run.json"):
    """Write :func:`describe_run` to ``folder/name``, and clear what killed runs have left in the folder."""
    sweep_temporaries(folder)
    atomic_write_json(Path(folder) / name, describe_run(config))


def summarise(rows, folder=None, name="summary", report=True):
    """Print a table of result rows (dicts with equal keys) and keep it as JSON and text in ``folder``.

    Args:
        report: False for the processes of a launch that only need the exit code.

    Returns the exit code for the script: 1 when a row's ``status`` is "failed", else 0.
    """
    code = int(any(row.get("status") == "failed" for row in rows))
    if not rows or not report:
        return code
    counts = Counter(row["status"] for row in rows if "status" in row)
    text = aligned(lines_of(rows)) + "".join(f"\n{count} {status}" for status, count in counts.items())
    log(text)
    if folder is not None:
        # The screen shows whole paths; files travel with the data.
        atomic_write_json(Path(folder) / f"{name}.json", [without_folders(row) for row in rows])
        atomic_write_text(Path(folder) / f"{name}.txt", without_folders(text) + "\n")
    return code
