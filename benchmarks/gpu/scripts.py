"""Sampling, extraction, recogniser training and the tests, on the device."""

import os
import shutil
import statistics
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import extraction, fr_training, sampling
from benchmarks.gpu.card import Operations, share_of_ceiling
from benchmarks.literal import sample_literally
from benchmarks.measure import alternate, describe_runs, synchronise
from utils.run_record import PROJECT_ROOT

# By size: (images of a batch, images of a set, how the LoRA is in the network).
SETS = {
    "sd21": ((1, 3, "auto"), (8, 16, "auto"), (21, 42, "auto"), (42, 84, "auto"), (42, 84, "fused")),
    "tiny": ((1, 1, "auto"), (3, 6, "fused")),
}
STEPS = {"sd21": 30, "tiny": 2}
FEW = {"sd21": 2, "tiny": 1}  # images of the published way, which makes one at a time


class Sampling:
    """A base model of random weights and a LoRA, and images as the scripts make them, files included."""

    def __init__(self, run, **changes):
        self.run, self.folder, self.counted = run, run.folder / run.record.stage, Operations(run.size)
        most = max(images for _, images, _ in SETS[run.size])
        options = sampling.SamplingBenchmark(run.size, run.device, "bf16", people=1, images=most)
        config = sampling.make_config(options, self.folder)
        self.config = replace(config, steps=STEPS[run.size], **changes)
        self.base = sampling.own_base(config, options)
        sampling.write_random_loras(self.folder, self.base.unet, 1)

    def published(self, load, count):
        """One call per image."""
        plan, config = sampling.make_plan(self.config), self.config
        [unit] = plan.units
        items = plan.items(unit)[:count]
        seconds = timed(
            self.run, lambda: sample_literally(load, str(unit.lora), items, config.steps, config.guidance)
        )
        shutil.rmtree(self.folder / "samples")
        self.record("published", 1, count, seconds)

    def ours(self, sampler, batch, images, mode, way="ours"):
        """Batches, after a first one of a few steps."""
        own, output = (
            replace(self.config, prompt_set=str(images), batch_size=batch, lora_mode=mode),
            "samples",
        )
        first = replace(own, prompt_set=str(batch), steps=2)
        sampling.sample_set(sampler, first, self.folder / output)
        seconds = timed(self.run, lambda: sampling.sample_set(sampler, own, self.folder / output))
        self.record(f"{way}, LoRA {mode}", batch, images, seconds)

    def record(self, way, batch, images, seconds):
        """Keep how long so many images took."""
        rate = self.counted.image(self.config.steps) * images / seconds
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.run.device == "cuda" else None
        fields = {"images_per_s": images / seconds, "s_per_image": seconds / images, "peak_gib": peak}
        self.run.record(way=way, batch=batch, images=images, **fields, **share_of_ceiling(self.run, rate))


def measure_sampling(run):
    """Stage: one call each as published, before and after ours in batches."""
    made, few = Sampling(run), FEW[run.size]
    load = sampling.published_loader(made.config, made.base)
    sampler = sampling.make_sampler(made.config, made.base)
    made.published(load, 1)  # warms up; the next one is the one to read
    made.published(load, few)
    for batch, images, mode in SETS[run.size]:
        made.ours(sampler, batch, images, mode)
    made.published(load, few)


def measure_compiled_sampling(run):
    """Stage: the largest batch with compiled blocks, which take a minute at first."""
    made = Sampling(run, compile_unet=True)
    batch, images, _ = SETS[run.size][-1]
    made.ours(sampling.make_sampler(made.config, made.base), batch, images, "fused", "ours, compiled")


def timed(run, function):
    """Seconds of a call, the device's work included."""
    synchronise(run.device)
    started = time.perf_counter()
    function()
    synchronise(run.device)
    return time.perf_counter() - started


def measure_extraction(run):
    """Stage: photos to embeddings, the detector where onnxruntime can run it."""
    photos, different, rounds = (256, 16, 2) if run.size == "sd21" else (8, 4, 1)
    options = extraction.ExtractionBenchmark(
        "sd21" if run.size == "sd21" else "mini", run.device, photos, different, rounds, workers=4
    )
    ways, provider = extraction.prepare(options, run.folder / "extraction")
    for name, found in alternate(ways, rounds, 1, run.device).items():
        seconds = describe_runs(found)["seconds"] / photos
        run.record(way=extraction.WAYS[name], photos_per_s=1 / seconds, detector=provider)


def measure_recogniser(run):
    """Stage: epochs of a recogniser's training beside the network alone."""
    large = run.size == "sd21"
    options = fr_training.FRBenchmark(
        geometry="sd21" if large else "mini",
        device=run.device,
        precision="bf16" if large else "fp32",
        people=64 if large else 4,
        crops_each=40 if large else 8,
        different=2 if large else 1,
    )
    folder, count = run.folder / "recogniser", options.people * options.crops_each
    fr_training.write_crops(options, folder / "crops")
    ways = fr_training.make_ways(options, folder)
    literal = {"literal": ways.pop("literal")}
    runs = alternate(ways, 3 if large else 1, 1, run.device)
    floor = statistics.median(seconds for seconds, _ in runs["floor"])
    for name, found in (runs | alternate(literal, 1, 0, run.device)).items():
        seconds = statistics.median(seconds for seconds, _ in found)
        run.record(
            way=fr_training.WAYS[name],
            images_per_s=count / seconds,
            ms_per_image=1e3 * seconds / count,
            times_bare_network=seconds / floor,
            spread=f"{min(found)[0]:.3f} to {max(found)[0]:.3f} s",
        )


# -------------------------------------------------------------------------------------------- tests


class Outcomes:
    """pytest plugin that records each test as soon as it has ended."""

    def __init__(self, record):
        self.record = record

    def pytest_runtest_logreport(self, report):
        """Keep the outcome of a test, or of a setup that failed or skipped it."""
        if report.when == "call" or report.outcome != "passed":
            reason = "" if report.passed else str(report.longrepr)[-300:]
            name = report.nodeid.partition("::")[2]
            self.record(test=name, outcome=report.outcome, seconds=report.duration, reason=reason)


def run_short_tests(run):
    """Stage: the tests that tell most, first."""
    run_tests(run, "short")


def run_other_tests(run):
    """Stage: the rest of them."""
    run_tests(run, "not short")


def run_tests(run, marked):
    """tests/test_gpu.py, the tests with a mark or without."""
    arguments = ["-m", marked, "-p", "no:cacheprovider", "--tb=short", f"--rootdir={PROJECT_ROOT}"]
    os.environ["GPU_TESTS_DEVICE"] = run.device
    code = pytest.main([str(PROJECT_ROOT / "tests/test_gpu.py"), *arguments], [Outcomes(run.record)])
    run.record(test=f"all marked {marked}", outcome="passed" if code == 0 else f"exit code {int(code)}")
