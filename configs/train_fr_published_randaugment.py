"""The paper's training with RandAugment "ra_4_16", which its code had on when the paper was submitted."""

import dataclasses

from configs.train_fr_published import config as published

config = dataclasses.replace(
    published, output="runs/fr/real_published_randaugment", augmentation="randaugment"
)
