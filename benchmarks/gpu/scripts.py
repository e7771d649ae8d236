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

# Of the sizes: images of a batch, images of a set.
BATCHES = {"sd21": ((1, 3), (8, 16), (21, 42), (42, 84)), "tiny": ((1, 1), (3, 6))}
STEPS = {"sd21": 30, "tiny": 2}


def measure_sampling(run):
    """Stage: images as the scripts make them, files included: one call each as published, ours in batches."""
    steps, folder = STEPS[run.size], run.folder / "sampling"
    options = sampling.SamplingBenchmark(
        run.size, run.device, "bf16", people=1, images=max(images for _, images in BATCHES[run.size])
    )
    config = replace(sampling.make_config(options, folder), steps=steps)
    base, counted = sampling.own_base(config, options), Operations(run.size)
    sampling.write_random_loras(folder, base.unet, options.people)
    load = sampling.published_loader(config, base)
    sampler = sampling.make_sampler(config, base)

    output = folder / "samples"

    def published(count):
        [unit] = sampling.make_plan(config).units
        items = sampling.make_plan(config).items(unit)[:count]
        seconds = timed(run, lambda: sample_literally(load, str(unit.lora), items, steps, config.guidance))
        shutil.rmtree(output)
        record_images(run, counted, "published", 1, count, seconds)

    def ours(batch, images):
        own = replace(config, prompt_set=str(images), batch_size=batch)
        sampling.sample_set(sampler, replace(own, prompt_set=str(batch), steps=2), output)  # warms up
        seconds = timed(run, lambda: sampling.sample_set(sampler, own, output))
        record_images(run, counted, "ours", batch, images, seconds)

    few = 2 if run.size == "sd21" else 1
    published(1)  # warms up; the next one is the one to read
    published(few)
    for batch, images in BATCHES[run.size]:
        ours(batch, images)
    published(few)


def record_images(run, counted, way, batch, images, seconds):
    """Keep how long so many images took."""
    rate = counted.image(STEPS[run.size]) * images / seconds
    peak = torch.cuda.max_memory_allocated() / 2**30 if run.device == "cuda" else None
    fields = {"images_per_s": images / seconds, "s_per_image": seconds / images, "peak_gib": peak}
    run.record(way=way, batch=batch, images=images, **fields, **share_of_ceiling(run, rate))


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
