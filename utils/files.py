"""Files that appear whole or not at all, content hashes, and a look at the free disk space."""

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from pathlib import Path

from utils.errors import UserError

# What atomic_path calls its temporary files and folders: name, machine, process, thread.
TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-\d+\.(?:tmp|old)$")


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside ``path``; it becomes ``path`` only if the block ends well.

    Works for files and folders (a folder replaces an older folder of that name). A full disk ends in a
    UserError and leaves nothing half-written behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machine and process are in the name: processes on one shared disk must not meet in one file.
    writer = f"{sha256_bytes(host().encode())[:8]}-{os.getpid()}-{threading.get_ident()}"
    temporary = path.parent / f".{path.name[:40]}.{writer}.tmp"
    remove(temporary)
    try:
        with full_disk_named(path):
            yield temporary
        if temporary.is_dir() and path.is_dir():
            swap_folders(temporary, path)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


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
    for path in Path(folder).glob(".*"):
        parts = TEMPORARY.search(path.name)
        if not parts:
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
    """When a process began, in ticks since boot (0 where there is no /proc); None when it is gone."""
    if not Path("/proc/self/stat").exists():
        return 0 if still_there(pid) else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
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


@contextlib.contextmanager
def full_disk_named(path):
    """Turn "no space left" in the block into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space and run the command again") from error
        raise


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


def read_json(path):
    """The value in a JSON file; UserError when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); mend or delete it") from None


def sha256_bytes(data):
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path):
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def ensure_disk_space(folder, bytes_needed):
    """Refuse with a UserError when the disk under ``folder`` has less than ``bytes_needed`` left."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise UserError(
            f"{folder}: {free / 2**30:.1f} GiB free, the run needs {bytes_needed / 2**30:.1f} GiB; "
            "free some space or choose another output folder"
        )
