"""The miniature world's face quality network (CR-FIQA), trained by fr_training's own loop on rendered people.

python -m mini.build.quality                       # render, train, export, judge
"""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from safetensors.torch import save_file

from arcface_files.recogniser import load_recogniser, read_pth
from evaluation.identity import pair_scores, verification_stats
from evaluation.quality import load_quality_network, quality_scores
from fr_training.crops import load_crops
from fr_training.networks import embed
from fr_training.trainer import QUALITY_FILE, Trainer
from mini.build.recogniser_data import held_out_set, training_set
from mini.paths import WEIGHTS, build_dir
from utils.config import load_config
from utils.errors import run
from utils.files import atomic_path
from utils.progress import log
from utils.run_record import PROJECT_ROOT

CONFIG = PROJECT_ROOT / "configs/train_fr_quality_mini.py"
OUTPUT = WEIGHTS / "quality.safetensors"
DISCARDED = 0.2


def train_quality(out_path=OUTPUT, folder=None, seed=0, epochs=None):
    """Train, write the network to ``out_path`` in half precision, and judge it (see :func:`judge`).

    Args:
        folder: the build's folder; its recogniser/recogniser_data is rendered where it is missing.
        epochs: passes over the crops; default: the config's.
    """
    folder = Path(folder or build_dir())
    config = load_config(CONFIG, ("--max-epochs", str(epochs)) if epochs else ())
    data = load_crops(training_set(folder / "recogniser"))
    run_folder = folder / "quality" / f"seed_{seed}"
    Trainer(config, data, None, Accelerator(cpu=True), run_folder, seed).train(None)
    state = read_pth(run_folder / "best" / QUALITY_FILE)
    state = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in state.items()}
    with atomic_path(out_path) as temporary:
        save_file(state, temporary)
    return judge(out_path, folder / "recogniser")


def judge(path, folder, recogniser=None):
    """Equal error rate of held-out people before and after the crops of lowest quality are discarded.

    The error-versus-discard idea (Grother and Tabassi, 2007) at one point: a quality worth its name makes
    the recogniser err less on what it keeps.

    Returns:
        mapping eer (all crops), eer_kept (without the worst fifth), eer_random (without a random fifth).
    """
    held_out = load_crops(held_out_set(folder))
    network = load_recogniser(recogniser or Path(path).parent / "pack/rec_mini.safetensors")
    embeddings = embed(network, held_out.images, flip=False)
    scores = quality_scores(load_quality_network(path), held_out.images)
    kept = scores >= np.quantile(scores, DISCARDED)
    shuffled = np.random.default_rng(0).permutation(kept)
    result = {
        name: verification_stats(*pair_scores(embeddings[rows], held_out.labels[rows]))["eer"]
        for name, rows in (("eer", np.ones_like(kept)), ("eer_kept", kept), ("eer_random", shuffled))
    }
    log("quality: " + "  ".join(f"{name} {value:.4f}" for name, value in result.items()))
    return result


def main():
    """Entry point."""
    train_quality()


if __name__ == "__main__":
    run(main)
