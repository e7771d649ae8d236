"""The embedded default: the same code on the miniature world, minutes on two CPU cores.

    python train_id_booth.py --config configs/train_mini.py
"""

from configs.train_config import TrainConfig

config = TrainConfig(
    source_folder="demo_output/FACE_DATASET",
    class_folder="demo_output/CLASS_IMAGES",
    output_folder="demo_output/Trained_LoRA_Models",
    resolution=128,
    base_model="mini/weights/base",
    pack="mini/weights/pack",
    recogniser=None,
    num_class_images=40,
    class_inference_steps=30,
    class_guidance_scale=5.0,
    class_batch_size=16,
    lora_rank=8,
    lora_alpha=8.0,
    learning_rate=2e-3,
    num_train_epochs=5,
    checkpointing_epochs=5,
    identity_decode="face",
    face_margin=2,
    face_crop="aligned",
    identity_max_timestep=700,
    mixed_precision="no",
    cache_batch_size=16,
)
