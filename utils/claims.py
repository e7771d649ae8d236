"""Claims on units of work, so that any number of processes and runs share one output folder.

OUTPUT/.batch/{hash}.json says who works on a unit, {hash}.failed.json why its last try failed. A claim ends
with its process: on the same machine when that process is gone; elsewhere, and where one user cannot see the
processes of another, when its heartbeat has been silent for STALE_SECONDS by the file system's own clock, so
clocks that differ between machines do no harm. A process that was only asleep finds its claim taken over
(`held`) and lets the unit go.
"""

import contextlib
import fcntl
import json
import os
import secrets
import threading
import time
from pathlib import Path

from utils.errors import UserError
from utils.files import (
    atomic_write_json,
    host,
    process_start,
    read_json,
    sha256_bytes,
    sweep_temporaries,
    temporary_beside,
)
from utils.outputs import FOLDER, guard, open_private
from utils.progress import log_once
from utils.run_record import publishable

HEARTBEAT_SECONDS = 20
STALE_SECONDS = 600
LOCK_SECONDS = 60  # after which a lock file is taken for left over, where the file system knows no locks


class Claims:
    """The claims of this process below one output folder; a context manager that keeps them alive.

    Args:
        folder: the output folder. run: what the processes of one launch have in common; a unit that failed in
            this run is not tried again by its other processes.
    """

    def __init__(self, folder, run=None):
        self.folder = Path(folder) / FOLDER
        self.run = run or secrets.token_hex(8)
        self.tokens = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True, name="claims")

    def __enter__(self):
        sweep_temporaries(self.folder)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        for unit in list(self.tokens):
            self.release(unit)

    def beat(self):
        """Touch all claims now and then; a full or absent disk must not end the work."""
        while not self.ended.wait(HEARTBEAT_SECONDS):
            for unit in list(self.tokens):
                with contextlib.suppress(OSError):
                    os.utime(self.path(unit))

    def path(self, unit, kind="json"):
        """The file of a unit, whatever characters its name has."""
        return self.folder / f"{sha256_bytes(unit.encode())[:24]}.{kind}"

    # ------------------------------------------------------------------------------------------ claims

    def take(self, unit):
        """Claim a unit; False when a living process has it."""
        if unit in self.tokens:
            return self.held(unit)
        path, token = self.path(unit), secrets.token_hex(8)
        with locked(self.folder / ".lock"):
            guard(path)
            if path.is_dir():
                raise UserError(f"{path}: is a folder where a claim belongs; remove it")
            if path.exists():
                if not is_stale(path):
                    return False
                path.unlink(missing_ok=True)
            claim = {"unit": unit, "token": token, "since": time.time(), **myself()}
            if not create(path, json.dumps(claim)):
                return False
        self.tokens[unit] = token
        return True

    def take_all(self, units):
        """Claim all units or none."""
        for place, unit in enumerate(units):
            if not self.take(unit):
                for taken in units[:place]:
                    self.release(taken)
                return False
        return True

    def held(self, unit):
        """Whether a unit is still ours, to be asked before writing results."""
        return unit in self.tokens and read_claim(self.path(unit)).get("token") == self.tokens[unit]

    def release(self, unit):
        """Give a unit back."""
        if self.held(unit):
            self.path(unit).unlink(missing_ok=True)
        self.tokens.pop(unit, None)

    # ------------------------------------------------------------------------------------------ failures

    def fail(self, unit, reason):
        """Note why a unit failed."""
        entry = {"unit": unit, "run": self.run, "reason": publishable(reason)}
        atomic_write_json(self.path(unit, "failed.json"), entry)

    def succeed(self, unit):
        """Forget an earlier failure."""
        self.path(unit, "failed.json").unlink(missing_ok=True)

    def failed_now(self, unit):
        """The reason when a process of this very run has failed on the unit, else None."""
        entry = read_claim(self.path(unit, "failed.json"))
        return entry.get("reason") if entry.get("run") == self.run else None


def create(path, text):
    """Write a file that is not there yet, whole; False where another process was faster.

    Of two processes one fails, even where locks do not work; without hard links a kill may leave it empty.
    """
    temporary = temporary_beside(path)
    with os.fdopen(open_private(temporary, os.O_EXCL), "w") as stream:
        stream.write(text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # exFAT and many cloud drives know no hard links
        try:
            with os.fdopen(open_private(path, os.O_EXCL), "w") as stream:
                stream.write(text)
        except FileExistsError:
            return False
    finally:
        temporary.unlink()
    return True


def read_claim(path):
    """The content of a claim or failure; {} when there is none or it is damaged."""
    try:
        entry = read_json(path)
    except UserError:
        return {}
    return entry if isinstance(entry, dict) else {}


def read_batch(folder):
    """What happens below an output folder: (living claims, failures), both unit -> entry."""
    living, failed = {}, {}
    for path in sorted((Path(folder) / FOLDER).glob("*.json")):
        entry = read_claim(path)
        if "unit" not in entry:
            continue
        if path.name.endswith(".failed.json"):
            failed[entry["unit"]] = entry
        elif not is_stale(path):
            living[entry["unit"]] = entry
    return living, failed


def myself():
    """What tells this process from every other on any machine, without naming the machine."""
    return {"host": here(), "pid": os.getpid(), "started": process_start(os.getpid())}


def here():
    """A digest that is equal where process numbers mean the same."""
    return sha256_bytes(host().encode())[:16]


def is_stale(path):
    """Whether the process of a claim is gone."""
    owner = read_claim(path)
    if owner.get("host") == here() and isinstance(owner.get("pid"), int) and owner.get("started"):
        started = process_start(owner["pid"])
        if started != 0:  # 0: there is such a process, and this user may not see more of it
            return started != owner["started"]
    try:
        age = file_system_time(path.parent) - path.stat().st_mtime
    except OSError:
        return not path.exists()
    return abs(age) > STALE_SECONDS  # nobody alive dates a claim far into the future


def file_system_time(folder):
    """The clock of the file system, seconds: that of a file server, not of this machine."""
    probe = folder / f".clock.{secrets.token_hex(8)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a folder one may only read
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


# ----------------------------------------------------------------------------------------------- locks


@contextlib.contextmanager
def locked(path):
    """One process at a time, others wait; also where the file system knows no locks."""
    descriptor = open_private(path, 0)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        log_once(f"{Path(path).parent}: this file system knows no locks; lock files are used instead")
        with lock_file(Path(f"{path}.held")):
            yield
    else:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_file(path):
    """Hold a file that only one process can create; one that is left over is taken after LOCK_SECONDS."""
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW))
            break
        except FileExistsError:
            with contextlib.suppress(OSError):
                if file_system_time(path.parent) - path.stat().st_mtime > LOCK_SECONDS:
                    path.unlink()
            time.sleep(0.05)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
