"""A training step: the published way, the published recipe with caches, the fast recipe, and the bare UNet.

    python -m benchmarks.train_step                              the miniature world
    python -m benchmarks.train_step --cohort 8                   the same, and eight identities in one batch
    python -m benchmarks.train_step --geometry sd21 --rounds 4   SD 2.1's size, random weights, 15 GiB
    python -m benchmarks.train_step --geometry sd21 --device cuda --precision bf16

All ways take the same pictures, noise and timesteps, which are evenly spaced over the whole range; the
learning rate is 0, so that weights stay the same and losses can be compared. The floor is the UNet alone,
without adapters, on the same two items: forward, and backward down to the first adapter. On a CPU everything
is float32 by default: without bf16 matmuls, bf16 is emulated a hundred times slower. With --precision bf16
the published way on a GPU is in float16, as its users run it (benchmarks/literal.py). With SD 2.1's random
weights the detector is told where the photo's face is; the published way then has an identity term at each
step, whereas in practice the detector finds no face in most noisy predictions.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.train_step")

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro

from benchmarks.literal import LiteralStep, copy_adapter
from benchmarks.measure import (
    CLOCK,
    CLOCKS,
    PeakMemory,
    alternate,
    describe_runs,
    in_own_process,
    read_weights,
    report,
    speed_rows,
)
from benchmarks.settings import FAST, PUBLISHED, by_recipe, make_cohort, make_fine_tuning, make_setting
from configs.train_config import TrainConfig
from id_booth.training.cohort import TERMS, Cohort, identity_probability
from utils.errors import run

WAYS = {
    "literal": "published way",
    "cached": "published recipe, cached",
    "fast": "fast recipe",
    "floor": "UNet alone",
    "one by one": "fast, one by one",
    "cohort": "fast, one batch",
}
# Timesteps at SD 2.1's size, where few steps are affordable; shares of the kinds are then set, not counted.
FEW_TIMESTEPS = (100, 900, 300, 500)


@dataclass
class StepBenchmark:
    """What to measure."""

    geometry: Literal["mini", "sd21", "tiny"] = "mini"
    """The miniature world, SD 2.1's size with random weights, or a tiny network of the same form."""
    device: str = "cpu"
    """cpu or cuda; what is not there is refused."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the frozen networks; the published way is in fp16 on a GPU unless this is fp32."""
    rounds: int = 40
    """Steps of each way that are timed."""
    cohort: int = 0
    """Also train so many identities in one batch (miniature only)."""
    only: str = ""
    """Run this way once and print its peak memory above the networks' (used by the benchmark itself)."""
    memory: bool = True
    """Measure peak memory, each way in a process of its own."""
    recompute: Literal["", "unet", "decoder", "both"] = ""
    """With ``only``: gradient checkpointing of these networks."""
    memory_options: bool = False
    """Measure the fast recipe's memory and time with gradient checkpointing too."""
    folder: str = ""
    """Where pictures and base model are, or go; a temporary folder when empty."""


class EvenSteps(Cohort):
    """A cohort with evenly spaced timesteps instead of random ones."""

    points = ()

    def draw(self, micro_step):
        """The draws of a step, with timesteps from the points in turn."""
        batch = super().draw(micro_step)
        places = [(micro_step + item) % len(self.points) for item in range(len(batch.timesteps))]
        batch.timesteps = torch.tensor([self.points[place] for place in places])
        return batch


def main():
    """Make the setting, run all ways, report."""
    options = tyro.cli(StepBenchmark, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        given = (max(1, options.cohort), 4, 16, options.device, options.precision)
        config = make_setting(folder, options.geometry, *given)
        config = replace(
            config,
            learning_rate=0.0,
            gradient_checkpointing=options.recompute in ("unet", "both"),
            vae_gradient_checkpointing=options.recompute in ("decoder", "both"),
        )
        if options.only:
            return print_peak(build_ways(options, config)[options.only], options)
        # Before this process loads the networks too.
        names = [name for name in WAYS if options.cohort or name not in ("one by one", "cohort")]
        memory = {name: peak_of(name, options, folder) for name in names if options.memory}
        memory_options = {
            mode or "nothing": peak_of("fast", options, folder, mode)
            for mode in ("", "unet", "decoder", "both")
            if options.memory_options
        }
        losses = {name: [] for name in names}
        ways = {name: observed(way, losses[name]) for name, way in build_ways(options, config).items()}
        warmup = 0 if options.device == "cpu" else 2
        runs = alternate(ways, options.rounds, warmup, options.device)
        differences = loss_differences(losses["literal"], losses["cached"])
    report_steps(options, runs, memory, memory_options, differences)


def print_peak(way, options):
    """Run a step or two; print their peak memory in MiB, and the seconds of the last."""
    with PeakMemory(options.device) as peak:
        for number in range(2 if options.geometry == "mini" else 1):
            started = CLOCKS[CLOCK]()
            way(number)
    print(json.dumps({"mib": peak.mib, "seconds": round(CLOCKS[CLOCK]() - started, 3)}))


def peak_of(name, options, folder, recompute=""):
    """Peak memory of a way above the networks', MiB, and a step's seconds, from a process of its own."""
    given = {"only": name, "folder": folder}
    given |= {key: getattr(options, key) for key in ("geometry", "cohort", "device", "precision")}
    arguments = [word for key, value in given.items() for word in (f"--{key}", value)]
    arguments += ["--recompute", recompute] if recompute else []
    return in_own_process("benchmarks.train_step", *arguments)


# ------------------------------------------------------------------------------------------------- the ways


def build_ways(options, config):
    """dict of name -> function of the step's number that returns its losses, (4,), or None."""
    fine_tuning, photos = make_fine_tuning(replace(config, **FAST), options.geometry)
    EvenSteps.points = spread_points(options.rounds) if options.geometry == "mini" else FEW_TIMESTEPS
    fine_tuning.models.set_cohort_size(1)
    published, boxes = by_recipe(fine_tuning, replace(config, **PUBLISHED))
    cached = make_cohort(published, boxes[:1], EvenSteps)
    ways = {
        "literal": literal_way(published, boxes[0], cached),
        "cached": our_way(cached),
        "fast": our_way(make_cohort(fine_tuning, photos[:1], EvenSteps)),
        "floor": lambda number: floor_step(cached, number),
    }
    fill_adapters(fine_tuning.models.adapters)
    if options.cohort:
        ways |= cohort_ways(options, fine_tuning, photos)
    models = fine_tuning.models
    read_weights(models.unet, models.vae, models.base.text_encoder, fine_tuning.branch.recogniser)
    return ways


def cohort_ways(options, fine_tuning, photos):
    """The identities one after another, and all in one batch (networks of their own: other adapters)."""
    alone = [our_way(make_cohort(fine_tuning, [one], EvenSteps)) for one in photos]
    shared, photos = make_fine_tuning(fine_tuning.config, options.geometry)
    shared.models.set_cohort_size(len(photos))
    together = make_cohort(shared, photos, EvenSteps)

    def one_by_one(number):
        for step in alone:
            step(number)

    def one_batch(number):
        together.step(number)[0].tolist()

    return {"one by one": one_by_one, "cohort": one_batch}


def our_way(cohort):
    """Steps of a cohort of one as a function of the number."""
    return lambda number: cohort.step(number)[0][0].tolist()


def literal_way(fine_tuning, photos, cohort):
    """Steps of the published way on the cohort's draws; the LoRA takes the stacked one's weights."""
    literal = LiteralStep(fine_tuning, photos)

    def step(number):
        if number == 0:
            copy_adapter(literal.unet, fine_tuning.models.lora["unet"])
        return literal.step(cohort.draw(number))

    return step


def floor_step(cohort, number):
    """The UNet without adapters on the items of a step: forward, and backward down to the first adapter."""
    models, batch = cohort.models, cohort.draw(number)
    noise = batch.noise.to(models.device, models.dtype)
    first = next(iter(models.lora["unet"].values())).base.weight.requires_grad_()
    with models.adapter(None):
        timesteps, conditioning = batch.timesteps.to(models.device), models.conditioning.unet_arguments()
        output = models.unet(noise, timesteps, **conditioning).sample
    F.mse_loss(output, noise.flip(0)).backward()
    first.requires_grad_(False).grad = None


def spread_points(count, timesteps=1000):
    """``count`` timesteps, the centres of equal intervals of the range, low and high ones alternating."""
    even = [(2 * place + 1) * timesteps // (2 * count) for place in range(count)]
    return tuple(even[(place * 7) % count] if count % 7 else even[place] for place in range(count))


def fill_adapters(adapters):
    """Small random LoRA weights, up matrices included, as during a training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        adapters.weights.copy_(0.02 * torch.randn(adapters.weights.shape, generator=generator))


# ------------------------------------------------------------------------------------------------- figures


def observed(way, kept):
    """A function for ``alternate``: runs a step, appends its losses to ``kept``, returns the kind of step.

    The kind is whether it had an identity term.
    """

    def step(number):
        losses = way(number)
        kept.append(losses)
        has_term = losses is not None and losses[2] == losses[2] and losses[2] != 0
        return "face" if has_term else "no face"

    return step


def loss_differences(literal, cached):
    """Largest relative difference of each loss of the published recipe without and with caches."""
    worst = dict.fromkeys(TERMS, 0.0)
    for pair in zip(literal, cached, strict=True):
        for term, first, second in zip(TERMS, *pair, strict=True):
            if first == first and first:
                worst[term] = max(worst[term], abs(first - second) / abs(first))
    return worst


def expected_shares():
    """How many steps of the fast recipe have an identity term, by its distribution of timesteps."""
    config = TrainConfig(**FAST)
    face = identity_probability(config, torch.arange(1000), 1000).mean().item()
    return {"face": face, "no face": 1 - face}


def report_steps(options, runs, memory, memory_options, differences):
    """Print the table and keep the figures."""
    shares = {} if options.geometry == "mini" else {"fast": expected_shares()}
    figures = {name: describe_runs(run, shares.get(name)) for name, run in runs.items()}
    for name in {"one by one", "cohort"} & figures.keys():  # per identity, as the others
        figures[name] |= {key: figures[name][key] / options.cohort for key in ("seconds", "low", "high")}
    rows = speed_rows(figures, WAYS, "step", "ms per identity", 1000, 1)
    peaks = [memory.get(name, {}).get("mib", "") for name in figures]
    rows = [{**row, "peak memory, MiB": peak} for row, peak in zip(rows, peaks, strict=True)]
    found = {name: sum(kind == "face" for _, kind in run) / len(run) for name, run in runs.items()}
    result = {
        "geometry": options.geometry,
        "precision": options.precision,
        "cohort": options.cohort,
        "figures": figures,
        "peak_above_networks": memory,
        "fast_with_gradient_checkpointing": memory_options,
        "identity_term_share": found,
        "largest_relative_loss_difference": differences,
    }
    report(f"train_step_{options.geometry}", result, rows, device=options.device)
    if options.cohort > 1 and memory:
        more = (memory["cohort"]["mib"] - memory["fast"]["mib"]) / (options.cohort - 1)
        print(f"each further identity of the batch: {more:.1f} MiB")
    for mode, figure in memory_options.items():
        print(f"gradient checkpointing of {mode}: {figure['mib']} MiB, {figure['seconds']} s")
    print(f"losses, published against cached: {differences}; steps with an identity term: {found}")


if __name__ == "__main__":
    run(main)
