"""The embedded default: choose among the samples of the demo.

python -m evaluation.curate --config configs/curate_mini.py --dry-run
"""

from configs.curate_config import CurateConfig

config = CurateConfig(measurements="demo_output/evaluation", output_folder="demo_output/curation", most=10)
