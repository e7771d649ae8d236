"""What the benchmarks work on: the miniature world, or SD 2.1's geometry with random weights."""

import numpy as np
import torch

from arcface_files.extraction import embed_folder
from arcface_files.faces import Face
from benchmarks import sd21_geometry
from configs.train_config import TrainConfig
from configs.train_sd21_fast import config as FAST_CONFIG
from id_booth.training.photos import prepare_photos
from mini.face_world import render, sample_identity, sample_view
from mini.lab_photos import write_lab_photos
from mini.world.identity import HELD_OUT
from train_id_booth import FineTuning
from utils.identities import find_identities, image_files
from utils.images import save_png
from utils.seeding import derive_seed

# The recipes side by side: the published maths with what can be kept computed once, and ours.
PUBLISHED = {"identity_decode": "full", "face_crop": "detect", "identity_max_timestep": 1000}
FAST = {name: getattr(FAST_CONFIG, name) for name in (*PUBLISHED, "face_margin")}


def make_setting(folder, geometry, people=1, photos_each=4, class_images=16):
    """Base model, photos, class images and embeddings for one geometry, as a TrainConfig of the fast recipe.

    Args:
        folder: Path, gets everything that does not exist already.
        geometry: "mini" (committed weights, rendered people no network was trained on) or "sd21" (random
            weights, noise as photos; one person).
    """
    if geometry == "sd21":
        if not (folder / "base").is_dir():
            sd21_geometry.make_base(folder / "base", torch.float32)
        if not (folder / "iresnet100.safetensors").is_file():  # written last
            sd21_geometry.make_photos(folder)
        return sd21_geometry.step_config(folder, sd21_geometry.StepConfig())
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
        mixed_precision="no",
        validation_images=0,
        lora_rank=4,
        lora_alpha=4.0,
        device="cpu",
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


def make_trainer(config, geometry):
    """(FineTuning, photos): networks loaded, photos and class images embedded and encoded."""
    trainer = FineTuning(config, torch.device("cpu" if not torch.cuda.is_available() else "cuda"))
    trainer.prepare_shared()
    identities = find_identities(config.source_folder)
    analyser, recogniser = trainer.branch.analyser, trainer.branch.recogniser
    if geometry == "mini":
        for identity in identities:
            embed_folder(identity.images_dir.parent, analyser, recogniser)
    else:
        trainer.branch.analyser = FaceFound(analyser)
    return trainer, [
        prepare_photos(person.name, person.images_dir, person.embeds_dir, config, trainer.models, True)
        for person in identities
    ]


class FaceFound:
    """A detector for pictures of noise: it does its work, then finds the face where the photo has it."""

    def __init__(self, analyser):
        self.analyser = analyser
        points = np.asarray(sd21_geometry.LANDMARKS, np.float32)
        centre, side = points.mean(0), 1.6 * np.ptp(points[:, 1])
        self.face = Face(np.concatenate([centre - side, centre + side]).astype(np.float32), points, 1.0)

    def detect(self, images):
        """One face per image."""
        self.analyser.detect(images)
        return [[self.face] for _ in images]
