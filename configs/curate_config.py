"""The fields of evaluation/curate.py's configuration."""

import dataclasses

from utils.config import BaseConfig
from utils.errors import UserError


@dataclasses.dataclass
class CurateConfig(BaseConfig):
    """Choose samples by what they measure and by a person's marks. None switches a rule off."""

    measurements: str = "evaluation_output"
    """Output folder of evaluate.py: its measurements.parquet and measurements.json are read."""
    marks: str | None = None
    """File of marks that gallery.html exported: "keep" is always taken, "reject" never."""
    methods: tuple[str, ...] = ()
    """Methods to choose of; empty means all."""
    output_folder: str = "curation"
    """curation.json, curation.csv and README.md go here; nothing is copied, moved or deleted."""

    judge: str | None = None
    """Which judge of the evaluation decides on identity; None: the independent one where there is one."""
    fmr: float | None = 0.01
    """A sample must be as similar to its person's photos as at most this share of the real photos is to other
    people's; at most 0.1."""
    least_margin: float | None = 0.0
    """Lowest margin of a sample's own person over the most similar other person (cosine)."""
    quality_quantile: float | None = 0.05
    """Lowest quality: that of the real photos at this quantile."""
    copy_likeness: float | None = 0.98
    """From this correlation with a real photo's aligned face on a sample is a copy."""
    duplicate_likeness: float | None = 0.98
    """From this correlation on two samples of a person show the same; one stays."""
    most: int | None = 21
    """Samples of each person and method at most, balanced over the backgrounds and poses of their prompts."""
    seed: int = 0
    """Seed of the choice among samples that pass."""

    def check(self):
        """Refuse impossible combinations."""
        if self.fmr is not None and not 0 < self.fmr <= 0.1:
            raise UserError(f"fmr: {self.fmr} is not above 0 and at most 0.1; try 0.01")
        if self.quality_quantile is not None and not 0 <= self.quality_quantile <= 1:
            raise UserError(f"quality_quantile: {self.quality_quantile} is not between 0 and 1; try 0.05")
        for name in ("copy_likeness", "duplicate_likeness"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} is not above 0 and at most 1; try 0.98")
        if self.most is not None and self.most < 1:
            raise UserError(f"most: {self.most} is below 1; give a number of samples, or None for all")
