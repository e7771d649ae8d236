"""How every row of the miniature study is trained: alike, to the end, with nothing to select on."""

from configs.fr_config import TrainFRConfig

config = TrainFRConfig(
    network="iresnet_tiny",
    embedding_size=128,
    dropout=0.2,
    head="CosFace",
    s=32.0,
    m=0.2,
    optimizer="adamw",
    base_lr=0.032,  # 2e-3 at 32 images
    weight_decay=0.05,
    batch_size=32,
    schedule="onecycle",
    warmup_epochs=1.0,
    stop_patience=0,
    augmentation="robust",
    selection="none",
    precision="fp32",
    threads=1,
)
