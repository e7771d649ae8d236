"""The miniature world's face quality network (CR-FIQA), on the people its recogniser learnt from.

    python -m fr_training.train_fr --config configs/train_fr_quality_mini.py

The crops are those that `python -m mini.build.recogniser` renders. The run's
seed_0/best/quality_backbone.pth is what evaluate.py takes as quality_weights. `python -m mini.build.quality`
renders, trains with these settings, and writes the network that the project ships.
"""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    dataset="build/mini/recogniser/recogniser_data/train",
    output="build/mini/quality",
    network="iresnet_tiny",
    embedding_size=64,
    dropout=0.0,
    head="ArcFace",  # as in CR-FIQA
    s=32.0,
    m=0.3,
    quality_head=True,
    optimizer="adamw",
    base_lr=0.024,  # 3e-3 at 64 images
    weight_decay=0.05,
    batch_size=64,
    max_epochs=5,
    schedule="onecycle",
    warmup_epochs=0.5,
    augmentation="robust",  # its blur, shifts and light are what quality is about
    selection="none",
    precision="fp32",
    threads=1,
)
