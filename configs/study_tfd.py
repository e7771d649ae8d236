"""The paper's last experiment: real, synthetic, real + {10, 21, 100} of each generator.

    python -m fr_training.study --config configs/study_tfd.py

FR_DATASETS/synthetic holds a crop set of each generator (configs/align_tfd.py). With samples of the set of 21
the rows of 100 are left out, with those of the set of 100 all are trained. configs/study_published.py is the
same with the published training and choice of samples. Where a set of few people, less those set aside, is
smaller than a step, give a copy of configs/train_fr_tfd.py with smaller numbers by --train-config.
"""

from configs.fr_config import StudyConfig

config = StudyConfig(counts=(10, 21, 100), on_shortage="skip")
