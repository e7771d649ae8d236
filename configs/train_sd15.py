"""Our recipe for Stable Diffusion 1.5, whose weights are still to be had from its mirror.

    python train_id_booth.py --config configs/train_sd15.py --source-folder /data/lab_photos

As configs/train_sd21_fast.py, with class images and LoRAs of its own: class images come from the model that
is trained, and a LoRA is refused by another base. The published recipe is configs/train_sd21.py with
--base-model, --class-folder and --output-folder as here.
"""

import dataclasses

from configs.train_sd21_fast import config as fast

config = dataclasses.replace(
    fast,
    base_model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    class_folder="runs/sd15/CLASS_IMAGES",
    output_folder="runs/sd15/Trained_LoRA_Models",
)
