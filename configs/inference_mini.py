"""The embedded default: the same code on the miniature world, minutes on two CPU cores.

python inference_id_booth.py --config configs/inference_mini.py
"""

from configs.inference_config import InferenceConfig

config = InferenceConfig(
    lora_folder="demo_output/Trained_LoRA_Models",
    source_folder="demo_output/FACE_DATASET",
    output_folder="demo_output/Generated_Samples",
    sheets_folder="demo_output/Contact_Sheets",
    base_model="mini/weights/base",
    precision="fp32",
    resolution=128,
    batch_size=21,
    decode_batch_size=7,
)
