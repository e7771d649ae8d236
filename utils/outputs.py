"""What we may write, replace, delete and follow: the one place that decides.

A script opens each folder that it writes into. Below it nothing is written through a link, and a file that we
did not write is never replaced or deleted. OUTPUT/.batch/ours.json names what is ours at the top of a folder;
further down a run's record, a faces.json or a picture's own record says it.
"""

import contextlib
import errno
import json
import os
import stat
from pathlib import Path

from utils.errors import UserError

FOLDER, OURS = ".batch", "ours.json"
# What systems and editors leave in any folder; a folder that holds nothing else is empty.
JUNK = {".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX", ".directory", FOLDER}
opened = []  # absolute paths of the folders that this process writes into


def open_output(folder, names, sources=(), shared=False, write=True):
    """Take a folder for output: new, empty, or ours from an earlier run.

    Args:
        folder: the output folder.
        names: file names that the script writes at its top.
        sources: folders that are read; the output must lie neither in nor around one of them.
        shared: the folder holds a user's own files too (photos, class images); then only ``names`` must not
            be somebody else's.
        write: False only checks: for a dry run, and for further processes of a launch.

    Raises:
        UserError: the folder is not ours, overlaps a source, is a file or cannot be written.
    """
    folder = absolute(folder)
    for source in filter(None, sources):
        refuse_overlap(folder, absolute(source))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the output")
    own = read_own(folder)
    present = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
    others = [name for name in present if name not in JUNK and not name.startswith("._")]
    if not shared and own is None and others:
        raise UserError(
            f"{folder}: holds files that this project did not write ({sorted(others)[0]!r}); name a new or "
            "empty folder for the output"
        )
    foreign = [name for name in names if name in present and name not in (own or ())]
    if foreign:
        raise UserError(f"{folder / foreign[0]}: was not written by this project; move it away or rename it")
    opened.append(folder)
    if write and (own is None or not set(names) <= set(own)):
        note_own(folder, {*(own or ()), *names})


def absolute(path):
    """An absolute path without "." and "..", links left as they are."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def refuse_overlap(folder, source):
    """UserError when one of two folders is the other, or lies in it, links followed."""
    first, second = folder.resolve(), source.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise UserError(f"{folder}: overlaps {source}, which is read from; name another output folder")


def read_own(folder):
    """Names that are ours at the top of a folder; None where we have not written yet."""
    path, names = folder / FOLDER / OURS, None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        guard(path, folder)
        names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def note_own(folder, names):
    """Say in a folder which names at its top are ours."""
    from utils.files import atomic_write_json  # which goes through this module

    atomic_write_json(folder / FOLDER / OURS, sorted(names))


def guard(path, root=None):
    """Refuse to write where a link of somebody else's would lead us.

    Below an opened folder (or ``root``) nothing on the way to ``path`` may be a link, nor ``path`` itself;
    elsewhere ``path`` may not be a link to a file. The opened folder itself may: that is the user's choice.
    """
    path = absolute(path)
    roots = [root] if root else [folder for folder in opened if path.is_relative_to(folder)]
    if not roots:
        places = [] if path.is_dir() else [path]
    else:
        root = max(roots, key=lambda folder: len(folder.parts))
        places = [place for place in (*reversed(path.parents), path) if place.is_relative_to(root)][1:]
    for place in places:
        if place.is_symlink():
            raise UserError(f"{place}: is a link, and nothing is written through links; replace or remove it")


@contextlib.contextmanager
def trouble_named(path):
    """Turn what the system says in the block (disk full, not permitted, ...) into a UserError on the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space and run the command again") from error
        if error.errno:  # a library that cannot write something gives none
            raise UserError(f"{path}: cannot be written ({error.strerror}); name another place") from error
        raise


def make_folder(folder):
    """Make a folder and those above it; in a folder shared by a group, for the group."""
    folder = Path(folder)
    with trouble_named(folder), contextlib.suppress(FileExistsError):
        guard(folder)
        if folder.is_dir():
            return
        make_folder(folder.parent)
        folder.mkdir()
        os.chmod(folder, folder.stat().st_mode | group_bits(folder.parent, 0o070))


def group_bits(folder, bits):
    """``bits`` where a folder belongs to a group that may write in it (setgid), else 0."""
    mode = os.stat(folder).st_mode
    return bits if mode & stat.S_ISGID and mode & stat.S_IWGRP else 0


def open_private(path, flags):
    """A descriptor of a regular file of ours, for appending or locking; never through a link.

    A new file is for its group too. ``flags``: os.O_* beside O_RDWR and O_CREAT; nothing is truncated.
    """
    make_folder(Path(path).parent)
    guard(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
    except FileExistsError:  # os.O_EXCL
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); remove it") from error
    found, bits = os.fstat(descriptor), group_bits(Path(path).parent, 0o060)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is no regular file; remove it")
    if bits and not found.st_size and found.st_uid == os.geteuid():
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | bits)
    return descriptor
