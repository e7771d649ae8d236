"""What a run was: configuration, command, code version, packages. And how it ended: the summary."""

import contextlib
import functools
import getpass
import importlib.metadata
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from utils.config import PROJECT_ROOT, as_dict
from utils.errors import UserError
from utils.files import atomic_write_json, atomic_write_text, read_json, sweep_temporaries
from utils.progress import log
from utils.text_tables import aligned, lines_of

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
PACKAGES += ("insightface", "onnxruntime", "numpy", "pillow")
# What names a secret: HF_TOKEN=..., --api-key ..., "password": ...
SECRET = (
    r"(?<![\w.-])[\w.-]{0,64}?(?:token|secret|passw(?:or)?d|passphrase|credential|(?:api|access|private)[_-]?key)"
    r"[\w-]{0,64}"
)
SECRET_NAME = re.compile(SECRET, re.IGNORECASE)
NAMED_SECRET = re.compile(
    rf"({SECRET}[\"']?\s*=\s*[\"']?|{SECRET}[\"']?:\s*[\"']?(?=\S{{8}})|(?=-){SECRET}\s+"
    r"|\bbearer\s+(?=\S{8}))[^\s\"',;&]+|((?<![\w-])[\w-]{0,64}?key[\"']?[\s:=]+[\"']?)[0-9a-f]{32,}",
    re.IGNORECASE,
)
# Of the hub, GitHub, GitLab, OpenAI and its like, Slack, W&B, Google, PyPI, npm, AWS; JSON web tokens.
TOKEN = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|gl(?:pat|[a-z]{1,5}t|agent)-|sk-|xox[a-z]-|xapp-|wandb_v|AIza|pypi-|npm_)"
    r"[A-Za-z0-9_-]{12,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}|\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"
)
URL_USER = re.compile(r"(?<=://)[^\s/@]{1,255}@")
# Names of folders, of at most three words each, and a last one of one word.
WORD = r"[^\s/\\:;'\"`<>|]{1,255}"
NAMES = rf"(?:{WORD}(?: {WORD}){{0,2}}[/\\]{{1,4}})*(?:[^\s/\\:;,'\"`()<>|]+)?"
PLACE = re.compile(
    # At the start of a text, up to a colon: one may be of many words. Then addresses of files and of folders
    # on other machines, drives and shares of Windows, ~, what leads up, and what begins at the root.
    r"\A(?:~|/(?!\w+>)|\.\.[/\\]|[A-Za-z]:[/\\]|\\\\)[^,;:\n\"'()<>|]*"
    rf"|\b(?:file|ssh|sftp|scp|rsync|smb|nfs):/+{NAMES}|(?<![\w.-])[\w.-]{{1,64}}@[\w.-]{{1,255}}:[/~]+{NAMES}"
    rf"|(?<!\w)(?:[A-Za-z]:|\\)[/\\]{{1,4}}(?=\w){NAMES}"
    rf"|(?<![\w./\\~-])~(?:[A-Za-z_][\w.-]*)?(?:[/\\]{{1,4}}{NAMES}|(?<=\w))"
    rf"|(?<![\w./])(?:{WORD}[/\\]{{1,4}})*\.\.(?:[/\\]{{1,4}}{NAMES}|(?![\w.]))"
    r"|(?:(?<![\w./\\~:*}\]])|(?<=:)(?!//)|(?<=\s-\w)|(?<=\A-\w))/+(?!\w+>)(?=[^\s/:;,'\"()<>|])"
    rf"{NAMES}"
)
HOMES = re.compile(r"(?:^|/)(?:home|Users|root)(?:/[^/]+)?$|^~[^/]*$")
NO_NAMES = {"root", "user", "users", "admin", "ubuntu", "runner", "jovyan", "nobody", "home", "localhost"}


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


def publishable(value):
    """A value, or a dict, list or tuple of values, as it may leave this machine.

    Texts lose access tokens, passwords in addresses, the names of host and user, and places: a path that is
    absolute, begins with ~ or leads up becomes relative to the project or working folder, or its last name.
    The value of a dict's "identity" is the name of data and stays.
    """
    if isinstance(value, dict):
        return {key: value[key] if key == "identity" else published(key, value[key]) for key in value}
    if isinstance(value, (list, tuple)):
        return [published(name, item) for name, item in zip(["", *value], value, strict=False)]
    if not isinstance(value, (str, Path)):
        return value
    text = TOKEN.sub("[token]", NAMED_SECRET.sub(lambda match: f"{match[1] or match[2]}[token]", str(value)))
    text = PLACE.sub(lambda match: short(match[0]), URL_USER.sub("", text))
    for pattern, word in private_names():
        text = pattern.sub(word, text)
    return text


def published(name, value):
    """:func:`publishable`, but nothing of a text under (or after) the name of a secret."""
    secret = isinstance(value, str) and value and isinstance(name, str) and SECRET_NAME.fullmatch(name)
    return "[token]" if secret else publishable(value)


def short(place):
    """A place on this or another machine without the folders that lead to it."""
    path = os.path.normpath(re.sub(r"^file:/+", "/", place.replace("\\", "/")))
    home = Path.home()
    for root in (PROJECT_ROOT, Path.cwd()):
        if root not in home.parents and Path(path).is_relative_to(root):
            return os.path.relpath(path, root)
    return "~" if HOMES.search(path) else path.rpartition("/")[2]


@functools.cache
def private_names():
    """[(pattern, word in its place)] of this machine's name and the user's, as whole words."""
    host, users = socket.gethostname(), {Path.home().name}
    with contextlib.suppress(OSError, KeyError):  # a number without a name, in containers
        users.add(getpass.getuser())
    words = {name: "[user]" for name in users if len(name) > 2}
    words |= {name: "[host]" for name in (host, host.partition(".")[0]) if len(name) > 1}
    return [
        (re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE), words[name])
        for name in sorted(words, key=len, reverse=True)
        if name not in NO_NAMES
    ]


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
    """Write :func:`describe_run` to ``folder/name``, and clear what killed runs have left in the folder.

    "earlier_runs" lists those whose records it takes the place of.
    """
    sweep_temporaries(folder)
    path, earlier = Path(folder) / name, []
    with contextlib.suppress(UserError, KeyError, TypeError):  # none, or a damaged one
        old = read_json(path)
        kept = {key: old[key] for key in ("command", "code_version", "started")}
        earlier = [*old.get("earlier_runs", []), kept]
    atomic_write_json(path, describe_run(config) | {"earlier_runs": earlier})


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
    totals = "".join(f"\n{count} {status}" for status, count in counts.items())
    log(aligned(lines_of(rows)) + totals, lines=True)
    if folder is not None:
        sweep_temporaries(folder)  # what a run left that was killed right here
        atomic_write_json(Path(folder) / f"{name}.json", rows := publishable(rows))  # files travel
        atomic_write_text(Path(folder) / f"{name}.txt", aligned(lines_of(rows)) + totals + "\n")
    return code
