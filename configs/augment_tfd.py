"""Lab photos plus N samples of ID-Booth per person: 10, 21 or 100 in the paper.

    python -m fr_training.augment_dataset --config configs/augment_tfd.py
    python -m fr_training.augment_dataset --config configs/augment_tfd.py \\
        --count 10 --output FR_DATASETS/real+10.json

People with fewer usable samples have all of theirs, and the run says who they are.
Samples are balanced over background and pose by the records that their crops carry. Crops of samples without
records need --samples-metadata FOLDER, the method's folder with its metadata.jsonl.
"""

from configs.fr_config import AugmentConfig

config = AugmentConfig(
    synthetic="FR_DATASETS/synthetic/ID-Booth", count=21, choice="balanced", on_shortage="keep"
)
