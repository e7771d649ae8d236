"""Sampling from the LoRAs of configs/train_sd15.py, as published for Stable Diffusion 2.1.

python inference_id_booth.py --config configs/inference_sd15.py --source-folder /data/lab_photos
"""

import dataclasses

from configs.inference_sd21 import config as published

config = dataclasses.replace(
    published,
    base_model="stable-diffusion-v1-5/stable-diffusion-v1-5",
    lora_folder="runs/sd15/Trained_LoRA_Models",
    output_folder="runs/sd15/Generated_Samples",
    sheets_folder="runs/sd15/Contact_Sheets",
)
