"""A recogniser for the miniature world's few identities: minutes on one CPU core.

python -m fr_training.train_fr --config configs/train_fr_mini.py --dataset FR_DATASETS/real
"""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    dataset="demo_output/FR_DATASETS/real",
    output="demo_output/runs/fr/real",
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
    held_out_identities=4,
    threads=1,
)
