"""Similarity and diversity of each recipe's samples against training time.

    python -m benchmarks.time_to_quality --judge PACK                   six people, three seeds, miniature
    python -m benchmarks.time_to_quality --judge PACK --people 2 --seeds 0 --steps 100     a short look

The published recipe trains one person after another and computes everything anew at each step
(``benchmarks.literal``); the fast one trains all of them in one batch. At several points of a training the
same prompts and seeds are sampled, and an independent recogniser, the judge, measures how similar the faces
are to the photos (cosine, mean over pairs) and how diverse (Vendi score of its embeddings, per person). Time
spent on sampling and judging does not count. The judge must not be the recogniser of the loss.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m benchmarks.time_to_quality")

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from arcface_files.face_pack import pack_models
from arcface_files.faces import FaceAnalyser
from benchmarks.literal import LiteralStep, copy_adapter
from benchmarks.measure import CLOCK, CLOCKS, RESULTS, machine, report
from benchmarks.settings import FAST, PUBLISHED, by_recipe, make_cohort, make_fine_tuning, make_setting
from configs.inference_config import NEGATIVE_PROMPT
from configs.train_mini import config as MINI
from evaluation.diversity import vendi_score
from fr_training.results import save_figure
from fr_training.verification import normalise
from id_booth.diffusion.base_files import base_model_fingerprint
from id_booth.diffusion.denoising import decode_latents, make_scheduler, sample_latents
from id_booth.prompts import BACKGROUNDS
from mini.check.renderer import embeddings
from utils.errors import UserError, run
from utils.files import atomic_write_json, read_json, sha256_file
from utils.images import load_image
from utils.seeding import derive_seed

PACK, BASE = "mini/weights/pack", "mini/weights/base"
KEPT = RESULTS / "time_to_quality_curves.json"
# Settings of configs/train_mini.py that both recipes keep.
ADAPTER = ("lora_rank", "lora_alpha", "lora_targets", "identity_loss_weight")
TICKS = (10, 20, 50, 100, 200, 500)  # seconds


@dataclass
class QualityBenchmark:
    """What to compare."""

    judge: str
    """insightface pack whose recogniser judges; another network than that of the loss."""
    people: int = 6
    """Held-out miniature people."""
    photos: int = 10
    """Lab photos of each."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each recipe."""
    steps: int = 240
    """Training steps of each person by the published recipe."""
    learning_rate: float = 5e-4
    """Of the published recipe. At that of configs/train_mini.py, chosen for batches of four photos, neither
    recipe exceeds the base model with one."""
    fast_steps: int = 100
    """Training steps by the fast recipe."""
    fast_learning_rate: float = 1e-3
    """Of the fast recipe."""
    fast_identity_weight: float = MINI.identity_loss_weight
    """Of the fast recipe."""
    looks: int = 3
    """Points of the published recipe's curve."""
    fast_looks: int = 4
    """Points of the fast recipe's curve."""
    images: int = 11
    """Images per person and point."""


def main():
    """Run both recipes with each seed, unless a curve with equal options is kept, and report the curves."""
    options = tyro.cli(QualityBenchmark, description=__doc__)
    check_judge(options.judge)
    curves, keep = kept_curves(options)
    with tempfile.TemporaryDirectory() as folder:
        config = make_setting(Path(folder), "mini", options.people, options.photos, class_images=40)
        config = replace(config, **{name: getattr(MINI, name) for name in ADAPTER})
        fine_tuning, photos = make_fine_tuning(config, "mini")
        judge = Judge(options, fine_tuning.models, photos)
        untrained = np.mean(judge.look(dict.fromkeys(range(options.people))), axis=0).tolist()
        recipes = {
            "literal": (train_literally, literal_recipe(options)),
            "fast": (train_cohort, fast_recipe(options)),
        }
        for seed in options.seeds:
            for name, (train, recipe) in recipes.items():
                if str(seed) not in curves[name]:
                    seeded = by_recipe(fine_tuning, replace(config, seed=seed, **recipe))
                    curves[name][str(seed)] = train(options, *seeded, judge)
                    atomic_write_json(KEPT, {"options": keep, "curves": curves})
    curves = {name: [of[str(seed)] for seed in options.seeds] for name, of in curves.items()}
    report_curves(options, curves, untrained)


def literal_recipe(options):
    """Settings of the published recipe."""
    return PUBLISHED | {"max_train_steps": options.steps, "learning_rate": options.learning_rate}


def fast_recipe(options):
    """Settings of the fast recipe."""
    return FAST | {
        "max_train_steps": options.fast_steps,
        "learning_rate": options.fast_learning_rate,
        "identity_loss_weight": options.fast_identity_weight,
    }


def kept_curves(options):
    """({recipe: {seed: curve}} of an interrupted run, {recipe: settings that its curves depend on})."""
    common = {"judge": Path(options.judge).name, "machine": machine(), "base": base_model_fingerprint(BASE)}
    common |= {name: getattr(options, name) for name in ("people", "photos", "images")}
    fast = FAST | {name: value for name, value in vars(options).items() if name.startswith("fast_")}
    literal = {name: getattr(options, name) for name in ("steps", "learning_rate", "looks")}
    keep = {"literal": common | literal, "fast": common | fast}
    kept = read_json(KEPT) if KEPT.is_file() else {"options": {}, "curves": {}}
    return {
        name: kept["curves"][name] if kept["options"].get(name) == of else {} for name, of in keep.items()
    }, keep


def check_judge(judge):
    """Refuse the loss network as its own judge."""
    ours, theirs = (pack_models(pack)["recognition"] for pack in (PACK, judge))
    if sha256_file(ours) == sha256_file(theirs):
        raise UserError(f"judge: {judge} holds the recogniser of the loss; give another pack")


class Judge:
    """Samples the trained people and compares their faces with their photos."""

    def __init__(self, options, models, photos):
        self.options, self.models = options, models
        self.analyser = FaceAnalyser(options.judge)
        self.real = [self.embed([load_image(path) for path in person.paths]) for person in photos]

    def embed(self, images):
        """Unit embeddings (N, D) of the images in which a face is found."""
        rows = embeddings(self.analyser, list(images))
        return normalise(rows[np.isfinite(rows[:, 0])])

    def look(self, slots):
        """Similarity, Vendi score and share of images with a face, for each person of ``slots``.

        Args:
            slots: dict of person's number -> its adapter's slot; None for the base model.
        """
        figures = []
        for person, slot in slots.items():
            faces = self.embed(self.sample(person, slot))
            similarity = float((faces @ self.real[person].T).mean()) if len(faces) else 0.0
            diversity = vendi_score(faces) if len(faces) > 1 else 1.0
            figures.append((similarity, diversity, len(faces) / self.options.images))
        return figures

    @torch.no_grad()
    def sample(self, person, slot):
        """The person's images: a portrait prompt for each background in turn, always the same seeds."""
        models, count = self.models, self.options.images
        prompts = [
            f"face portrait photo of sks person, {BACKGROUNDS[i % len(BACKGROUNDS)]} background"
            for i in range(count)
        ]
        seeds = [derive_seed("look", person, number) for number in range(count)]
        scheduler = make_scheduler("dpmsolver++", models.base.schedule)
        with models.adapter(slot):
            latents = sample_latents(
                models.unet,
                scheduler,
                models.base.encode(prompts),
                models.base.encode([NEGATIVE_PROMPT] * count),
                seeds,
                20,
                5.0,
                models.latent_shape[1:],
            )
        return decode_latents(models.vae, latents, 7)


class Clock:
    """Seconds of training, without the judging in between."""

    def __init__(self):
        self.seconds, self.since = 0.0, CLOCKS[CLOCK]()

    def pause(self):
        """Stop, and give the seconds so far."""
        self.seconds += CLOCKS[CLOCK]() - self.since
        return self.seconds

    def go_on(self):
        """Count again."""
        self.since = CLOCKS[CLOCK]()


def look_steps(steps, looks):
    """The numbers of steps after which a training of ``steps`` steps is judged."""
    return {round(steps * (look + 1) / looks) for look in range(looks)}


def train_cohort(options, fine_tuning, photos, judge):
    """The fast recipe on all people in one batch; list of (seconds, similarity, diversity, faces)."""
    fine_tuning.models.set_cohort_size(len(photos))
    cohort, steps = make_cohort(fine_tuning, photos), fine_tuning.config.max_train_steps
    curve, clock = [], Clock()
    for step in range(steps):
        cohort.step(step)
        if step + 1 in look_steps(steps, options.fast_looks):
            seconds = clock.pause()
            figures = judge.look({person: person for person in range(len(photos))})
            curve.append((seconds, *np.mean(figures, axis=0).tolist()))
            clock.go_on()
    return curve


def train_literally(options, fine_tuning, photos, judge):
    """The published recipe, person after person; the curve's times are those of all people together."""
    models, steps = fine_tuning.models, fine_tuning.config.max_train_steps
    per_step = {step: [] for step in sorted(look_steps(steps, options.looks))}
    for person, one in enumerate(photos):
        models.set_cohort_size(1)
        draws = make_cohort(fine_tuning, [one])
        literal = LiteralStep(fine_tuning, one)
        copy_adapter(literal.unet, models.lora["unet"])
        clock = Clock()
        for step in range(steps):
            literal.step(draws.draw(step))
            if step + 1 in per_step:
                seconds = clock.pause()
                adopt_adapter(models.lora["unet"], literal.unet)
                per_step[step + 1].append((seconds, *judge.look({person: 0})[0]))
                clock.go_on()
    return [
        (sum(row[0] for row in rows), *np.mean([row[1:] for row in rows], axis=0).tolist())
        for rows in per_step.values()
    ]


@torch.no_grad()
def adopt_adapter(layers, unet):
    """Copy peft's LoRA to slot 0 of the stacked layers, so that one sampler serves both."""
    for name, layer in layers.items():
        peft_layer = unet.get_submodule(name)
        layer.down[0] = peft_layer.lora_A["default"].weight
        layer.up[0] = peft_layer.lora_B["default"].weight


def report_curves(options, curves, untrained):
    """Table of the ends, time to the literal end's similarity, curves as JSON and as a picture.

    ``untrained``: similarity, Vendi score and share of faces of the base model, the baseline of both recipes.
    """
    ends = {name: np.array([curve[-1] for curve in runs]) for name, runs in curves.items()}
    goal = ends["literal"][:, 1].mean()
    reached = [first_time(curve, goal) for curve in curves["fast"]]
    similarity, diversity, faces = (round(value, 4) for value in untrained)
    rows = [
        {
            "recipe": "base model",
            "seconds": 0,
            "similarity": similarity,
            "Vendi score": diversity,
            "images with a face": faces,
        }
    ]
    rows += [
        {
            "recipe": name,
            "seconds": round(end[:, 0].mean(), 1),
            "similarity": f"{end[:, 1].mean():.4f} (sd over seeds {end[:, 1].std():.4f})",
            "Vendi score": f"{end[:, 2].mean():.3f} (sd {end[:, 2].std():.3f})",
            "images with a face": round(end[:, 3].mean(), 3),
        }
        for name, end in ends.items()
    ]
    result = {
        "options": vars(options) | {"judge": Path(options.judge).name},
        "curve": "seconds, similarity, Vendi score, share of images with a face",
        "curves": curves,
        "untrained": untrained,
        "goal_similarity": goal,
        "fast_seconds_to_goal": reached,
        "literal_seconds": ends["literal"][:, 0].tolist(),
    }
    report("time_to_quality", result, rows)
    print(f"fast reaches {goal:.4f} after {reached} s, literal after {ends['literal'][:, 0].tolist()} s")
    draw_curves(curves, untrained, RESULTS / "time_to_quality.png")


def first_time(curve, goal):
    """Seconds at the first point with that similarity, None when there is none."""
    return next((row[0] for row in curve if row[1] >= goal), None)


def draw_curves(curves, untrained, path):
    """Similarity and Vendi score against seconds, a line for each seed; dashed, the base model's."""
    titles = ("similarity to the photos (judge)", "Vendi score of the faces, per person")
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, len(titles))
    for place, (axis, title) in enumerate(zip(axes, titles, strict=True), 1):
        axis.axhline(untrained[place - 1], linestyle="--", color="black", label="base model")
        for (name, runs), colour in zip(curves.items(), ("tab:gray", "tab:blue"), strict=True):
            for number, curve in enumerate(runs):
                points = [row[0] for row in curve], [row[place] for row in curve]
                axis.plot(*points, "o-", color=colour, label=None if number else name, alpha=0.8)
        axis.set(xscale="log", xlabel="training time of all people, s", ylabel=title)
        axis.set_xticks(TICKS, map(str, TICKS))
        axis.set_xticks([], minor=True)
        axis.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run(main)
