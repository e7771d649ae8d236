"""The miniature world's benchmark of wild photos of people never seen (made by fr_training/study.py)."""

from configs.fr_config import TestFRConfig

config = TestFRConfig(
    recognisers=("demo_output/runs/fr/real",),
    benchmarks=("demo_output/FR_DATASETS/mini_wild.bin",),
    output="demo_output/runs/fr/test",
    threads=1,
)
