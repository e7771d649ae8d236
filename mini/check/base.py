"""Checks of the base model: faces, prompts, pose, precision and recall, and whether people differ."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from configs.inference_config import NEGATIVE_PROMPT
from evaluation.adherence import parse_prompt
from evaluation.attributes import AttributeClassifier
from evaluation.diversity import equal_sizes, prdc
from evaluation.identity import pair_scores
from evaluation.pose import five_point_pose
from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.denoising import decode_latents, make_scheduler, sample_latents
from id_booth.prompts import Attributes, portrait_prompt, prompts_for_identity
from mini.build.attribute_classifier import accuracy, ensure_classifier, targets
from mini.build.vae import to_pixels
from mini.check.figures import NO_REAL, Figure, base_files, most_confident, per_cent, renderer_files
from mini.check.renderer import YUNET_SIZE, embeddings
from mini.chunks import chunked
from mini.face_world import render, sample_identity, sample_view
from utils.seeding import derive_seed

STEPS, GUIDANCE, BATCH = 30, 5.0, 25
SAMPLES = 1000, 50  # of each subject; at least
# As a plain prompt names people, and as prompts of fine-tuned ones do, here before any fine-tuning.
SUBJECTS = ("person", "sks person")
GENDERS = ("male", "female")
ONE_PLACE = "forest"
NEIGHBOURS = 5


@dataclass
class Pictures:
    """uint8 RGB (N, 128, 128, 3), with landmarks (N, 5, 2) and embeddings (N, D) by the mini pack of the face
    with the highest score, NaN where there is none."""

    images: np.ndarray
    landmarks: np.ndarray
    embeddings: np.ndarray

    @property
    def found(self):
        """Whether there is a face, (N,) bool."""
        return np.isfinite(self.embeddings[:, 0])


def check_base(config):
    """The base model's figures."""
    folder = config.kept("base", *base_files(config.weights_dir), __file__)
    renders = config.kept("base_renders", *renderer_files())
    analyser = config.mini_pack()
    base = load_base_model(str(config.weights_dir / "base"))
    classifier = AttributeClassifier(ensure_classifier(config.weights_dir, config.build_dir))
    rendered, yaw = rendered_people(config, renders, config.count(*SAMPLES))
    rendered = seen_by(analyser, rendered)
    figures = classifier_figures(config, classifier, renders)
    for subject in SUBJECTS:
        prompts = [one.text for one in grammar_prompts(config.count(*SAMPLES), config.seed, subject)]
        samples = seen_by(analyser, sample(base, folder, subject, prompts, config.seed))
        text = f"{len(prompts)} samples of the published grammar"
        of_subject = [
            Figure("the mini detector finds a face", per_cent(samples.found), text, at_least=98, unit=" %"),
            yunet_figure(config, folder, samples.images, text, subject),
            *prompt_figures(classifier, samples.images, prompts),
            *pose_figures(samples, prompts, rendered, yaw),
            *coverage_figures(base.vae, samples, rendered),
            *[people_figure(config, base, analyser, folder, renders, gender, subject) for gender in GENDERS],
        ]
        figures += [replace(figure, name=f"{subject!r}: {figure.name}") for figure in of_subject]
    return figures


def grammar_prompts(count, seed, subject):
    """The first ``count`` prompts of the published grammar: people of 21 prompts each, ages varied."""
    people = range(-(-count // 21))
    prompts = [
        prompt
        for number in people
        for prompt in prompts_for_identity(
            f"check {number}", Attributes(GENDERS[number % 2]), "21", seed, use_age="varied", subject=subject
        )
    ]
    return prompts[:count]


def sample(base, folder, name, prompts, seed):
    """Samples uint8 (N, 128, 128, 3): DDPM, 30 steps, guidance 5, the published negative prompt."""
    scheduler = make_scheduler("ddpm", base.schedule)

    def make(numbers):
        texts = [prompts[number] for number in numbers]
        negative = base.encode([NEGATIVE_PROMPT] * len(texts))
        seeds = [derive_seed("check sample", name, seed, number) for number in numbers]
        latents = sample_latents(base.unet, scheduler, base.encode(texts), negative, seeds, STEPS, GUIDANCE)
        return {"images": decode_latents(base.vae, latents)}

    return chunked(folder, name, len(prompts), make, size=BATCH)["images"]


def rendered_people(config, folder, count):
    """Wild renders of as many held-out people: pictures and their yaw in degrees."""
    first = config.first_person("base")

    def make(numbers):
        views = [sample_view(derive_seed("check base", first, n), "wild") for n in numbers]
        images = [
            render(sample_identity(first + n), view).image for n, view in zip(numbers, views, strict=True)
        ]
        return {"images": np.stack(images), "yaw": np.array([view.yaw for view in views])}

    arrays = chunked(folder, "renders", count, make)
    return arrays["images"], arrays["yaw"]


def seen_by(analyser, images):
    """The :class:`Pictures` of uint8 images (N, 128, 128, 3)."""
    landmarks = np.full((len(images), 5, 2), np.nan, np.float32)
    rows = []
    for start in range(0, len(images), BATCH):
        batch = list(images[start : start + BATCH])
        for place, faces in enumerate(analyser.detect(batch)):
            if faces:
                landmarks[start + place] = most_confident(faces).landmarks
        rows.append(embeddings(analyser, batch))
    return Pictures(images, landmarks, np.concatenate(rows))


def yunet_figure(config, folder, images, text, subject):
    """In how many samples YuNet finds a face."""
    figure = dict(name="YuNet finds a face", sample=text, at_least=95, unit=" %")
    analysers = config.real_packs((YUNET_SIZE,))
    if analysers is None:
        return Figure(**figure, value=None, note=NO_REAL)

    def make(numbers):
        return {"found": np.array([bool(analysers[0].detect([images[number]])[0]) for number in numbers])}

    return Figure(**figure, value=per_cent(chunked(folder, f"yunet {subject}", len(images), make)["found"]))


def prompt_figures(classifier, images, prompts):
    """How often the attribute classifier agrees with the prompt."""
    seen = predictions(classifier, images)
    said = [parse_prompt(prompt) for prompt in prompts]
    figures = []
    for name, least in (("background", 85), ("gender", 85), ("age", None), ("pose", None)):
        right = [s[name] == p[name] for s, p in zip(seen, said, strict=True) if name in p]
        figures.append(
            Figure(
                f"the prompted {name} is seen",
                per_cent(right),
                f"{len(right)} samples",
                at_least=least,
                unit=" %",
                note="attribute classifier",
            )
        )
    return figures


def predictions(classifier, images):
    """The classifier's prediction for each picture."""
    batches = [images[start : start + 100] for start in range(0, len(images), 100)]
    return [one for batch in batches for one in classifier.predict(batch)]


def classifier_figures(config, classifier, folder):
    """The classifier's own accuracy, on renders of people it has not seen."""
    count, first = config.count(500, 50), config.first_person("base") + 50_000
    people = [
        (sample_identity(first + n), sample_view(derive_seed("check classifier", first, n), "wild"))
        for n in range(count)
    ]

    def make(numbers):
        return {"images": np.stack([render(*people[n]).image for n in numbers])}

    images = chunked(folder, "classifier", count, make)["images"]
    truth = [targets(render(*one).attributes) for one in people]
    return [
        Figure(f"the classifier's own accuracy: {name}", 100 * value, f"{count} held-out renders", unit=" %")
        for name, value in accuracy(classifier, images, truth).items()
    ]


def pose_figures(samples, prompts, rendered, yaw):
    """Mean |yaw| of side-portraits less that of portraits, from the mini detector's five landmarks."""
    turn = np.abs(five_point_pose(samples.landmarks[samples.found])[:, 0])
    side = np.array(["side-portrait" in prompt for prompt in prompts])[samples.found]
    gain = turn[side].mean() - turn[~side].mean()
    note = f"side-portraits {turn[side].mean():.1f}, portraits {turn[~side].mean():.1f}"
    error = np.abs(five_point_pose(rendered.landmarks[rendered.found])[:, 0] - yaw[rendered.found]).mean()
    return [
        Figure(
            "side-portraits turned further than portraits, mean |yaw|",
            float(gain),
            f"{int(samples.found.sum())} samples with a face",
            at_least=20,
            unit=" degrees",
            note=note,
        ),
        Figure(
            "the same estimate's mean error on renders",
            float(error),
            f"{int(rendered.found.sum())} renders",
            unit=" degrees",
        ),
    ]


def coverage_figures(vae, samples, rendered):
    """Precision and recall of samples against renders (k = 5) in two feature spaces.

    One space has to meet both bounds; they are put on the one that comes closer to them.
    """
    spaces = {
        "recogniser features": [one.embeddings[one.found] for one in (rendered, samples)],
        "VAE features": [latent_means(vae, one.images) for one in (rendered, samples)],
    }
    results = {}
    for name, (real, fake) in spaces.items():
        rows, columns = equal_sizes(real, fake)
        results[name] = prdc(real[rows], fake[columns], k=NEIGHBOURS), len(rows)
    asked = {"precision": 0.6, "recall": 0.5}
    judged = max(results, key=lambda name: min(results[name][0][key] - least for key, least in asked.items()))
    figures = []
    for name, (result, count) in results.items():
        text = f"{count} samples against {count} renders, k = {NEIGHBOURS}"
        demand = asked if name == judged else {}
        figures += [
            Figure(f"{key}, {name}", result[key], text, at_least=demand.get(key))
            for key in ("precision", "recall", "density", "coverage")
        ]
    return figures


@torch.inference_mode()
def latent_means(vae, images):
    """Means of the VAE's posterior, float32 (N, 1024), of uint8 pictures."""
    rows = []
    for start in range(0, len(images), BATCH):
        pixels = to_pixels(images[start : start + BATCH])
        rows.append(vae.encode(pixels.to(vae.dtype)).latent_dist.mean.flatten(1).float().numpy())
    return np.concatenate(rows)


def people_figure(config, base, analyser, folder, renders, gender, subject):
    """Mean pairwise identity cosine of samples of one prompt, less that of renders in the same setting."""
    count = config.count(100, 30)
    prompt, name = portrait_prompt("portrait", "", gender, ONE_PLACE, subject), f"{subject} {gender}"
    samples = seen_by(analyser, sample(base, folder, name, [prompt] * count, config.seed))
    first = config.first_person("base") + 60_000
    people = [seed for seed in range(first, first + 6 * count) if sample_identity(seed).gender == gender]

    def make(numbers):
        views = [
            sample_view(derive_seed("check alike", people[n]), "wild", side=False, background=ONE_PLACE)
            for n in numbers
        ]
        return {
            "images": np.stack(
                [
                    render(sample_identity(people[n]), view).image
                    for n, view in zip(numbers, views, strict=True)
                ]
            )
        }

    alike = seen_by(analyser, chunked(renders, f"alike_{gender}", count, make)["images"])
    ours, theirs = (mean_cosine(one) for one in (samples, alike))
    return Figure(
        f"people differ: mean identity cosine within a prompt less that of renders, {gender}",
        abs(ours - theirs),
        f"{count} samples, {count} rendered people",
        at_most=0.1,
        note=f"samples {ours:.3f}, renders {theirs:.3f}, absolute difference",
    )


def mean_cosine(pictures):
    """Mean cosine of all pairs of faces."""
    rows = pictures.embeddings[pictures.found]
    return float(pair_scores(rows, np.zeros(len(rows), int))[0].mean()) if len(rows) > 1 else float("nan")
