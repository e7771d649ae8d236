"""The miniature world's face quality network (CR-FIQA), trained by fr_training's own loop on rendered people.

python -m mini.build.quality                       # render, train, export, judge
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m mini.build.quality")

from pathlib import Path

import numpy as np
import tyro
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
FOLDER = build_dir()
DISCARDED = 0.2


def train_quality(out_path: Path = OUTPUT, folder: Path = FOLDER, seed: int = 0, epochs: int | None = None):
    """Train, write the network to ``out_path`` in half precision, and judge it (see :func:`judge`).

    Args:
        out_path: the .safetensors file to write.
        folder: the build's folder; its recogniser/recogniser_data is rendered where it is missing.
        seed: of weights, order and augmentation.
        epochs: passes over the crops; None takes the config's.
    """
    folder = Path(folder)
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

    One point of an error-versus-discard curve (Grother and Tabassi, 2007): a useful quality measure lowers
    the error on the crops that are kept.

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
    tyro.cli(train_quality, prog="python -m mini.build.quality", description=__doc__)


if __name__ == "__main__":
    run(main)
