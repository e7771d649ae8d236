"""Lab photos plus samples in the miniature world."""

from configs.fr_config import AugmentConfig

config = AugmentConfig(
    real="demo_output/FR_DATASETS/real",
    synthetic="demo_output/FR_DATASETS/synthetic/ID-Booth",
    labels="demo_output/FR_DATASETS/labels.json",
    output="demo_output/FR_DATASETS/real+21.json",
    on_shortage="keep",
)
