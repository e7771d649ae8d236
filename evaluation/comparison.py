"""What is compared with what: the image sets of one evaluation, their faces, and who judges them."""

from dataclasses import dataclass

import torch

from arcface_files.faces import FaceAnalyser
from evaluation.face_sets import FaceSet, find_faces, load_sets
from evaluation.image_sets import (
    REAL,
    REFERENCE,
    SLACK,
    find_methods,
    method_samples,
    real_photos,
    reference_photos,
    unequal_samples,
)
from evaluation.judges import JUDGE, RECOGNISER, Judge, RecogniserFile, join_same_networks
from utils.devices import pick_device
from utils.errors import UserError


@dataclass
class Comparison:
    """The sets of an evaluation with their faces found and embedded.

    judges: judge name -> Judge. reference: None where there is none, and `no_reference` says why.
    """

    config: object
    real: FaceSet
    methods: list
    reference: FaceSet | None
    no_reference: str
    analyser: FaceAnalyser
    judges: dict
    device: torch.device

    @property
    def sets(self):
        """The real photos first, then the methods."""
        return [self.real, *self.methods]

    @property
    def all_sets(self):
        """The sets, and the reference photos where there are any."""
        return [*self.sets, *([self.reference] if self.reference is not None else [])]

    @property
    def unequal_samples(self):
        """What the methods' readable samples lack of one another, "" where nothing."""
        return unequal_samples([faces.readable for faces in self.methods])

    @property
    def no_rivals(self):
        """Rows that never count as best: photos, and every method where their samples differ."""
        return (REAL, REFERENCE, *(faces.name for faces in self.methods if self.unequal_samples))

    @property
    def recogniser(self):
        """What embeds for the encoder "recogniser"."""
        return self.judges[RECOGNISER].embedder

    def reference_set(self, name=None):
        """The set that distances are measured to, by name; for None that of the config.

        Raises:
            UserError: the reference photos are asked for, and there are none.
        """
        if name is None:
            name = REAL if self.config.reference_folder is None else REFERENCE
        if name == REFERENCE and self.reference is None:
            raise UserError(self.no_reference)
        return self.real if name == REAL else self.reference


def image_sets_of(config):
    """The image sets a config names, without touching a pixel: (real, [methods], reference or a reason)."""
    real = real_photos(config.real_folder, config.identities)
    folders = find_methods(config.samples_folder, config.methods)
    methods = [method_samples(folder, config.identities or real.identities) for folder in folders]
    if config.reference_folder is None:
        return real, methods, "reference_folder: none given; name a flat folder of photos, such as FFHQ's"
    slack = SLACK if set(config.diversity_runs) - {"equal"} else 0  # the published rule for all sets
    try:
        sampled = reference_photos(config.reference_folder, config.reference_images, slack, config.seed)
    except UserError as error:
        return real, methods, str(error)
    return real, methods, sampled


def open_judges(config, analyser, options):
    """{name: Judge}: that of judge_pack where there is one, and the recogniser of the config."""
    found = [Judge(JUDGE, FaceAnalyser(config.judge_pack, **options))] if config.judge_pack else []
    own = analyser
    if config.recogniser is not None:
        own = RecogniserFile(config.recogniser, pick_device(config.device), config.batch_size)
    return {judge.name: judge for judge in [*found, Judge(RECOGNISER, own)]}


def open_comparison(config):
    """Find and embed the faces of everything a config names."""
    # Networks give on a GPU what they give on a CPU: float32 and nothing shorter.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    real, methods, reference = image_sets_of(config)
    options = dict(
        det_size=config.det_size,
        threshold=config.detection_threshold,
        pad=config.pad,
        batch_size=config.batch_size,
        device=config.device,
    )
    analyser = FaceAnalyser(config.pack, **options)
    judges = open_judges(config, analyser, options)
    embedders = {name: judge.embedder for name, judge in judges.items()}
    options = (config.face_policy, config.cache_folder)
    sets = load_sets([real, *methods], analyser, embedders, *options)
    if not len(sets[REAL].index):
        raise UserError(f"{config.real_folder}: no face found in any real photo; check pack and det_size")
    if len(judges) == 2:
        join_same_networks(list(judges.values()), sets[REAL])
    absent = reference if isinstance(reference, str) else ""
    return Comparison(
        config,
        sets[REAL],
        [sets[one.name] for one in methods],
        None if absent else find_faces(reference, analyser, *options),
        absent,
        analyser,
        judges,
        pick_device(config.device),
    )
