"""From lab photos to samples by the public scripts, each with its mini config."""

from pathlib import Path

from evaluation.commands import run_python
from mini.paths import WEIGHTS

EPOCHS = 10  # twice those of the demo


def make_samples(folder, set_name, methods, weights_dir=WEIGHTS, seed=0):
    """Embed FOLDER/FACE_DATASET, train LoRAs of all objectives, sample; finished work is kept.

    Args:
        set_name: the samples go to FOLDER/Generated_Samples/SET_NAME.
        methods: which methods are sampled, 21 images per person each.
        weights_dir: holds base model (base) and face pack (pack).
        seed: of training and sampling.
    Returns:
        Path of the sample set.
    """
    folder, weights_dir = Path(folder), Path(weights_dir)
    source = ["--source-folder", folder / "FACE_DATASET"]
    pack = ["--pack", weights_dir / "pack"]
    base = ["--base-model", weights_dir / "base", "--seed", seed]
    loras, samples = folder / "Trained_LoRA_Models", folder / "Generated_Samples"
    run_python("extract_arcface_embeds.py", "--config", "configs/extract_mini.py", *source, *pack)
    length = ["--num-train-epochs", EPOCHS, "--checkpointing-epochs", EPOCHS]
    outputs = ["--class-folder", folder / "CLASS_IMAGES", "--output-folder", loras, "--validation-images", 0]
    run_python(
        "train_id_booth.py", "--config", "configs/train_mini.py", *source, *pack, *base, *outputs, *length
    )
    outputs = ["--lora-folder", loras, "--output-folder", samples, "--set-name", set_name]
    outputs += ["--sheets-folder", folder / "Contact_Sheets"]
    options = [*source, *base, *outputs, "--methods", *methods]
    run_python("inference_id_booth.py", "--config", "configs/inference_mini.py", *options)
    return samples / set_name
