"""Lab photos plus N samples of ID-Booth per person; --count 10, 21 or 100 as in the paper."""

from configs.fr_config import AugmentConfig

config = AugmentConfig()
