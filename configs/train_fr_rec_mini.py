"""The miniature world's recogniser (mini/build/recogniser.py): short, on crops as soft as samples are."""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    network="iresnet_tiny",
    embedding_size=128,
    dropout=0.0,
    head="CosFace",
    s=32.0,
    m=0.3,
    optimizer="adamw",
    base_lr=0.024,  # 3e-3 at 64 images
    weight_decay=0.05,
    batch_size=64,
    max_epochs=12,
    schedule="onecycle",
    warmup_epochs=0.5,
    augmentation="robust",
    selection="none",  # judged afterwards on held-out people; the last epoch counts
    precision="fp32",
    threads=1,
)
