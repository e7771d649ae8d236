"""Configurations of the face-recognition scripts: align, augment, train, test, study."""

from dataclasses import dataclass
from typing import Literal

from utils.config import BaseConfig
from utils.errors import UserError

BENCHMARKS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")


def require(condition, message):
    """Refuse a configuration with one line."""
    if not condition:
        raise UserError(message)


@dataclass
class AlignConfig(BaseConfig):
    """Photos or samples to aligned 112 x 112 crops: fr_training/align_faces.py."""

    source: str = "FACE_DATASET"
    """Folder with ID_1/images/*, images/ID_1/* or ID_1/* (samples of one method)."""
    output: str = "FR_DATASETS/real"
    """Crops go to OUTPUT/ID_1/*.png, the images without a face to OUTPUT/missing_faces.json."""
    labels: str = "FR_DATASETS/labels.json"
    """The one map from identity names to labels; real and synthetic sets share it."""
    pack: str = "buffalo_l"
    """insightface pack: a name under ~/.insightface/models or a folder."""
    det_size: int | None = None
    """Side of the detector's square input in pixels (a multiple of 32); None: the photo's own size."""
    threshold: float = 0.5
    """Lowest detection score that counts as a face."""
    pad: float = 0.5
    """Black margin on each side as a fraction of height and width: tight faces are found too (published)."""
    face: Literal["largest", "central", "refuse"] = "largest"
    """Which of several faces; "refuse" counts such an image as missing."""
    batch_size: int = 32
    """Photos per detector call."""
    threads: int | None = None
    """CPU threads of torch and of the detector; None: torch's own choice, under a launcher a fair share."""

    def check(self):
        require(0 < self.threshold < 1, f"threshold: {self.threshold} is not between 0 and 1; try 0.5")
        require(0 <= self.pad <= 2, f"pad: {self.pad} is not between 0 and 2; the published value is 0.5")
        require(self.batch_size > 0, "batch_size: must be at least 1")


@dataclass
class AugmentConfig(BaseConfig):
    """Real crops plus N synthetic ones per identity, as a manifest: fr_training/augment_dataset.py."""

    real: str | None = "FR_DATASETS/real"
    """Crop set of the real photos; None makes a set of synthetic images only."""
    synthetic: str | None = "FR_DATASETS/synthetic/ID-Booth"
    """Crop set of the samples; None makes a set of real images only."""
    samples_metadata: str | None = None
    """metadata.jsonl of the samples, for the balance over backgrounds and poses (read from their prompts);
    None reads what each crop says of itself, which crops of our samples do."""
    choice: Literal["balanced", "first"] = "balanced"
    """Which samples: balanced over backgrounds and poses, or the first `count` by number (published)."""
    curation: str | None = None
    """curation.json of evaluation/curate.py: only samples that it chose are taken; None takes all."""
    count: int = 21
    """Synthetic images per identity (10, 21 and 100 in the paper)."""
    labels: str = "FR_DATASETS/labels.json"
    """The map from names to labels that align_faces.py wrote."""
    output: str = "FR_DATASETS/real+21.json"
    """The manifest; paths in it are relative to it."""
    on_shortage: Literal["refuse", "keep"] = "refuse"
    """An identity with fewer than `count` usable samples stops the script, or keeps what there is (named)."""
    seed: int = 0
    """Seed of the choice of samples."""

    def check(self):
        require(self.real or self.synthetic, "real, synthetic: both are None; give at least one crop set")
        require(self.count >= 0, f"count: {self.count} is negative")
        require(
            not self.synthetic or self.count > 0,
            "count: 0 with a synthetic set; set synthetic to None instead",
        )


@dataclass
class TrainFRConfig(BaseConfig):
    """Train a face recogniser on aligned crops: fr_training/train_fr.py."""

    # Data
    dataset: str = "FR_DATASETS/real"
    """A crop folder (ID_1/*.png), a manifest of augment_dataset.py, or a folder of crop arrays."""
    output: str = "runs/fr/real"
    """Run folder; each seed gets a sub-folder seed_0, seed_1, ..."""
    seeds: tuple[int, ...] = (0,)
    """One training per seed."""

    # Network and head
    network: Literal["iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet_slim", "iresnet_tiny"] = (
        "iresnet50"
    )
    """Backbone; slim (1 M weights) and tiny (half its arithmetic) are for the miniature world."""
    embedding_size: int = 512
    """Length of the embedding."""
    dropout: float = 0.4
    """Dropout before the last linear layer (published: 0.4)."""
    head: Literal["AdaFace", "ArcFace", "CosFace"] = "AdaFace"
    """Margin softmax."""
    s: float = 64.0
    """Scale of the logits."""
    m: float = 0.4
    """Margin."""
    h: float = 0.333
    """AdaFace: how strongly the margin depends on the embedding's norm."""
    t_alpha: float = 0.01
    """AdaFace: weight of the newest batch in the running statistics of the norms (authors: 0.01)."""
    normalise_embeddings: bool = False
    """Published variant: unit embeddings into the head, which turns AdaFace into CosFace(m=0.4)."""
    quality_head: bool = False
    """Also train the quality head of CR-FIQA (Boutros et al., CVPR 2023; there on an ArcFace head with s 64,
    m 0.5): best/quality_backbone.pth is what evaluate.py takes as quality_weights."""
    quality_weight: float = 10.0
    """Weight of the quality loss beside the classification loss (published: 10)."""
    quality_ratio: Literal["paper", "code"] = "paper"
    """Its target: CCS / (NNCCS + 1 + 1e-9), or CCS / NNCCS as the published weights were trained."""

    # Optimisation
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum as published, or AdamW."""
    base_lr: float = 0.1
    """Learning rate per 512 images of a step: lr = base_lr * batch_size * processes / 512."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every weight, as published."""
    clip_norm: float = 5.0
    """Largest gradient norm, for backbone and head apart; 0 switches clipping off."""
    batch_size: int = 128
    """Images per process and step; an incomplete last batch is dropped."""
    max_epochs: int = 200
    """Largest number of passes over the training set."""
    max_steps: int | None = None
    """Stop after so many optimiser steps, in the middle of an epoch if need be; None: after max_epochs."""
    schedule: Literal["plateau", "milestones", "onecycle"] = "plateau"
    """Learning rate: drops when the selection score stalls, drops at fixed epochs, or one cosine to zero."""
    milestones: tuple[int, ...] = (22, 30, 35)
    """Epochs after which the rate drops, for schedule "milestones"."""
    lr_factor: float = 0.1
    """Factor of the learning rate at each drop."""
    lr_patience: int = 4
    """Epochs without gain after which the plateau schedule drops the rate."""
    stop_patience: int = 10
    """Epochs without gain before training stops; 0: never. Published: 6, one epoch after a drop."""
    warmup_epochs: float = 0.0
    """Length of the linear warm-up."""

    # Images
    augmentation: Literal["none", "flip", "randaugment", "robust"] = "flip"
    """"randaugment" is the published ra_4_16 after the flip; "robust" suits soft, misaligned crops."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """"auto": bf16 where a GPU has it, else fp32."""

    # Selection
    selection: Literal["held_out", "benchmark", "none"] = "held_out"
    """The best epoch is that on identities set aside, that on a benchmark (published: LFW), or the last."""
    held_out_identities: int = 8
    """Identities set aside from training, the same for every seed (selection "held_out")."""
    held_out_set: str | None = None
    """A separate crop set to select on instead; all identities of `dataset` then train."""
    selection_benchmark: str | None = None
    """A .bin for selection "benchmark". Its accuracy is then no test result any more."""

    # Output
    export_pack: str | None = None
    """Write an insightface pack with the best recogniser of the first seed into this folder."""
    detector: str | None = None
    """Pack whose detector goes into the exported pack."""
    log_every: int = 50
    """Steps between log lines, and between checks that the loss is finite."""
    device: str = "auto"
    """"auto" takes CUDA where there is one; "cpu" or "cuda"."""
    workers: int | None = None
    """Processes that augment the coming batches; None: as many as a GPU needs, none for a CPU. They change
    no image."""
    threads: int | None = None
    """CPU threads of torch; None: torch's own choice."""

    def check(self):
        require(self.seeds, "seeds: empty; give at least one, e.g. --seeds 0")
        require(min(self.seeds) >= 0, f"seeds: {min(self.seeds)} is negative; count from 0")
        require(self.batch_size > 1, "batch_size: batch norm needs at least 2 images")
        require(self.workers is None or self.workers >= 0, "workers: must be at least 0")
        require(self.max_epochs > 0 and self.log_every > 0, "max_epochs, log_every: must be at least 1")
        require(self.max_steps is None or self.max_steps > 0, "max_steps: must be at least 1, or None")
        require(self.base_lr > 0 and self.s > 0, "base_lr, s: must be positive")
        require(self.embedding_size > 0, "embedding_size: must be positive")
        require(0 <= self.dropout < 1, f"dropout: {self.dropout} is not in [0, 1)")
        require(
            0 < self.t_alpha <= 1, f"t_alpha: {self.t_alpha} is not in (0, 1]; AdaFace's authors use 0.01"
        )
        require(self.quality_weight > 0, f"quality_weight: {self.quality_weight} must be positive")
        require(
            self.selection != "benchmark" or self.selection_benchmark,
            "selection_benchmark: needed for selection 'benchmark'; give an lfw.bin",
        )
        require(
            self.selection != "none" or self.schedule != "plateau",
            "schedule: 'plateau' needs a selection score; use 'milestones' or 'onecycle'",
        )
        require(
            self.selection != "held_out" or self.held_out_set or self.held_out_identities >= 2,
            "held_out_identities: at least 2 people make impostor pairs; or choose another selection",
        )
        require(
            not self.export_pack or self.detector,
            "detector: export_pack needs a pack to take the detector from",
        )


@dataclass
class TestFRConfig(BaseConfig):
    """Verification benchmarks on trained recognisers: fr_training/test_fr.py."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    recognisers: tuple[str, ...] = ("runs/fr/real",)
    """Run folders of train_fr.py (all seeds), weights (.pth, .safetensors, .onnx), insightface packs."""
    benchmarks: tuple[str, ...] = BENCHMARKS
    """Names of .bin files in `benchmark_folder`, paths of .bin files, or pair lists (.txt, .csv)."""
    benchmark_folder: str = "benchmarks"
    """Where lfw.bin and its like lie."""
    output: str = "runs/fr/test"
    """Tables (JSON, CSV, Markdown, LaTeX) and the ROC plots."""
    flip: bool = True
    """Sum each embedding with that of the mirrored image, as published."""
    batch_size: int = 256
    """Images per network call."""
    device: str = "auto"
    """"auto" takes CUDA where there is one."""
    threads: int | None = None
    """CPU threads of torch; None: torch's own choice."""

    def check(self):
        require(self.recognisers, "recognisers: empty; give at least one run folder or weights file")
        require(self.benchmarks, "benchmarks: empty; give at least one name or .bin file")
        require(self.batch_size > 0, "batch_size: must be at least 1")


@dataclass
class StudyConfig(BaseConfig):
    """Real, synthetic, real + synthetic: train, test and compare. fr_training/study.py."""

    prepare: str | None = None
    """Python module that makes the sets first; run as `python -m MODULE` with the same --config and
    overrides."""
    real: str = "FR_DATASETS/real"
    """Crop set of the real photos."""
    synthetic: str = "FR_DATASETS/synthetic"
    """Folder with one crop set per generator."""
    generators: tuple[str, ...] = ()
    """Crop sets of `synthetic` to use; empty means all."""
    samples: str | None = None
    """Folder with the samples of each generator and their metadata.jsonl, for balanced choices; None reads
    what each crop says of itself."""
    counts: tuple[int, ...] = (10, 21)
    """Synthetic images per identity; the set without real photos takes the largest (that there is)."""
    choice: Literal["balanced", "first"] = "balanced"
    """As in augment_dataset.py."""
    curation: str | None = None
    """curation.json of evaluation/curate.py over the samples of all generators: each real + N row gets
    another, of as many chosen samples, and a table says what that changes. None: no such rows."""
    oracle: str | None = None
    """Crop set of real photos in the wild of the same people, an upper bound for samples."""
    labels: str = "FR_DATASETS/labels.json"
    """The map from names to labels."""
    on_shortage: Literal["refuse", "keep", "skip"] = "refuse"
    """When identities have fewer samples than a row wants: refuse the study before anything is trained, keep
    what there is, or keep it but skip rows that ask for more than anybody has. One message names them all."""
    train_config: str = "configs/train_fr_tfd.py"
    """Settings of every row's training; data set, output and seeds are replaced by the study's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Trainings per row, and the choice of samples (from the first)."""
    steps: int | None = None
    """Optimisation steps of each training, so that larger sets do not train longer; None: by epochs."""
    benchmarks: tuple[str, ...] = BENCHMARKS
    """As in test_fr.py."""
    benchmark_folder: str = "benchmarks"
    """Where lfw.bin and its like lie."""
    output: str = "runs/fr/study"
    """Manifests, runs, tables and the plot."""

    def check(self):
        require(self.seeds and self.counts, "seeds, counts: must not be empty")
        require(min(self.seeds) >= 0, f"seeds: {min(self.seeds)} is negative; count from 0")
        require(all(count > 0 for count in self.counts), "counts: must be positive")
        require(self.steps is None or self.steps > 0, "steps: must be positive")
