"""The embedded default: the same code on the miniature world, seconds on two CPU cores.

python extract_arcface_embeds.py --config configs/extract_mini.py
"""

from configs.extract_config import ExtractConfig

config = ExtractConfig(
    source_folder="demo_output/FACE_DATASET",
    pack="mini/weights/pack",
    recogniser=None,
    workers=2,
)
