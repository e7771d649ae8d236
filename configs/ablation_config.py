"""The fields of evaluation/ablation.py's configuration."""

import dataclasses

from utils.config import BaseConfig
from utils.errors import UserError


@dataclasses.dataclass
class AblationConfig(BaseConfig):
    """Sample and evaluate the recipe with parts of it left out: one set for each, one table."""

    train_config: str = "configs/train_sd21.py"
    """Training; the LoRAs without prior preservation are trained with it, into a folder of their own."""
    inference_config: str = "configs/inference_sd21.py"
    """Sampling: LoRAs, photos, and the folder of sets, one for each row."""
    evaluation_config: str = "configs/evaluate_sd21.py"
    """Evaluation, with the set and method of each row in place of its own."""
    rows: tuple[str, ...] = ()
    """Rows to make, by name (--dry-run shows them); empty means all."""
    method: str = "ID-Booth"
    """Whose LoRAs make the samples of all rows but the one without prior preservation."""
    images: int = 100
    """Images of each person in the rows of prompts (published: 100)."""
    counts: tuple[int, ...] = (21, 100)
    """Further rows with the whole prompt and so many images."""
    no_prior_objective: str = "DreamBooth"
    """Objective that is trained without prior preservation (published: DreamBooth)."""
    no_prior_folder: str = "Trained_LoRA_Models_no_prior"
    """Its LoRAs go here."""
    output_folder: str = "ablation"
    """Each row's report, and the table of all."""

    def check(self):
        """Refuse impossible combinations."""
        if self.images < 1 or any(count < 1 for count in self.counts):
            raise UserError("images, counts: must be at least 1")
