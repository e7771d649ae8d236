"""The embedded default: the same report on the miniature world's samples.

python -m evaluation.evaluate --config configs/evaluate_mini.py
"""

from configs.evaluation_config import EvaluationConfig

config = EvaluationConfig(
    samples_folder="demo_output/Generated_Samples/FacePortrait_Photo_21_Gender_Pose_Background",
    real_folder="demo_output/FACE_DATASET",
    output_folder="demo_output/evaluation",
    cache_folder="demo_output/evaluation/cache",
    pack="mini/weights/pack",
    encoders=("attributes", "recogniser"),
    attributes_file="mini/weights/attributes.onnx",
    quality_weights="mini/weights/quality.safetensors",
    title="The miniature world, measured",
    device="cpu",
)
