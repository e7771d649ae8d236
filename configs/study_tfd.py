"""The paper's last experiment: real, synthetic, real + {10, 21, 100} of each generator."""

from configs.fr_config import StudyConfig

config = StudyConfig(counts=(10, 21, 100))
