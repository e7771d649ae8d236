"""The processes of one launch (accelerate, torchrun, or one alone): how they begin, share, report."""

import atexit
import os
import secrets
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from utils.config import parse_shard
from utils.errors import Interrupted, UserError
from utils.progress import log

# Processes wait for each other once, at the end; some may have days of work left then.
PATIENCE = timedelta(days=30)
# How many processes there are, as accelerate reads it.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
# Of several rows about one unit, the one of the process that did it counts.
PRECEDENCE = ("done", "failed", "done before", "elsewhere")


def start_processes(cpu):
    """accelerate's PartialState; without ``cpu``, CPU processes of a launcher would not know each other."""
    check_inherited_launch()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    refuse_lonely_launch(state.num_processes)
    return state


def check_inherited_launch():
    """Refuse what shells in a job of Slurm or MPI pass on: variables of a launcher that did not begin this.

    With the address of a master they may be meant, and we wait for the others; one line says so.
    """
    sizes = {name: value for name in SIZES if (value := os.environ.get(name)) not in (None, "", "1")}
    if os.environ.get("LOCAL_RANK") not in (None, "", "-1"):
        sizes["LOCAL_RANK"] = os.environ["LOCAL_RANK"]
    master = os.environ.get("MASTER_ADDR")
    if not sizes or (master and "TORCHELASTIC_RUN_ID" in os.environ):
        return
    said = " ".join(f"{name}={value}" for name, value in sizes.items())
    if not master or not all(map(str.isdecimal, sizes.values())):
        raise UserError(
            f"{said}: set as if by a launcher, but not by one (no MASTER_ADDR); begin with torchrun or "
            f"accelerate launch, or `unset {' '.join(sizes)}` to run alone"
        )
    log(f"{said}: waits for the other processes at {master}; was it begun alone, stop it and unset these")


def refuse_lonely_launch(processes):
    """UserError when accelerate's launcher was asked for several CPU processes and began a single one.

    That is what it does without mpirun (accelerate 1.15); it says the number wanted only by naming a port.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if processes == 1 and on_cpu and "MASTER_PORT" in os.environ:
        raise UserError(
            "accelerate launch --cpu: began one process, though more were asked for; it needs mpirun and "
            "--mpirun_hostfile. Use torchrun --standalone --nproc_per_node 2 instead"
        )


def run_token(state):
    """A random word that all processes of this launch have in common."""
    words = [secrets.token_hex(8)]
    if state.num_processes > 1:
        broadcast_object_list(words)
    return words[0]


def gather_rows(rows, keys):
    """The summary rows of all processes, one for each unit (the fields ``keys``), in the order first met."""
    best = {}
    for row in gather_object(rows) if PartialState().num_processes > 1 else rows:
        unit = tuple(row[key] for key in keys)
        if unit not in best or rank(row) < rank(best[unit]):
            best[unit] = row
    return list(best.values())


def rank(row):
    """Place of a row's status in PRECEDENCE."""
    return PRECEDENCE.index(row["status"]) if row["status"] in PRECEDENCE else len(PRECEDENCE)


def summary_name(config):
    """File name of a run's summary; parts of a job array must not overwrite each other's."""
    number, count = parse_shard(config.shard)
    return "summary" if count == 1 else f"summary-{number}-of-{count}"


def record_names(config):
    """Names of the files that a run writes at the top of its output folder."""
    return ["run.json", f"{summary_name(config)}.json", f"{summary_name(config)}.txt"]


def leave_together(code):
    """The main process's exit code, for all processes, once all are here.

    A launcher ends the others as soon as one leaves with an error, whatever they still have to write. Who has
    nothing to write any more leaves with the code, even so.
    """
    codes, state = [code], PartialState()
    if state.num_processes > 1:
        broadcast_object_list(codes)
        state.wait_for_everyone()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        state.destroy_process_group()
        atexit.register(end_at_once, codes[0])
    return codes[0]


def end_at_once(code):
    """End the process without Python's clearing up, in which torch's threads abort now and then (code -6)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work_order(groups, index, count):
    """The order in which process ``index`` of ``count`` tries all units: its own first, then those of others.

    Args:
        groups: list of lists of units; group g belongs to process g modulo count. The units of other
            processes come in reverse order: a process that is finished early starts with those that their
            owner would reach last.
    """
    own = [unit for group in groups[index::count] for unit in group]
    rest = [unit for number, group in enumerate(groups) if number % count != index for unit in group]
    return own + rest[::-1]


def go_over(units, do):
    """The rows of ``do(unit)`` for all units; units that other processes hold are tried again at the end.

    So a unit whose process died meanwhile is done by another one. Units that are still held then are left to
    the processes that hold them.
    """
    rows, left = [], list(units)
    while left:
        results = [(unit, do(unit)) for unit in left]
        held = [unit for unit, found in results if any(row["status"] == "elsewhere" for row in found)]
        rows += [row for _, found in results for row in found]
        left = held if len(held) < len(left) else []
    return rows


def leave_on_signals():
    """SIGTERM and SIGINT end the script as Interrupted; what is finished stays."""

    def leave(*_):
        raise Interrupted("asked to stop")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def make_deterministic():
    """Let torch use only algorithms that give the same bits every time; before the first CUDA call."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


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
