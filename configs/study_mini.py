"""The last experiment in the miniature world, with an oracle row: hours on two CPU cores, resumable.

python -m fr_training.study --config configs/study_mini.py
"""

from configs.fr_config import StudyConfig

FOLDER = "demo_output/study"
config = StudyConfig(
    prepare="mini.study_data",
    real=f"{FOLDER}/FR_DATASETS/real",
    synthetic=f"{FOLDER}/FR_DATASETS/synthetic",
    samples=f"{FOLDER}/Generated_Samples/study",
    oracle=f"{FOLDER}/FR_DATASETS/oracle",
    labels=f"{FOLDER}/FR_DATASETS/labels.json",
    generators=("DreamBooth", "PortraitBooth", "ID-Booth"),
    on_shortage="keep",
    train_config="configs/study_mini_training.py",
    steps=200,
    benchmarks=(f"{FOLDER}/FR_DATASETS/mini_wild.bin",),
    output=f"{FOLDER}/runs",
)
