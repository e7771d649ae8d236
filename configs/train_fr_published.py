"""The paper's training to the letter: unit embeddings into AdaFace, LFW chooses rate, epoch and end.

The accuracy on LFW, and the average that holds it, are then optimistic: LFW was seen in training.
"""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    dataset="FR_DATASETS/real",
    output="runs/fr/real_published",
    seeds=(0, 1, 2),
    normalise_embeddings=True,
    t_alpha=1.0,
    augmentation="randaugment",
    selection="benchmark",
    selection_benchmark="benchmarks/lfw.bin",
    stop_patience=6,
    precision="fp32",
)
