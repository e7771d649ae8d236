"""The ablation on the demo's people, ten images each.

python -m evaluation.ablation --config configs/ablation_mini.py
"""

from configs.ablation_config import AblationConfig

config = AblationConfig(
    train_config="configs/train_mini.py",
    inference_config="configs/inference_mini.py",
    evaluation_config="configs/evaluate_mini.py",
    images=10,
    counts=(21,),
    no_prior_folder="demo_output/Trained_LoRA_Models_no_prior",
    output_folder="demo_output/ablation",
)
