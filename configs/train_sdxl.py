"""Our recipe for Stable Diffusion XL: 1,024 pixels, both text encoders as they are.

    python train_id_booth.py --config configs/train_sdxl.py --source-folder /data/lab_photos

As configs/train_sd21_fast.py, and
- 1,024 pixels, the size of its base (lab photos that are smaller are enlarged);
- the UNet's activations are computed again in the backward pass: with three times SD 2.1's weights and four
  times its pixels a step would else take some 22 GiB in bf16 instead of 14 (estimates of check_setup);
- bf16, in which its VAE does not overflow as in fp16. With fp16 the VAE stays in float32.
"""

import dataclasses

from configs.train_sd21_fast import config as fast

config = dataclasses.replace(
    fast,
    base_model="stabilityai/stable-diffusion-xl-base-1.0",
    resolution=1024,
    class_folder="runs/sdxl/CLASS_IMAGES",
    output_folder="runs/sdxl/Trained_LoRA_Models",
    gradient_checkpointing=True,
    cache_batch_size=1,
    class_batch_size=2,
)
