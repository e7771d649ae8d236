"""Times side by side, peak memory of one way at a time, results as JSON and as a table."""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from utils.files import atomic_write_json
from utils.run_record import PROJECT_ROOT
from utils.text_tables import lines_of, markdown

RESULTS = PROJECT_ROOT / "benchmarks/results"
# BENCHMARK_CLOCK=cpu, with one thread, where others use the machine: time on the processor, no waiting.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = os.environ.get("BENCHMARK_CLOCK", "wall")


def alternate(ways, rounds, warmup=1):
    """Run every way once per round, in an order that rotates, so that a slow minute hits them all.

    Args:
        ways: dict of name -> function of the round's number; what it returns is kept as the kind of the run
            (None, or anything hashable: runs of different work, such as steps with and without a face).
        rounds: how many count; ``warmup`` more come before them.

    Returns:
        dict of name -> list of (seconds, kind), one for each round.
    """
    names, runs = list(ways), {name: [] for name in ways}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            synchronise()
            started = CLOCKS[CLOCK]()
            kind = ways[name](max(number, 0))
            synchronise()
            if number >= 0:
                runs[name].append((CLOCKS[CLOCK]() - started, kind))
    return runs


def synchronise():
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe_runs(runs, shares=None):
    """What runs took: expected seconds, their spread, and how many there were.

    The expected time weights the median of each kind with its share, since a median over runs of two kinds
    is the time of the more frequent one.

    Args:
        runs: list of (seconds, kind). shares: dict of kind -> probability; None takes those of the runs.

    Returns:
        dict: seconds, low and high (quartiles around the median of each kind, weighted likewise), runs.
    """
    by_kind = {}
    for seconds, kind in runs:
        by_kind.setdefault(kind, []).append(seconds)
    shares = shares or {kind: len(values) / len(runs) for kind, values in by_kind.items()}
    total = sum(shares[kind] for kind in by_kind)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"no run of some kind: shares {shares}, kinds {list(by_kind)}")
    figures = {"seconds": 0.0, "low": 0.0, "high": 0.0}
    for kind, values in by_kind.items():
        for name, value in zip(("low", "seconds", "high"), quartiles(values), strict=True):
            figures[name] += shares[kind] * value
    return {**{name: round(value, 6) for name, value in figures.items()}, "runs": len(runs)}


def quartiles(values):
    """First quartile, median, third quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def read_weights(*networks):
    """Read every weight once: of a file that is mapped into memory only what was read counts as resident."""
    for network in networks:
        for tensor in network.state_dict().values():
            tensor.sum()


class PeakMemory:
    """Peak memory within a ``with`` block above what was there before, in MiB, as ``mib``.

    On the GPU what torch allocated; otherwise the process's resident memory (Linux).
    """

    def __enter__(self):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            # Freed pages go back to the system, and the kernel forgets the old peak.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = resident("VmRSS")
        return self

    def __exit__(self, *_):
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM")
        self.mib = round((peak - self.before) / 2**20, 1)


def resident(field):
    """A memory field of this process's status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: no {field}")


def in_own_process(module, *arguments):
    """Run ``python -m module arguments`` and return the JSON on the last line it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, cwd=PROJECT_ROOT, check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(result.stdout.strip().splitlines()[-1])


def check_done(rows):
    """Refuse to report the time of something that failed; ``rows`` as the entry scripts summarise."""
    if not rows or {row["status"] for row in rows} != {"done"}:
        raise RuntimeError(f"not all done: {rows}")


def machine():
    """What the times depend on, besides the code."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "clock": CLOCK,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def report(name, result, rows, folder=RESULTS):
    """Print the table and keep result, machine and table in ``folder/name.json``."""
    print(markdown(lines_of(rows)), flush=True)
    atomic_write_json(Path(folder) / f"{name}.json", {"machine": machine(), **result, "table": rows})
