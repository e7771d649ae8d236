"""The miniature world's face recogniser, trained by fr_training's own loop on rendered people.

python -m mini.build.recogniser --minutes 35       # render, train, export, judge
"""

import argparse
import time
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from arcface_files.recogniser import load_recogniser
from evaluation.identity import pair_scores, verification_stats
from fr_training.crops import load_crops
from fr_training.networks import build_network, embed, export_onnx, load_weights, save_network
from fr_training.trainer import Trainer
from fr_training.verification import normalise
from mini.build.recogniser_data import held_out_set, training_set
from mini.paths import WEIGHTS, build_dir
from utils.config import load_config
from utils.errors import Interrupted, run
from utils.progress import log
from utils.run_record import PROJECT_ROOT

CONFIG = PROJECT_ROOT / "configs" / "train_fr_rec_mini.py"
OUTPUT = WEIGHTS / "pack/rec_mini.onnx"


def train_recogniser(out_path=OUTPUT, folder=None, seed=0, minutes=None, epochs=None):
    """Render what is missing, train, write `out_path` (ONNX) and its PyTorch twin (.safetensors) beside it.

    Args:
        folder: of renders and checkpoints; default MINI_BUILD_DIR/recogniser.
        seed: of weights, order and augmentation.
        minutes: stop cleanly after so long, at the end of an epoch; the same call goes on from there.
        epochs: passes in all; default: the config's.

    Returns:
        mapping eer, auc (held-out identities), onnx_difference (largest, on unit embeddings).

    Raises:
        Interrupted: the minutes are over before the last epoch.
    """
    folder = Path(folder or build_dir() / "recogniser")
    deadline = time.monotonic() + 60 * minutes if minutes else None
    config = load_config(CONFIG, ("--max-epochs", str(epochs)) if epochs else ())
    data = load_crops(training_set(folder))
    held_out = load_crops(held_out_set(folder))
    trainer = Trainer(config, data, None, Accelerator(cpu=True), folder / f"seed_{seed}", seed)
    if not trainer.train(deadline)["finished"]:
        raise Interrupted(f"recogniser: {trainer.state['epoch']} of {config.max_epochs} epochs done")
    network = build_network(config.network, config.embedding_size)
    load_weights(network, folder / f"seed_{seed}" / "best" / "network.safetensors")
    export_onnx(network, out_path)
    save_network(network, Path(out_path).with_suffix(".safetensors"))
    return judge(network.eval(), out_path, held_out)


def judge(network, onnx_path, held_out):
    """EER and AUC over all pairs of `held_out`, without flip sum, and how far the ONNX twin is off."""
    ours = normalise(embed(network, held_out.images, flip=False))
    theirs = normalise(embed(load_recogniser(onnx_path).eval(), held_out.images[:200], flip=False))
    stats = verification_stats(*pair_scores(ours, held_out.labels))
    result = {
        "eer": stats["eer"],
        "auc": stats["auc"],
        "onnx_difference": float(np.abs(ours[:200] - theirs).max()),
    }
    log("recogniser: " + "  ".join(f"{name} {value:.5f}" for name, value in result.items()))
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="stop cleanly after so long; the same command goes on")
    parser.add_argument("--epochs", type=int, help="passes over the training set")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train_recogniser(seed=arguments.seed, minutes=arguments.minutes, epochs=arguments.epochs)


if __name__ == "__main__":
    run(main)
