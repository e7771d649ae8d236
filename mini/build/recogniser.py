"""The miniature world's face recogniser, trained by fr_training's own loop on rendered people.

python -m mini.build.recogniser --minutes 35       # render, train, export, judge
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.build.recogniser")

import time
from pathlib import Path

import numpy as np
import tyro
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
FOLDER = build_dir() / "recogniser"


def train_recogniser(
    out_path: Path = OUTPUT,
    folder: Path = FOLDER,
    seed: int = 0,
    minutes: float | None = None,
    epochs: int | None = None,
):
    """Render what is missing, train, write `out_path` (ONNX) and the same network as .safetensors beside it.

    Args:
        out_path: the .onnx file to write.
        folder: of renders and checkpoints.
        seed: of weights, order and augmentation.
        minutes: stop cleanly after so long, at the end of an epoch; the same call goes on from there.
        epochs: passes over the crops; None takes the config's.

    Returns:
        mapping eer, auc (held-out identities), onnx_difference (largest, on unit embeddings).

    Raises:
        Interrupted: the minutes are over before the last epoch.
    """
    folder = Path(folder)
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
    """EER and AUC over all pairs of `held_out`, without flip sum, and the ONNX file's largest deviation."""
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
    tyro.cli(train_recogniser, prog="python -m mini.build.recogniser", description=__doc__)


if __name__ == "__main__":
    run(main)
