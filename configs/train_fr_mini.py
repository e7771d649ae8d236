"""A recogniser for the miniature world's few identities: minutes on one CPU core.

    python -m fr_training.train_fr --config configs/train_fr_mini.py

Trains on the mixture that configs/augment_mini.py makes of the demo's three people: too few to set any aside,
so the last epoch counts.
"""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    dataset="demo_output/FR_DATASETS/real+21.json",
    output="demo_output/runs/fr/real+21",
    seeds=(0, 1, 2),
    network="iresnet_tiny",
    embedding_size=128,
    dropout=0.2,
    head="AdaFace",
    s=32.0,
    optimizer="adamw",
    base_lr=0.032,  # 2e-3 at 32 images
    weight_decay=0.05,
    batch_size=32,
    max_epochs=40,
    schedule="onecycle",
    warmup_epochs=1.0,
    stop_patience=0,
    augmentation="robust",
    selection="none",
    threads=1,
)
