"""Training steps at the size of Stable Diffusion 2.1: published, cached, fast; alone and in cohorts."""

import copy
import gc
import statistics
import time
from dataclasses import replace

import torch

from arcface_files.people import find_identities
from benchmarks.gpu.card import Operations, share_of_ceiling
from benchmarks.measure import alternate, synchronise
from benchmarks.settings import FAST, PUBLISHED, by_recipe, make_cohort, make_fine_tuning, make_setting
from benchmarks.train_step import fill_adapters, literal_way
from id_booth import launch
from id_booth.training.cohort import Cohort, identity_probability

CYCLE = 12  # steps after which timesteps repeat
COHORTS = {"sd21": (4, 8, 16, 32), "tiny": (4,)}
MOST_IN_TURN = 16  # people; of more, an eager step does not fit beside a recorded one
GIB = 2**30


class CyclingCohort(Cohort):
    """A cohort whose timesteps, and which of them have an identity term, go round in a cycle.

    So a few steps have the work of a whole training: as large a share of terms as the recipe gives.
    """

    def draw(self, micro_step):
        """The draws of a step, with the timesteps and chances of the cycle."""
        batch, cycle = super().draw(micro_step), cycle_of(self.config)
        items = [cycle[(micro_step + item) % CYCLE] for item in range(len(batch.timesteps))]
        batch.timesteps = torch.tensor([timestep for timestep, _ in items])
        batch.chances = torch.tensor([0.0 if with_term else 1.0 for _, with_term in items])
        return batch


def cycle_of(config):
    """(timestep, whether it has an identity term) of the steps of a cycle, evenly spaced and mixed."""
    even = torch.tensor([(2 * place + 1) * 1000 // (2 * CYCLE) for place in range(CYCLE)])
    likely = even[identity_probability(config, even, 1000).argsort(descending=True, stable=True)].tolist()
    terms = terms_per_cycle(config)
    places = sorted(range(CYCLE), key=lambda place: place * terms % CYCLE)  # the first ones lie far apart
    return [(likely[rank], rank < terms) for rank in sorted(range(CYCLE), key=places.__getitem__)]


def terms_per_cycle(config):
    """How many steps of a cycle have an identity term, by the recipe's expectation."""
    return round(CYCLE * identity_probability(config, torch.arange(1000), 1000).mean().item())


class Setting:
    """Networks of random weights on the device and photos of several people."""

    def __init__(self, run, people, recipe=FAST, precision="bf16", **changes):
        self.run = run
        config = make_setting(run.folder, run.size, people, device=run.device, precision=precision)
        self.config = replace(config, learning_rate=0.0, **{**recipe, **changes})
        self.tuning, self.photos = make_fine_tuning(self.config, run.size)
        if run.device == "cpu":  # nothing can be recorded: everything else of that way runs
            self.tuning.models.graphed_unet.record = lambda function, sample: function

    def cohort(self, people, graph=False):
        """A cohort of the first people, whose steps wait for nothing."""
        return cohort_of(self.tuning, self.photos[:people], graph)

    def work(self, counted, people):
        """Operations of a step, as the mean of a training."""
        windows = [tuple(photos.windows[0, 2:].tolist()) for photos in self.photos[:people]]
        return counted.step(people, terms_per_cycle(self.config) / CYCLE, windows)


def cohort_of(tuning, photos, graph=False):
    """A cohort of some people by the recipe of a FineTuning."""
    tuning.models.set_cohort_size(len(photos))
    tuning = copy.copy(tuning)
    tuning.config = replace(tuning.config, cuda_graph=graph)
    cohort = make_cohort(tuning, photos, CyclingCohort)
    fill_adapters(tuning.models.adapters)
    return cohort


def measure_steps(run):
    """Stage: one person in all ways, then cohorts."""
    setting, counted = Setting(run, max(COHORTS[run.size])), Operations(run.size)
    sizes = sorted({tuple(photos.windows[0, 2:].tolist()) for photos in setting.photos})
    run.record(what="networks", gib=allocated(run.device), windows=str(sizes))
    whole = counted.decode(counted.full, counted.full)
    run.record(what="operations", unet=counted.unet / 1e12, decode=whole / 1e12)
    alone(run, setting, counted)
    for people in COHORTS[run.size]:
        in_cohort(run, setting, counted, people)


def alone(run, setting, counted):
    """One person: the published way beside ours, in turn; losses of ours are not fetched at each step."""
    published, boxes = by_recipe(setting.tuning, replace(setting.config, **PUBLISHED))
    cached = cohort_of(published, boxes[:1])
    ways = {
        ("published", "eager"): literal_way(published, boxes[0], cached),
        ("published, cached", "eager"): cached.step,
        ("fast", "eager"): setting.cohort(1).step,
        ("fast", "graph"): setting.cohort(1, graph=True).step,
    }
    work = {
        "published": counted.published_step(),
        "published, cached": counted.step(1, 1.0, [(counted.full, counted.full)]),
        "fast": setting.work(counted, 1),
    }
    runs = in_turn(run, ways, 1)
    for (way, mode), found in runs.items():
        record_step(run, way, mode, 1, found, work[way], peak_of(ways[way, mode], run.device))


def in_cohort(run, setting, counted, people, modes=("eager", "graph")):
    """So many people in a batch, by the fast recipe; both ways in turn where memory holds both."""
    for together in [modes] if people <= MOST_IN_TURN else [(mode,) for mode in modes]:
        ways = {mode: setting.cohort(people, graph=mode == "graph").step for mode in together}
        for mode, found in in_turn(run, ways, people).items():
            peak = peak_of(ways[mode], run.device)
            record_step(run, "fast", mode, people, found, setting.work(counted, people), peak)
        del ways
        reset_peak(run.device)


def in_turn(run, ways, people):
    """Times of blocks of steps of each way, in turn: whole cycles, or parts where many people mix them."""
    if run.device == "cpu":  # these figures are nobody's; that it runs is what counts
        return alternate(ways, 1, 0, run.device, 2)
    return alternate(ways, 3, 1, run.device, 4 if people >= CYCLE else CYCLE)


def record_step(run, way, mode, people, found, work, peak):
    """Keep the median of some blocks."""
    times = [seconds for seconds, _ in found]
    seconds = statistics.median(times)
    run.record(
        way=way,
        mode=mode,
        people=people,
        ms=1e3 * seconds,
        ms_per_person=1e3 * seconds / people,
        spread=f"{1e3 * min(times):.1f} to {1e3 * max(times):.1f}",
        **share_of_ceiling(run, work / seconds),
        peak_gib=peak,
    )


def peak_of(step, device):
    """Most memory in use during some steps, GiB: all networks of the process included, and recorded graphs.

    Replays go past the allocator, so its peak does not see what they use of a graph's own pool.
    """
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    for number in range(4):
        step(number)
    torch.cuda.synchronize()
    pools = [part["total_size"] for part in torch.cuda.memory_snapshot() if any(part["segment_pool_id"])]
    return (torch.cuda.max_memory_allocated() + sum(pools)) / GIB


def allocated(device):
    """What torch holds on the device, GiB."""
    return torch.cuda.memory_allocated() / GIB if device == "cuda" else None


# ----------------------------------------------------------------------------------------- compiled


def measure_compiled(run):
    """Stage: compiled blocks; the first step compiles, which takes a minute."""
    people = 8 if run.size == "sd21" else 2
    setting, counted = Setting(run, people, compile_unet=True), Operations(run.size)
    started = time.perf_counter()
    setting.cohort(people).step(0)
    synchronise(run.device)
    run.record(way="fast", mode="compiled", people=people, first_step_s=time.perf_counter() - started)
    in_cohort(run, setting, counted, people, ("compiled",))
    in_cohort(run, setting, counted, 1, ("compiled",))


def measure_deterministic(run):
    """Stage: what ``deterministic`` costs."""
    launch.make_deterministic()
    people = 8 if run.size == "sd21" else 2
    setting, counted = Setting(run, people), Operations(run.size)
    for size in (1, people):
        step = setting.cohort(size).step

        def exact(number, step=step):
            torch.use_deterministic_algorithms(True)
            step(number)

        def free(number, step=step):
            torch.use_deterministic_algorithms(False)
            step(number)

        ways = {"deterministic": exact, "not deterministic": free}
        for name, found in in_turn(run, ways, size).items():
            record_step(run, name, "eager", size, found, setting.work(counted, size), None)


# ------------------------------------------------------------------------------------------- memory


def measure_memory(run):
    """Stage: what a training takes of a card, each recipe in its own process; "auto" for 50 steps."""
    run.in_child(memory_of, "fast recipe", FAST, "bf16", {})
    run.in_child(memory_of, "fast recipe, checkpointed", FAST, "bf16", {"gradient_checkpointing": True})
    run.in_child(memory_of, "published recipe", PUBLISHED, "fp16", {})
    run.in_child(memory_of, "fast recipe, recorded", FAST, "bf16", {}, True)
    run.in_child(automatic_cohort)


def memory_of(run, name, recipe, precision, changes, graph=False):
    """Memory in all, of one person's training: everything cached, encoders off the device, as in a run."""
    if run.device == "cpu" and precision == "fp16":
        precision = "bf16"
    setting = Setting(run, 1, recipe, precision, **changes)
    prepared = reserved(run.device)
    setting.tuning.models.offload_encoders()
    reset_peak(run.device)
    step = setting.cohort(1, graph).step
    for number in range(4):
        step(number)
    synchronise(run.device)
    run.record(
        way=name, people=1, preparing_gib=prepared, steps_gib=reserved(run.device), in_all_gib=used(run)
    )


def automatic_cohort(run):
    """``cohort_size="auto"``: the size it picks, and a training of 50 steps of as many people."""
    people, steps = (16, 50) if run.size == "sd21" else (3, 4)
    config = make_setting(run.folder, run.size, people, device=run.device, precision="bf16")
    changes = FAST | {"cohort_size": "auto", "max_train_steps": steps}
    config = replace(config, output_folder=str(run.folder / "auto"), **changes)
    tuning, _ = make_fine_tuning(config, run.size)
    identities = find_identities(config.source_folder)[:people]
    started = time.perf_counter()
    with tuning.claims:
        rows = tuning.train_identities(identities)
    seconds = time.perf_counter() - started
    done = sum(row["status"] == "done" for row in rows)
    run.record(
        way="auto",
        people=tuning.models.cohort_size,
        finished=f"{done} of {people}",
        steps=steps,
        seconds=seconds,
        steps_gib=reserved(run.device),
        in_all_gib=used(run),
    )


def reset_peak(device):
    """Forget the peak, and what the allocator keeps without use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def reserved(device):
    """Most that torch has taken from the card since the last reset, GiB."""
    return torch.cuda.max_memory_reserved() / GIB if device == "cuda" else None


def used(run):
    """What is taken of the card now, contexts and kernels included, GiB; nobody else should be on it."""
    if run.device != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB
