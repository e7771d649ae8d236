"""Lab photos plus N samples of ID-Booth per person; --count 10, 21 or 100 as in the paper.

Samples are balanced over background and pose by the records that their crops carry. Crops of samples without
records need --samples-metadata FOLDER, the method's folder with its metadata.jsonl.
"""

from configs.fr_config import AugmentConfig

config = AugmentConfig(synthetic="FR_DATASETS/synthetic/ID-Booth", count=21, choice="balanced")
