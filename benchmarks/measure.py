"""Times of several ways, measured in alternation; peak memory; results as JSON and as a table."""

import ctypes
import gc
import json
import os
import re
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
# BENCHMARK_CLOCK=cpu, with one thread, on a shared machine: processor time instead of wall-clock time.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = os.environ.get("BENCHMARK_CLOCK", "wall")


def alternate(ways, rounds, warmup=1, device="cpu", block=1):
    """Run every way once per round, in rotating order, so that changing load of the machine affects all
    alike.

    Args:
        ways: dict of name -> function of the round's number; what it returns is kept as the kind of the run
            (None, or anything hashable: runs of different work, such as steps with and without a face).
        rounds: timed rounds; ``warmup`` more come before them.
        device: whose work is waited for. block: runs in a row without waiting in between, timed together.

    Returns:
        dict of name -> list of (seconds of a run, kind of the last), one for each round.
    """
    names, runs = list(ways), {name: [] for name in ways}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            synchronise(device)
            started = CLOCKS[CLOCK]()
            for place in range(block):
                kind = ways[name](max(number, 0) * block + place)
            synchronise(device)
            if number >= 0:
                runs[name].append(((CLOCKS[CLOCK]() - started) / block, kind))
    return runs


def synchronise(device):
    """Wait for the device, where it works beside the CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def describe_runs(runs, shares=None):
    """Expected seconds of a run, their spread, and the number of runs.

    The expected time is the mean of the medians of each kind, weighted by the kind's share: a median over
    runs of two kinds would be the time of the more frequent one.

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
    """Read every weight once, since pages of a memory-mapped file count as resident only when read."""
    for network in networks:
        for tensor in network.state_dict().values():
            tensor.sum()


class PeakMemory:
    """Peak memory within a ``with`` block above what was there before, in MiB, as ``mib``.

    On a GPU what torch allocated there; otherwise the process's resident memory (Linux).
    """

    def __init__(self, device="cpu"):
        self.on_gpu = torch.device(device).type == "cuda"

    def __enter__(self):
        gc.collect()
        if self.on_gpu:
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
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else resident("VmHWM")
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


def speed_rows(figures, ways, what, unit, factor, digits):
    """Table rows that compare the ways with the published one and with the floor.

    Args:
        figures: dict of name -> result of :func:`describe_runs`; "literal" and "floor" are among the names.
        ways: dict of name -> how the table calls it.
        what: heading of the first column.
        unit: heading of the times, such as "ms per photo".
        factor: from seconds of a run to that unit.
        digits: decimal places of the times.
    """
    rows = []
    for name, figure in figures.items():
        low, middle, high = (factor * figure[key] for key in ("low", "seconds", "high"))
        rows.append(
            {
                what: ways[name],
                unit: round(middle, digits),
                "quartiles": f"{low:.{digits}f} to {high:.{digits}f}",
                "times faster than published": round(figures["literal"]["seconds"] / figure["seconds"], 2),
                "times the floor": round(figure["seconds"] / figures["floor"]["seconds"], 2),
            }
        )
    return rows


def check_done(rows):
    """Refuse to report the time of something that failed; ``rows`` as the entry scripts summarise."""
    if not rows or {row["status"] for row in rows} != {"done"}:
        raise RuntimeError(f"not all done: {rows}")


def device_name(device):
    """The device that the work was done on: "cpu", or the name of a card."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"


def machine(device="cpu"):
    """The machine and software that the times depend on."""
    return {
        "device": device_name(device),
        "clock": CLOCK,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def report(name, result, rows, folder=RESULTS, device="cpu"):
    """Print the table; keep result, machine and table in ``folder/name.json``, for a card under its name."""
    print(markdown(lines_of(rows)), flush=True)
    if torch.device(device).type == "cuda":
        name += "_" + re.sub(r"\W+", "_", device_name(device)).lower()
    atomic_write_json(Path(folder) / f"{name}.json", {"machine": machine(device), **result, "table": rows})
