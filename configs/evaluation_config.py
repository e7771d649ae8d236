"""The fields of evaluation/evaluate.py's configuration."""

import dataclasses
from typing import Literal

from utils.config import BaseConfig
from utils.errors import UserError

Encoder = Literal["dinov2", "clip", "mae", "cmmd", "recogniser", "attributes", "pixels"]
DiversityRun = Literal["equal", "ffhq", "lab"]
# Where the networks of fields are to be had.
SOURCES = {
    "dinov2_folder": "the folder of huggingface.co/facebook/dinov2-large (config.json, model.safetensors)",
    "clip_folder": "the folder of huggingface.co/openai/clip-vit-large-patch14, for evaluate_published of "
    "huggingface.co/laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K (config.json and weights)",
    "cmmd_folder": "the folder of huggingface.co/openai/clip-vit-large-patch14-336 (config.json and weights)",
    "mae_folder": "the folder of huggingface.co/facebook/vit-mae-large (config.json and weights)",
    "attributes_file": "an ONNX file as in evaluation/attributes.py, such as mini/weights/attributes.onnx",
    "quality_weights": "github.com/fdbtrs/CR-FIQA (README, section Pretrained model): 32572backbone.pth of "
    "CR-FIQA(S) or 181952backbone.pth of CR-FIQA(L)",
    "pose_weights": "6DRepNet_300W_LP_AFLW2000.pth, linked from github.com/thohemp/6DRepNet",
}


@dataclasses.dataclass
class EvaluationConfig(BaseConfig):
    """Measure sets of samples against real photos: one HTML report and its tables as CSV, JSON and LaTeX."""

    # data
    samples_folder: str = "Generated_Samples"
    """A sample set with {method}/{identity}/*.png, or a folder that holds one such set."""
    methods: tuple[str, ...] = ()
    """Method folders to compare, in this order; empty means all."""
    real_folder: str = "FACE_DATASET"
    """The real photos, in either nesting."""
    identities: tuple[str, ...] = ()
    """Only these identities; empty means all that have real photos."""
    reference_folder: str | None = None
    """Flat folder of in-the-wild photos (for instance FFHQ) as reference of the diversity metrics; None
    takes the real photos."""
    reference_images: int | None = 10_000
    """So many seeded images of reference_folder, drawn before anything looks at them; None takes all."""
    groups_file: str | None = None
    """Gender and age by identity (CSV or JSON), for results by group; None looks for attributes.csv or .json
    beside the real photos."""
    output_folder: str = "evaluation_output"
    """report.html and tables/ go here."""
    cache_folder: str | None = "evaluation_output/cache"
    """Detections and features by content hash and network, so that a second run is quick; None keeps none."""

    # faces
    pack: str = "buffalo_l"
    """insightface pack: its detector finds the faces."""
    recogniser: str | None = None
    """Judge from a file of its own (.pth, .safetensors, .onnx), such as that of the loss, which the published
    evaluation used; None takes the pack's recogniser. Circular for methods that were trained to please it."""
    judge_pack: str | None = None
    """Pack with another recogniser, the independent judge; None leaves judging to the first one."""
    det_size: int | None = None
    """Side in pixels of the detector's input; None keeps photos up to 640 pixels."""
    detection_threshold: float = 0.5
    """Lowest detection score of a face."""
    pad: float = 0.0
    """Black margin added on each side before detection, as a fraction of it; 0.5 is the published value."""
    face_policy: Literal["largest", "central", "refuse"] = "largest"
    """Which of several faces counts; "refuse" counts such an image as one without a usable face."""

    # identity
    protocol: Literal["all", "id-booth", "id-booth-code"] = "all"
    """Pairs compared: all, or the sub-sampled ones of the published evaluation, as meant or as its code runs
    (which compares a sample with later photos only)."""
    fmr_rule: Literal["at_most", "nearest"] = "at_most"
    """FMR100: FNMR at an FMR of at most 1 %, or at the nearest FMR (PyEER, published tables)."""
    replicates: int = 1000
    """Bootstrap replicates over identities for means."""
    verification_replicates: int = 200
    """The same for error rates, which cost more."""
    score_files: bool = False
    """Write all scores as text (scores/{table}/{method}/genuines.txt, impostors.txt), PyEER's format."""

    # diversity
    encoders: tuple[Encoder, ...] = ("dinov2",)
    """Features for Frechet distance, kernel distance, PRDC, Vendi and AuthPct; "cmmd" adds CMMD."""
    encoder_input: Literal["images", "crops"] = "images"
    """What dinov2, clip, mae, cmmd and pixels see: whole images, or aligned 112-pixel crops (published)."""
    diversity_runs: tuple[DiversityRun, ...] = ("equal",)
    """"equal" takes equally many images of every set; "ffhq" (needs reference_folder) and "lab" are the
    published runs (evaluation/measure_diversity.py)."""
    dinov2_folder: str | None = None
    """Local folder of facebook/dinov2-large."""
    clip_folder: str | None = None
    """Local folder of a CLIP model, for the encoder and for the CLIP score."""
    mae_folder: str | None = None
    """Local folder of facebook/vit-mae-large."""
    cmmd_folder: str | None = None
    """Local folder of CLIP ViT-L/14 at 336 pixels, for CMMD."""
    attributes_file: str | None = None
    """ONNX file of a classifier of what pictures show, in the form of evaluation/attributes.py: for prompt
    adherence and the encoder "attributes". The miniature has one, mini/weights/attributes.onnx."""
    nearest_neighbours: int = 5
    """k of precision, recall, density and coverage."""

    # quality and pose
    quality_weights: str | None = None
    """CR-FIQA weights: 32572backbone.pth (S) or 181952backbone.pth (L)."""
    quality_colour: Literal["RGB", "BGR"] = "RGB"
    """RGB as CR-FIQA demands; BGR repeats the channel swap of the published ID-Booth values."""
    quality_images: int | None = None
    """Of a set with more faces so many, drawn with seed 7 (published: 10,000); None takes all."""
    pose: Literal["five_point", "pack_3d", "6drepnet"] = "five_point"
    """Head pose from five landmarks (no weights), from the pack's 3D landmarks, or by 6DRepNet."""
    pose_weights: str | None = None
    """6DRepNet_300W_LP_AFLW2000.pth."""
    pose_border: int | None = None
    """6DRepNet's input: None crops the photo; a number takes the aligned crop, bordered (published: 30)."""

    # report
    title: str = "Identity data sets, measured"
    """Heading of the report."""
    grid_identities: int = 4
    """Identities shown as pictures."""
    grid_images: int = 8
    """Pictures shown per identity and method."""
    gallery: bool = True
    """Write gallery.html, where all samples are looked through, sorted and marked beside the real photos."""
    gallery_pixels: int = 192
    """Side of its pictures at most."""
    batch_size: int = 32
    """Images per call of a network."""
    device: str = "auto"
    """Of all networks but the classifier of attributes: "auto" takes CUDA where there is one."""
    threads: int | None = None
    """CPU threads of torch and of the detector; None: torch's own choice, under a launcher a fair share."""
    seed: int = 0
    """Seed of subsets and bootstraps."""

    def check(self):
        """Refuse impossible combinations."""
        if self.det_size is not None and (self.det_size < 32 or self.det_size % 32):
            raise UserError(f"det_size: {self.det_size} is no multiple of 32; use for example 320 or 640")
        if self.replicates < 20 or self.verification_replicates < 20:
            raise UserError("replicates: fewer than 20 make no interval; use at least 200")
        if not 16 <= self.gallery_pixels <= 1024:
            raise UserError(f"gallery_pixels: {self.gallery_pixels} is not between 16 and 1024; try 192")
        if self.nearest_neighbours < 1 or self.batch_size < 1:
            raise UserError("nearest_neighbours and batch_size must be at least 1")
        for name in ("reference_images", "quality_images"):
            if (getattr(self, name) or 2) < 2:
                raise UserError(f"{name}: fewer than 2 make no figure; give more, or None for all")
