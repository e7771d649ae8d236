"""Choose among the samples of Stable Diffusion 2.1 that configs/evaluate_sd21.py measured.

python -m evaluation.curate --config configs/curate_sd21.py --dry-run
"""

from configs.curate_config import CurateConfig

config = CurateConfig()
