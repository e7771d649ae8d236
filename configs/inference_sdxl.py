"""Sampling from the LoRAs of configs/train_sdxl.py: published prompts, steps and guidance, 1,024 pixels.

python inference_id_booth.py --config configs/inference_sdxl.py --source-folder /data/lab_photos
"""

import dataclasses

from configs.inference_sd21 import config as published

config = dataclasses.replace(
    published,
    base_model="stabilityai/stable-diffusion-xl-base-1.0",
    lora_folder="runs/sdxl/Trained_LoRA_Models",
    output_folder="runs/sdxl/Generated_Samples",
    sheets_folder="runs/sdxl/Contact_Sheets",
    resolution=1024,
    precision="bf16",
    batch_size=4,
    decode_batch_size=1,
)
