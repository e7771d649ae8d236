"""All measurements on one GPU within a few minutes, in order of worth.

    python -m benchmarks.gpu --output runs/gpu                       on the card, seven minutes at most
    python -m benchmarks.gpu --device cpu --size tiny --output F     the same on a CPU, with tiny networks
    python -m benchmarks.gpu --report F                              the table of an earlier run

Each stage is a process of its own with a limit of its own: what fails or hangs costs itself alone. Results
go to OUTPUT/gpu.jsonl as they come, what stages print to OUTPUT/stages.log, the table to OUTPUT/summary.md.
Stages are forked, since loading the libraries takes longer than many of them; so nothing here may touch the
card, and where a library did, a stage starts anew from its command line.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

# Before torch is asked whether there is a card: asked in the usual way, it could not be used after a fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import psutil
import torch

from benchmarks.gpu import card, scripts, steps
from benchmarks.gpu.results import Record, report
from benchmarks.sd21_geometry import make_photos
from utils.errors import UserError

MOST_LOG = 4 * 2**20
LEAST = 5  # seconds that are worth starting a stage for
GRACE = 3


def prepare(run):
    """Stage: photos of noise and a loss network, which the stages share."""
    make_photos(run.folder, run.size, max(steps.COHORTS[run.size]))


# Name, function, most seconds; in order of worth.
STAGES = {
    "card": (card.describe_card, 30),
    "ceilings": (card.measure_ceilings, 40),
    "prepare": (prepare, 60),
    "step": (steps.measure_steps, 110),
    "tests": (scripts.run_short_tests, 70),
    "sampling": (scripts.measure_sampling, 75),
    "memory": (steps.measure_memory, 80),
    "extraction": (scripts.measure_extraction, 40),
    "recogniser": (scripts.measure_recogniser, 40),
    "deterministic": (steps.measure_deterministic, 40),
    "compiled": (steps.measure_compiled, 110),
    "compiled sampling": (scripts.measure_compiled_sampling, 80),
    "other tests": (scripts.run_other_tests, 120),
}


@dataclass
class GpuBenchmark:
    """What to measure, and for how long."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cuda; cpu proves the measurements themselves."""
    size: Literal["sd21", "tiny"] = "sd21"
    """Stable Diffusion 2.1's size, or a tiny one."""
    minutes: float = 7.0
    """All of it ends within so many minutes."""
    output: Path = Path("runs/gpu")
    """Where results go."""
    stages: tuple[str, ...] = ()
    """Only these stages; empty means all."""
    report: Path | None = None
    """Print the table of the results in this folder, and measure nothing."""


@dataclass
class Run:
    """What a stage gets: where it works, where it writes, and how it records."""

    device: str
    size: str
    output: Path
    folder: Path
    record: Record = field(default=None)

    def in_child(self, function, *arguments):
        """Call ``function(self, ...)`` in a process of its own; this one must not have used the card."""
        code = wait(fork(function, self, *arguments), 10**6)
        if code:
            self.record(part=getattr(function, "__name__", ""), status=f"failed, exit code {code}")


def main():
    """Run the stages, then print the table."""
    options = tyro.cli(GpuBenchmark, description=__doc__)
    if options.report:
        return report(options.report)
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        raise UserError(f"--stages: no {unknown[0]!r}; there are {', '.join(STAGES)}")
    if folder := os.environ.pop("GPU_STAGE_FOLDER", None):  # see start_anew
        [name] = options.stages
        given = (options.device, options.size, options.output, Path(folder), Record(options.output, name))
        return STAGES[name][0](Run(*given))
    # From the start of the process: loading the libraries took its time too. Not every system knows it.
    loading = min(60.0, max(0.0, time.time() - psutil.Process().create_time()))
    deadline = time.monotonic() + 60 * options.minutes - loading
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.stages or STAGES:
            stage(name, options, Path(folder), deadline)
    return report(options.output)


def stage(name, options, folder, deadline):
    """Run a stage in a process of its own, as long as it may; what became of it is a result too."""
    function, most = STAGES[name]
    run = Run(options.device, options.size, options.output, folder, Record(options.output, name))
    limit = min(most, deadline - time.monotonic() - GRACE)
    if limit < LEAST:
        return run.record(status="left out: no time")
    started = time.monotonic()
    code = wait(fork(function, run, log=options.output / "stages.log"), limit)
    status = {0: "done", -signal.SIGKILL: f"stopped after {limit:.0f} s"}.get(
        code, f"failed, exit code {code}"
    )
    run.record(status=status, seconds=time.monotonic() - started)
    shorten(options.output / "stages.log")
    return None


def fork(function, run, *arguments, log=None):
    """Call ``function(run, ...)`` in a child process, in a group of its own where it logs; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if log is not None:
            os.setpgid(0, 0)
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        print(f"\n===== {run.record.stage} =====", flush=True)
        if run.device == "cuda" and torch.cuda._is_in_bad_fork():
            start_anew(run)
        function(run, *arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_anew(run):
    """Become a fresh process that runs the same stage."""
    words = ["--device", run.device, "--size", run.size, "--output", run.output, "--stages", run.record.stage]
    os.environ["GPU_STAGE_FOLDER"] = str(run.folder)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *map(str, words)])


def wait(pid, seconds):
    """The exit code of a child; after so many seconds it is killed with all that it started."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.05)


def shorten(path):
    """Keep the last part of a log that has grown beyond what is brought home."""
    if path.stat().st_size > MOST_LOG:
        path.write_bytes(path.read_bytes()[-MOST_LOG // 2 :])
