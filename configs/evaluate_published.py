"""The published evaluation to the letter, the flaws of its code included, to compare with published values.

    python -m evaluation.evaluate --config configs/evaluate_published.py --samples-folder SAMPLES

Run "ffhq" belongs to the set of 100 images each, run "lab" to that of 21. configs/evaluate_sd21.py is ours;
docs/published.md says where they differ. What is missing here is listed in the report.
"""

from configs.evaluation_config import EvaluationConfig

config = EvaluationConfig(
    reference_folder="FFHQ_512",
    reference_images=10_000,
    output_folder="evaluation_published",
    cache_folder="evaluation_published/cache",
    pack="buffalo_l",
    recogniser="arcface_files/ArcFace_r100_ms1mv3_backbone.pth",  # that of the loss: circular
    pad=0.5,
    protocol="id-booth-code",
    fmr_rule="nearest",
    encoders=("dinov2", "clip", "mae", "cmmd"),
    encoder_input="crops",
    diversity_runs=("ffhq", "lab"),
    dinov2_folder="models/dinov2-large",
    clip_folder="models/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    mae_folder="models/vit-mae-large",
    cmmd_folder="models/clip-vit-large-patch14-336",
    quality_weights="models/32572backbone.pth",
    quality_colour="BGR",  # red and blue were swapped
    quality_images=10_000,
    pose="6drepnet",
    pose_weights="models/6DRepNet_300W_LP_AFLW2000.pth",
    pose_border=30,
    title="Identity data sets, by the published protocol",
)
