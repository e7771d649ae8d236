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
    lora_rank=16,
    lora_alpha=16.0,
    # A network this small holds a person in all its layers, not in attention alone.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    learning_rate=2e-3,
    train_batch_size=4,
    # Of ten steps each; ten epochs hold a person better and take twice as long.
    num_train_epochs=5,
    checkpointing_epochs=5,
    # On the miniature a weight of 1 costs diversity and gains nothing (docs/results.md).
    identity_loss_weight=0.1,
    identity_decode="face",
    face_margin=2,
    face_crop="aligned",
    saturated_pixels="straight-through",
    identity_max_timestep=700,
    mixed_precision="no",
    # Memory is no matter here, and of layers this small they cost an eighth of a step.
    lean_layers=False,
    cache_batch_size=16,
)
