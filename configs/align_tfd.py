"""Crops of the lab photos, as published: black margin of half the size, largest face.

Run it once for the photos and once for each method's samples, with the same labels file:
    python -m fr_training.align_faces --config configs/align_tfd.py
    python -m fr_training.align_faces --config configs/align_tfd.py \\
        --source Generated_Samples/SET/ID-Booth --output FR_DATASETS/synthetic/ID-Booth

Samples of another set need another output, such as FR_DATASETS/synthetic_100/ID-Booth.
"""

from configs.fr_config import AlignConfig

config = AlignConfig(source="FACE_DATASET", output="FR_DATASETS/real", pack="buffalo_l")
