"""The paper's ablation: prompts, negative prompt, prior preservation, and the size of the set.

    python -m evaluation.ablation --config configs/ablation_sd21.py --dry-run

Goes on from the trained LoRAs of configs/train_sd21.py; what is done is kept.
"""

from configs.ablation_config import AblationConfig

config = AblationConfig()
