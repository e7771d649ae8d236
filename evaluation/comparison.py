"""What is compared with what: the image sets of one evaluation, their faces, and who judges them."""

from dataclasses import dataclass
from pathlib import Path

from arcface_files.faces import FaceAnalyser
from evaluation.face_sets import FaceSet, load_sets, recogniser_name
from evaluation.image_sets import REAL, find_methods, image_set, method_samples, real_photos
from utils.errors import UserError
from utils.identities import image_files

REFERENCE = "reference photos"
JUDGE, LOSS = "judge", "recogniser of the loss"


@dataclass
class Comparison:
    """The sets of an evaluation with their faces found and embedded.

    judges: judge name -> what it is. circular: the only judge is the recogniser of the loss.
    """

    config: object
    real: FaceSet
    methods: list
    reference: FaceSet | None
    analyser: FaceAnalyser
    judges: dict
    circular: bool

    @property
    def sets(self):
        """The real photos first, then the methods."""
        return [self.real, *self.methods]


def image_sets_of(config):
    """The image sets a config names, without touching a pixel: (real, [methods], reference or None)."""
    real = real_photos(config.real_folder, config.identities)
    folders = find_methods(config.samples_folder, config.methods)
    methods = [method_samples(folder, config.identities or real.identities) for folder in folders]
    reference = None
    if config.reference_folder is not None:
        files = image_files(Path(config.reference_folder))
        if not files:
            raise UserError(f"{config.reference_folder}: no images; give a flat folder of photos, or None")
        reference = image_set(REFERENCE, config.reference_folder, [(path, path.stem) for path in files])
    return real, methods, reference


def open_comparison(config):
    """Find and embed the faces of everything a config names."""
    real, methods, reference = image_sets_of(config)
    options = dict(
        det_size=config.det_size,
        threshold=config.detection_threshold,
        pad=config.pad,
        batch_size=config.batch_size,
        device=config.device,
    )
    analyser = FaceAnalyser(config.pack, **options)
    judge = FaceAnalyser(config.judge_pack, **options) if config.judge_pack else None
    analysers = {LOSS: analyser} if judge is None else {JUDGE: judge, LOSS: analyser}
    images = [real, *methods] + ([reference] if reference is not None else [])
    sets = load_sets(images, analyser, analysers, config.face_policy, config.cache_folder)
    names = {name: recogniser_name(one) for name, one in analysers.items()}
    same = judge is not None and names[JUDGE].rpartition("(")[2] == names[LOSS].rpartition("(")[2]
    comparison = Comparison(
        config,
        sets[REAL],
        [sets[images.name] for images in methods],
        sets.get(REFERENCE),
        analyser,
        names,
        circular=judge is None or same,
    )
    if not len(comparison.real.index):
        raise UserError(f"{config.real_folder}: no face found in any real photo; check pack and det_size")
    return comparison
