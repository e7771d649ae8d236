"""Files that appear whole or not at all, and content hashes."""

import codecs
import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from pathlib import Path

from utils.errors import UserError, one_line
from utils.outputs import group_bits, guard, make_folder, trouble_named

# What atomic_path calls its temporary files and folders: name, machine, process, random digits.
TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.(?:tmp|old)$")


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside ``path``; it becomes ``path`` only if the block ends well.

    Works for files and folders (a folder replaces an older folder of that name). A rewritten file keeps its
    permissions. A full disk or a place that may not be written ends in a UserError and leaves nothing
    half-written behind; so does a link (``utils.outputs``).
    """
    path = Path(path)
    with trouble_named(path):
        make_folder(path.parent)
        guard(path)
        temporary = temporary_beside(path)
        try:
            yield temporary
            set_permissions(temporary, path)
            if temporary.is_dir() and path.is_dir():
                swap_folders(temporary, path)
            else:
                temporary.replace(path)
        finally:
            remove(temporary)


def temporary_beside(path):
    """A name that nobody can foresee; with machine and process, so that what a kill leaves can be swept."""
    writer = f"{sha256_bytes(host().encode())[:8]}-{os.getpid()}-{secrets.token_hex(8)}"
    return path.parent / f".{path.name[:40]}.{writer}.tmp"


def set_permissions(new, old):
    """Give a new file or folder the permissions of the one it replaces, or of its group's folder."""
    if old.is_file() and new.is_file():
        return new.chmod(stat.S_IMODE(old.stat().st_mode))
    if group_bits(old.parent, 0o060):
        for path in [new, *(new.rglob("*") if new.is_dir() else ())]:
            path.chmod(path.stat().st_mode | (0o070 if path.is_dir() else 0o060))


def swap_folders(new, old):
    """Put a folder in the place of another, in one step where the system can, so that a kill loses neither.

    Linux' renameat2 with RENAME_EXCHANGE; elsewhere (some network disks) two renames.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here = -100  # AT_FDCWD: paths are relative to the working folder
    if renameat2 and renameat2(here, os.fsencode(new), here, os.fsencode(old), 2) == 0:
        return
    aside = new.with_suffix(".old")
    remove(aside)
    old.rename(aside)
    new.rename(old)
    remove(aside)


def sweep_temporaries(folder):
    """Remove what killed writers have left in ``folder``: of dead processes here, of others after a day."""
    guard(folder)
    for path in Path(folder).glob(".*"):
        parts = TEMPORARY.search(path.name)
        if not parts or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            if parts[1] == sha256_bytes(host().encode())[:8]:
                gone = process_start(int(parts[2])) is None
            else:
                gone = time.time() - path.stat().st_mtime > 86400
            if gone:
                remove(path)


@functools.cache
def host():
    """Machine, boot and process number space: process numbers are compared only where they mean the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process_start(pid):
    """When a process began, in ticks since boot; 0 where this user cannot see it; None when it is gone."""
    try:
        stat_line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # no /proc, or one that hides the processes of others
        return 0 if still_there(pid) else None
    fields = stat_line.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def still_there(pid):
    """Whether a process exists, by a signal that does nothing."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def check_folder_name(name, reserved=()):
    """Refuse names that would leave their folder, or are ``reserved`` for folders of our own."""
    unusual = not name.isprintable() or len(name.encode("utf-8", "replace")) > 200
    if not name or name.startswith(".") or "/" in name or "\\" in name or name in reserved or unusual:
        raise UserError(f"{name!r}: not usable as a folder name; give a plain name")


def remove(path):
    """Delete a file or a folder if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def atomic_write_bytes(path, data):
    """Write ``data`` (bytes) to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path, text):
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path, value):
    """Write ``value`` as indented JSON to ``path``, whole or not at all."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path):
    """The text of a regular file in UTF-8, UTF-16 or the encoding of Windows; UserError if it is none."""
    if not os.path.isfile(path):  # a pipe would never end
        raise UserError(f"{path}: not found")
    try:
        data = Path(path).read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode("utf-8-sig")
        return data.decode("cp1252")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
    except ValueError as error:
        raise UserError(f"{path}: not readable as text ({one_line(error)}); save it as UTF-8") from error


def read_json(path):
    """The value in a JSON file; UserError when it is missing, no regular file, or broken."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); mend or delete it") from None


def sha256_bytes(data):
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path):
    """Hexadecimal SHA-256 of a regular file's content; FileNotFoundError for anything else."""
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
