"""What the benchmarks work on: the miniature world, or SD 2.1's geometry with random weights."""

import copy

import torch

from arcface_files.extraction import embed_folder
from arcface_files.faces import FaceAnalyser
from arcface_files.people import class_images, find_identities
from benchmarks import sd21_geometry
from configs.train_config import TrainConfig
from configs.train_sd21_fast import config as FAST_CONFIG
from id_booth.training.cohort import Cohort
from id_booth.training.identity_branch import IdentityBranch
from id_booth.training.other_people import read_negatives
from id_booth.training.photos import prepare_photos
from mini.face_world import render, sample_identity, sample_view
from mini.lab_photos import write_lab_photos
from mini.world.identity import HELD_OUT
from train_id_booth import FineTuning
from utils.devices import pick_device, pick_dtype
from utils.identities import image_files
from utils.images import save_png
from utils.seeding import derive_seed

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # as TrainConfig calls them
# The published recipe, and the fast one.
PUBLISHED = {
    "identity_decode": "full",
    "face_crop": "detect",
    "saturated_pixels": "clamp",
    "identity_sampling": "always",
    "identity_sampling_factor": 1.0,
    "identity_max_timestep": 1000,
}
FAST = {name: getattr(FAST_CONFIG, name) for name in (*PUBLISHED, "face_margin")}


def make_setting(folder, geometry, people=1, photos_each=4, class_images=16, device="cpu", precision="fp32"):
    """Base model, photos, class images and embeddings for one geometry, as a TrainConfig of the fast recipe.

    Args:
        folder: Path; what does not exist yet is written into it.
        geometry: "mini" (the miniature's weights, held-out people), "sd21" or "tiny" (random weights, noise
            as photos, one of each person). On a CPU the base model of "sd21" is a file, which the processes
            of a benchmark share; otherwise each process makes its own on the device.
    """
    mixed = MIXED_PRECISION[precision]
    if geometry != "mini":
        if geometry == "sd21" and device == "cpu" and not (folder / "base").is_dir():
            sd21_geometry.make_base(folder / "base", torch.float32)
        if not (folder / "recogniser.safetensors").is_file():  # written last
            sd21_geometry.make_photos(folder, geometry, people)
        options = sd21_geometry.StepConfig(precision=mixed, device=device, geometry=geometry)
        return sd21_geometry.step_config(folder, options)
    write_lab_photos(folder / "faces", people, photos_each)
    write_class_images(folder / "class/images", class_images)
    return TrainConfig(
        source_folder=str(folder / "faces"),
        class_folder=str(folder / "class"),
        output_folder=str(folder / "loras"),
        objectives=("ID-Booth",),
        resolution=128,
        base_model="mini/weights/base",
        pack="mini/weights/pack",
        recogniser=None,
        num_class_images=class_images,
        mixed_precision=mixed,
        validation_images=0,
        lora_rank=4,
        lora_alpha=4.0,
        device=device,
        cache_batch_size=8,
        lean_layers=False,
        **FAST,
    )


def write_class_images(folder, count, size=128):
    """Rendered in-the-wild faces of ``count`` other held-out people."""
    for number in range(len(image_files(folder)), count):
        seed = HELD_OUT + 100_000 + number
        view = sample_view(derive_seed(seed, "class image"), "wild")
        save_png(folder / f"{number:05d}.png", render(sample_identity(seed), view, size).image)


def make_fine_tuning(config, geometry):
    """(FineTuning, photos): networks loaded or made, photos and class images embedded and encoded."""
    device, base = pick_device(config.device), None
    if config.base_model == sd21_geometry.random_name(geometry):
        base = sd21_geometry.random_base(geometry, pick_dtype(config.mixed_precision, device), device)
    fine_tuning = FineTuning(config, device, base=base)
    fine_tuning.prepare_shared()
    analyser, recogniser = fine_tuning.branch.analyser, fine_tuning.branch.recogniser
    if geometry == "mini":
        for identity in find_identities(config.source_folder):
            embed_folder(identity, analyser, recogniser)
    else:
        # Without one, where only aligned crops were asked for, the pack's still has to be opened.
        analyser = analyser or FaceAnalyser(config.pack, device=device)
        fine_tuning.branch.analyser = FaceFound(analyser, sd21_geometry.landmarks_at(config.resolution))
    return by_recipe(fine_tuning, config)


def by_recipe(fine_tuning, config):
    """(FineTuning, photos) on the same networks by another config: its crops, embeddings and windows."""
    other, models, before = copy.copy(fine_tuning), fine_tuning.models, fine_tuning.branch
    networks = models.decoder(), models.base.latent_factor, before.recogniser, before.analyser
    other.config, other.branch = config, IdentityBranch(config, *networks, models.vae)
    folder = class_images(config.negatives_folder or config.class_folder)
    other.negatives = read_negatives(folder, config.crop, before.recogniser)
    return other, [
        prepare_photos(person, config, models, other.branch)
        for person in find_identities(config.source_folder)
    ]


def make_cohort(fine_tuning, photos, kind=Cohort):
    """A cohort of ID-Booth by the recipe of a FineTuning; one person for each Photos."""
    shared = fine_tuning.branch, photos, fine_tuning.class_photos, fine_tuning.negatives
    return kind(fine_tuning.config, "ID-Booth", fine_tuning.models, *shared)


class FaceFound:
    """Detector for networks with random weights, whose pictures show no faces.

    It runs the real one, for its cost, and returns the face of the training photo.
    """

    def __init__(self, analyser, landmarks):
        self.analyser = analyser
        self.face = sd21_geometry.face_at(landmarks)

    def detect(self, images):
        """One face per image."""
        self.analyser.detect(images)
        return [[self.face] for _ in images]
