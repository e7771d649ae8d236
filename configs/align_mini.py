"""Crops in the miniature world: its own pack; faces never fill the picture, so the margin is a quarter."""

from configs.fr_config import AlignConfig

config = AlignConfig(
    source="demo_output/FACE_DATASET",
    output="demo_output/FR_DATASETS/real",
    labels="demo_output/FR_DATASETS/labels.json",
    pack="mini/weights/pack",
    pad=0.25,
)
