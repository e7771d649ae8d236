"""The recogniser of configs/train_fr_mini.py on wild renders of people never seen.

    python -m fr_training.test_fr --config configs/test_fr_mini.py

docs/miniature.md has the three lines that write the benchmark.
"""

from configs.fr_config import TestFRConfig

config = TestFRConfig(
    recognisers=("demo_output/runs/fr/real+21",),
    benchmarks=("demo_output/FR_DATASETS/mini_wild.bin",),
    output="demo_output/runs/fr/test",
    threads=1,
)
