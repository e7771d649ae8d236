"""The paper's five benchmarks (.bin files of insightface in benchmarks/)."""

from configs.fr_config import TestFRConfig

config = TestFRConfig(recognisers=("runs/fr/real",), output="runs/fr/test")
