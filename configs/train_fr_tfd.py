"""The paper's recogniser on a set of the size of its lab photos (107 people, 2,299 crops).

    python -m fr_training.train_fr --config configs/train_fr_tfd.py \\
        --dataset FR_DATASETS/real+21.json --output runs/fr/real+21

IResNet-50, SGD at 0.025 (batch 128, one GPU), momentum 0.9, weight decay 5e-4, gradient norms at 5, plateau
schedule, RandAugment: as published. Ours: AdaFace sees norms (t_alpha 0.01), the epoch is chosen on people
set aside, a stop after 10 epochs without gain instead of 6, the device's own precision. With few people:
--held-out-identities 2 --batch-size 32.
"""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    dataset="FR_DATASETS/real", output="runs/fr/real", seeds=(0, 1, 2), augmentation="randaugment"
)
