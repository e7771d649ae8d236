"""The paper's training as its code stands: unit embeddings into AdaFace, LFW chooses rate, epoch and end.

    python -m fr_training.train_fr --config configs/train_fr_published.py \\
        --dataset FR_DATASETS/real+21.json --output runs/fr/real+21_published

No augmentation but mirroring. When the paper was submitted the code also had RandAugment on
(configs/train_fr_published_randaugment.py); which of the two its tables report is not known. The accuracy on
LFW, and the average that holds it, are optimistic: LFW was seen in training.
"""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    dataset="FR_DATASETS/real",
    output="runs/fr/real_published",
    seeds=(0, 1, 2),
    network="iresnet50",
    dropout=0.4,
    head="AdaFace",
    s=64.0,
    m=0.4,
    h=0.333,
    t_alpha=1.0,
    normalise_embeddings=True,  # which turns AdaFace into CosFace with margin 0.4
    base_lr=0.1,  # 0.025 at 128 images
    momentum=0.9,
    weight_decay=5e-4,
    clip_norm=5.0,
    batch_size=128,
    max_epochs=200,
    schedule="plateau",
    lr_factor=0.1,
    lr_patience=4,
    stop_patience=6,
    augmentation="flip",
    selection="benchmark",
    selection_benchmark="benchmarks/lfw.bin",
    precision="fp32",
)
