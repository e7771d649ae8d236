"""The card itself: what it is, how fast it multiplies and copies, and what a network asks of it."""

import functools
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version

import onnxruntime
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.results import ceiling
from benchmarks.measure import device_name, synchronise
from benchmarks.sd21_geometry import GEOMETRIES, random_base
from fr_training.networks import build_network
from utils.run_record import PACKAGES, code_version

CARD_FIELDS = (
    "name,driver_version,memory.total,memory.used,power.limit,clocks.sm,clocks.max.sm,temperature.gpu"
)


def describe_card(run):
    """Stage: card, driver, versions."""
    lines = ["no card"]
    if run.device == "cuda":
        command = ["nvidia-smi", f"--query-gpu={CARD_FIELDS}", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
    run.record(what="card", value="; ".join(lines), fields=CARD_FIELDS)
    run.record(what="device", value=device_name(run.device))
    run.record(what="cores", value=str(os.cpu_count()))
    run.record(what="python", value=platform.python_version())
    run.record(what="code", value=code_version())
    run.record(what="detector providers", value=", ".join(onnxruntime.get_available_providers()))
    run.record(what="packages", value=", ".join(f"{name} {version_of(name)}" for name in PACKAGES))
    run.record(what="cuda", value=f"{torch.version.cuda}, cudnn {torch.backends.cudnn.version()}")


def version_of(package):
    """A package's version, or "none"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def measure_ceilings(run):
    """Stage: the rate of a large matrix product on random data, and of a copy on the device."""
    side, size = (8192, 2**31) if run.size == "sd21" else (128, 2**20)
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
        if name == "fp16" and run.device == "cpu":
            continue
        left, right = (torch.randn(side, side, device=run.device, dtype=dtype) for _ in range(2))
        seconds = seconds_of(functools.partial(torch.matmul, left, right), run.device)
        run.record(what=f"matmul {name}", side=side, tera_operations_per_s=2 * side**3 / seconds / 1e12)
    source = torch.randint(0, 255, (size,), device=run.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), run.device)
    run.record(what="copy", mib=size // 2**20, gigabytes_per_s=2 * size / seconds / 1e9)


def seconds_of(function, device, warmup=3, repeats=20):
    """Median seconds of a call, timed on the device."""
    for _ in range(warmup):
        function()
    synchronise(device)
    if device != "cuda":
        return statistics.median(wall_seconds(function) for _ in range(repeats))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    synchronise(device)
    return statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)) / 1e3


def wall_seconds(function):
    """Seconds of one call by the clock."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


# ----------------------------------------------------------------------------------------- operations


class Operations:
    """Operations (two for each multiplication with addition) of the networks of a size, counted on shapes.

    ``unet``, ``encode``, ``text``, ``recogniser``: forward, one item. A backward pass down to the input of a
    frozen layer takes about as many again.
    """

    def __init__(self, size):
        sizes, meta = GEOMETRIES[size], torch.device("meta")
        self.base = random_base(size, torch.float32, meta)
        side = sizes.resolution // self.base.latent_factor
        latents, context = (
            torch.empty(shape, device=meta)
            for shape in ((1, 4, side, side), (1, 77, sizes.unet["cross_attention_dim"]))
        )
        steps = torch.zeros(1, dtype=torch.int64, device=meta)
        self.unet = operations(lambda: self.base.unet(latents, steps, context))
        pixels = torch.empty(1, 3, sizes.resolution, sizes.resolution, device=meta)
        self.encode = operations(lambda: self.base.vae.encode(pixels))
        tokens = torch.zeros(1, 77, dtype=torch.int64, device=meta)
        self.text = operations(lambda: self.base.text_encoder(tokens))
        with FakeTensorMode():  # it asks for autocast, which knows no meta device
            network = build_network(sizes.recogniser, 512).eval()
            self.recogniser = operations(lambda: network(torch.empty(1, 3, 112, 112)))
        self.full = side

    @functools.cache  # noqa: B019  (one object lives as long as its stage)
    def decode(self, height, width):
        """Decoding a window of latents."""
        window = torch.empty(1, 4, height, width, device="meta")
        return operations(lambda: self.base.vae.decode(window))

    def step(self, people, share, windows):
        """A training step of so many people: an instance and a class image each, and identity terms.

        Args:
            share: of the steps in which a person has an identity term.
            windows: (height, width) in latents of each person's decoded window.
        """
        decoded = sum(self.decode(*window) for window in windows) / len(windows)
        return people * (4 * self.unet + 2 * share * (decoded + self.recogniser))

    def published_step(self):
        """The published step of one person: everything computed anew, the whole picture decoded."""
        cached = self.step(1, 1.0, [(self.full, self.full)])
        return cached + 2 * (self.encode + self.text)

    def image(self, steps):
        """An image of so many steps with guidance."""
        return 2 * steps * self.unet + self.decode(self.full, self.full)


@torch.no_grad()
def operations(function):
    """Operations of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def share_of_ceiling(run, operations_per_s):
    """The rate, and its share of the measured bf16 matrix product, as fields of a result."""
    fields, most = {"tera_operations_per_s": operations_per_s / 1e12}, ceiling(run.output)
    return fields | ({"share_of_matmul": operations_per_s / most} if most else {})
