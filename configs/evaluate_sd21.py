"""The paper's evaluation of a sample set, with intervals and an independent judge.

    python -m evaluation.evaluate --config configs/evaluate_sd21.py --samples-folder Generated_Samples/SET

Fetch the weights named here once. Both packs must be there (--judge-pack None does without the second); other
networks that are missing are listed in the report, and nothing else fails for it.
"""

from configs.evaluation_config import EvaluationConfig

config = EvaluationConfig(
    pack="buffalo_l",
    judge_pack="antelopev2",
    pad=0.5,
    encoders=("dinov2", "recogniser"),
    dinov2_folder="models/dinov2-large",
    clip_folder="models/clip-vit-large-patch14",
    quality_weights="models/32572backbone.pth",
    pose="6drepnet",
    pose_weights="models/6DRepNet_300W_LP_AFLW2000.pth",
    pose_border=30,
)
