"""The paper's last experiment as its code stands: the first samples by number, LFW chooses the epoch."""

import dataclasses

from configs.study_tfd import config as tfd

config = dataclasses.replace(
    tfd, choice="first", train_config="configs/train_fr_published.py", output="runs/fr/study_published"
)
