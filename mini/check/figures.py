"""The frame of ``python -m mini.check``: its settings, and figures with what is demanded of them."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from arcface_files.faces import FaceAnalyser
from mini.paths import WEIGHTS, build_dir
from mini.world.identity import HELD_OUT
from utils.errors import UserError
from utils.files import sha256_bytes
from utils.progress import log
from utils.run_record import PROJECT_ROOT
from utils.text_tables import aligned

PARTS = ("renderer", "detector", "recogniser", "base", "finetune")
# Each part has people of its own, none of them seen by any training.
FIRST_PERSON = {part: HELD_OUT + 100_000 * (place + 1) for place, part in enumerate(PARTS)}


@dataclass(frozen=True)
class Figure:
    """A measured value and the bounds it has to meet.

    value: None where it could not be measured; ``note`` then says why.
    sample: what it was measured on, such as "200 wild pictures".
    at_least, at_most: the bounds; with neither, the figure is only reported.
    """

    name: str
    value: float | None
    sample: str
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def verdict(self):
        """ "pass", "FAIL", "reported", or "not measured"."""
        if self.value is None:
            return "not measured"
        if self.at_least is None and self.at_most is None:
            return "reported"
        low = -np.inf if self.at_least is None else self.at_least
        high = np.inf if self.at_most is None else self.at_most
        return "pass" if low <= self.value <= high else "FAIL"

    @property
    def demand(self):
        """The demand in words, or nothing."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{words} {bound:g}{self.unit}" for words, bound in bounds if bound is not None)

    @property
    def shown(self):
        """The value with its unit: four significant digits, or a dash."""
        return "-" if self.value is None else f"{self.value:.4g}{self.unit}"

    def record(self, part):
        """All fields as plain values for JSON; NaN becomes None."""
        value = self.value if self.value is not None and np.isfinite(self.value) else None
        own = {**asdict(self), "value": value}
        return {"part": part, **own, "demand": self.demand, "shown": self.shown, "verdict": self.verdict}


@dataclass
class CheckConfig:
    """What to check, on how much."""

    only: str = ",".join(PARTS)
    """Parts to check, with commas between."""
    scale: float = 1.0
    """Smaller samples: 0.1 takes a tenth, too few for a verdict."""
    real: Path | None = field(
        default_factory=lambda: Path(p) if (p := os.environ.get("ID_BOOTH_FIXTURES")) else None
    )
    """Folder with real networks and photos (real_pack: YuNet and SFace; images/att_faces); default:
    ID_BOOTH_FIXTURES. Without it, figures that need them are not measured."""
    weights_dir: Path = WEIGHTS
    """The bundle to check."""
    build_dir: Path = field(default_factory=build_dir)
    """Intermediate results are kept in its folder "check"; the same command goes on from there."""
    output: Path | None = None
    """JSON file of the figures; default: check/figures.json in the build folder."""
    publish: bool = False
    """Write the figures into the bundle's model card as well."""
    threads: int | None = None
    """CPU threads of the networks; default: OMP_NUM_THREADS, or torch's own choice."""
    seed: int = 0
    """Another seed takes other people, views, prompts and noise."""

    def parts(self):
        """The parts asked for, in order; UserError for anything unknown or impossible."""
        asked = [name.strip() for name in self.only.split(",") if name.strip()]
        for name in asked:
            if name not in PARTS:
                raise UserError(f"--only: no part {name!r}; choose from {', '.join(PARTS)}")
        if not asked:
            raise UserError(f"--only: names nothing; choose from {', '.join(PARTS)}")
        if not 0 < self.scale <= 1:
            raise UserError(f"--scale: is {self.scale}, must be above 0 and at most 1")
        if not 0 <= self.seed < 1000:
            raise UserError(f"--seed: is {self.seed}, must be from 0 to 999")
        return [name for name in PARTS if name in asked]

    def count(self, full, least=20):
        """``full`` times the scale, but at least ``least``."""
        return max(min(least, full), round(full * self.scale))

    def first_person(self, part):
        """The first identity seed of a part: parts and check seeds have no person in common."""
        return FIRST_PERSON[part] + 20_000_000 * self.seed

    def kept(self, name, *files):
        """Folder for results that depend on the seed and on ``files`` only; other files, another folder."""
        key = sha256_bytes("".join(sha256_bytes(Path(f).read_bytes()) for f in files).encode())[:12]
        folder = self.build_dir / "check" / f"{name}_{self.seed}_{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def pack_files(self):
        """The bundle's detector and recogniser; UserError when one is missing."""
        files = [self.weights_dir / "pack" / name for name in ("det_mini.onnx", "rec_mini.onnx")]
        for file in files:
            if not file.is_file():
                raise UserError(f"{file}: not there; train it with python -m mini.build")
        return files

    def mini_pack(self):
        """The bundle's own FaceAnalyser."""
        self.pack_files()
        return FaceAnalyser(self.weights_dir / "pack", device="cpu")

    def real_packs(self, sizes):
        """A FaceAnalyser over YuNet and SFace for each detector size; None where there is no real_pack."""
        if self.real is None or not (self.real / "real_pack").is_dir():
            return None
        return [FaceAnalyser(self.real / "real_pack", det_size=size, device="cpu") for size in sizes]


NO_REAL = "needs real YuNet and SFace: set ID_BOOTH_FIXTURES or --real"


def renderer_files():
    """Source files that decide what renders look like."""
    return [PROJECT_ROOT / "mini/face_world.py", *sorted((PROJECT_ROOT / "mini/world").glob("*.py"))]


def base_files(weights_dir):
    """The weights of the bundle's base model; UserError when there are none."""
    files = sorted((weights_dir / "base").rglob("*.safetensors"))
    if not files:
        raise UserError(f"{weights_dir / 'base'}: no weights; train them with python -m mini.build")
    return files


def most_confident(faces):
    """The face with the highest score, or None."""
    return max(faces, key=lambda face: face.score) if faces else None


def per_cent(values):
    """Mean of flags or shares, in per cent; NaN for none."""
    return 100 * float(np.mean(values)) if len(values) else float("nan")


def print_table(records):
    """One line per figure, by part."""
    lines, part = [["figure", "demanded", "measured", "sample", ""]], None
    for r in records:
        if r["part"] != part:
            part = r["part"]
            lines.append([part, "", "", "", ""])
        note = f"  ({r['note']})" if r["note"] else ""
        lines.append([r["name"], r["demand"], r["shown"], r["sample"], r["verdict"] + note])
    log(aligned(lines))
