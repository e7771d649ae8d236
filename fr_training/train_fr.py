"""Train face recognisers on aligned crops, real, synthetic or mixed: one run per seed.

    python -m fr_training.train_fr --config configs/train_fr_tfd.py                     as in the paper
    python -m fr_training.train_fr --config configs/train_fr_mini.py --seeds 0 1 2      the miniature world
    accelerate launch -m fr_training.train_fr --config configs/train_fr_tfd.py          data-parallel, GPUs
    torchrun --standalone --nproc_per_node 2 -m fr_training.train_fr --config C         data-parallel, CPU

On the CPU accelerate's own launcher needs mpirun (Open MPI): add --mpirun_hostfile with "localhost slots=2".

`dataset` is a folder of crops (align_faces.py), a manifest (augment_dataset.py) or a folder of crop arrays
(crops.py): plain and augmented sets are the same to this script. The epoch is chosen on identities set aside
from training. An identity with a single image trains like any other, but is never set aside. The same command
resumes an interrupted run exactly, from its last full epoch, and skips seeds that are done.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m fr_training.train_fr")

import contextlib
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from arcface_files.face_pack import pack_models
from arcface_files.recogniser import load_recogniser
from configs.fr_config import TrainFRConfig
from evaluation.identity import pair_scores, verification_stats
from fr_training.benchmark_bin import read_bin
from fr_training.crops import load_crops, source_folders
from fr_training.networks import embed, export_onnx
from fr_training.trainer import Trainer, count_steps
from fr_training.verification import check_pairs, ten_fold_accuracy
from id_booth.event_files import event_writer
from id_booth.launch import check_inherited_launch, refuse_lonely_launch
from utils.claims import Claims
from utils.config import as_dict, parse_command_line
from utils.devices import pick_device, use_threads
from utils.errors import UserError, run
from utils.files import atomic_path, atomic_write_json, read_json, sha256_bytes
from utils.outputs import open_output
from utils.progress import log
from utils.run_record import publishable, summarise, write_run_record
from utils.seeding import derive_seed

SETTINGS_FILE = "settings.json"
EXPORTED = "rec_trained.onnx"  # the recogniser of an exported pack
# Settings that may change between a run and its continuation without changing what is trained.
FREE_SETTINGS = {
    "dry_run",
    "seeds",
    "output",
    "export_pack",
    "detector",
    "log_every",
    "device",
    "workers",
    "threads",
}


def main(argv=None):
    config = parse_command_line(TrainFRConfig, "configs/train_fr_mini.py", argv)
    train, validate = prepare_data(config)
    if config.dry_run:
        return print_plan(config, train)
    return train_seeds(config, train, validate)


def prepare_data(config):
    """(CropSet to train on, function network -> score or None) of a configuration."""
    use_threads(config.threads)
    if config.export_pack:
        check_export(config)
    crops = load_crops(config.dataset)
    train, held_out = split(config, crops)
    if len(train.names) < 2:
        raise UserError(
            f"{config.dataset}: {len(train.names)} identity is left to train on; a recogniser needs at "
            "least two, beside those set aside (held_out_identities)"
        )
    if config.selection == "benchmark":
        return train, benchmark_score(config.selection_benchmark)
    return train, held_out_score(held_out) if held_out else None


def check_export(config):
    """UserError for an export that would fail or overwrite another folder, before anything is trained."""
    pack_models(config.detector)
    folder = Path(config.export_pack)
    if folder.exists() and not (folder / EXPORTED).is_file():
        raise UserError(f"export_pack: {folder} exists and is no pack of train_fr.py; name a new folder")


def split(config, crops):
    """(training set, held-out set or None); who is held out depends on names only, not on the seed."""
    if config.selection != "held_out":
        return crops, None
    if config.held_out_set:
        held_out = load_crops(config.held_out_set)
        shared = sorted(set(held_out.names) & set(crops.names))
        if shared:
            raise UserError(
                f"held_out_set: {shared[0]} is in the training set as well; people must not overlap"
            )
        return crops, held_out
    counts = {name: int((crops.labels == label).sum()) for label, name in enumerate(crops.names)}
    chosen = set(held_out_people(config, counts))
    held_out = [label for label, name in enumerate(crops.names) if name in chosen]
    rest = [label for label, name in enumerate(crops.names) if name not in chosen]
    log(f"held out to select the best epoch: {len(held_out)} people; {len(rest)} are left to train on")
    return crops.of(rest), crops.of(held_out)


def held_out_people(config, counts):
    """Who is set aside to select the best epoch, of {name: images}; they need two images."""
    if config.selection != "held_out" or config.held_out_set:
        return []
    eligible = [name for name, count in counts.items() if count > 1]
    if len(eligible) < config.held_out_identities:
        raise UserError(
            f"held_out_identities: {config.dataset} has {len(eligible)} identities with two images or "
            f"more, {config.held_out_identities} are wanted; lower it"
        )
    return sorted(eligible, key=lambda name: derive_seed("held out", name))[: config.held_out_identities]


def held_out_score(held_out):
    """A function network -> 1 - EER over all pairs of people set aside, with flip-summed embeddings."""
    images = held_out.images[slice(None)]

    def score(network):
        embeddings = embed(network, images, next(network.parameters()).device)
        return 1.0 - verification_stats(*pair_scores(embeddings, held_out.labels))["eer"]

    return score


def benchmark_score(path):
    """A function network -> ten-fold accuracy on a benchmark (the published selection, on LFW)."""
    images, same = read_bin(path)
    check_pairs(same, path)

    def score(network):
        embeddings = embed(network, images, next(network.parameters()).device)
        return ten_fold_accuracy(embeddings[0::2], embeddings[1::2], same)[0]

    return score


def train_seeds(config, train, validate):
    """Train each seed, print a table, export. Returns the exit code."""
    accelerator = make_accelerator(config)
    output, names = Path(config.output), ["summary.json", "summary.txt"]
    sources = [
        folder for one in (config.dataset, config.held_out_set) if one for folder in source_folders(one)
    ]
    open_output(output, names, sources, write=accelerator.is_main_process)
    with sole_run(output, accelerator):
        rows = [train_seed(config, seed, train, validate, accelerator) for seed in config.seeds]
    if not accelerator.is_main_process:
        return 0
    if config.export_pack:
        write_pack_folder(config, output / f"seed_{config.seeds[0]}")
    return summarise(rows, output)


@contextlib.contextmanager
def sole_run(output, accelerator):
    """A block in which no other run trains in `output`; UserError when one does already."""
    with Claims(output) if accelerator.is_main_process else contextlib.nullcontext() as claims:
        if claims and not claims.take("training"):
            raise UserError(f"{output}: another run is training here; wait for it or choose another output")
        yield


def train_seed(config, seed, train, validate, accelerator):
    """Train one seed to its end; its row of the summary."""
    folder = Path(config.output) / f"seed_{seed}"
    settings = run_settings(config, train, accelerator)
    check_settings(folder, settings)
    trainer = Trainer(config, train, validate, accelerator, folder, seed)
    accelerator.wait_for_everyone()
    # Not before: a refused run leaves no settings behind. Of a finished training all stays as it is.
    if accelerator.is_main_process and not trainer.state["finished"]:
        atomic_write_json(folder / SETTINGS_FILE, settings)
        write_run_record(folder, config)
        trainer.writer = event_writer(folder / "tensorboard")
    state = trainer.train()
    if trainer.writer:
        trainer.writer.close()
    best = read_best(folder)
    return {
        "seed": seed,
        "epochs": state["epoch"],
        "best epoch": best["epoch"] - 1,
        "score": round(max(state["scores"]), 5) if state["scores"] else "-",
        "loss": round(state["losses"][-1], 4),
        "status": "done",
    }


def make_accelerator(config):
    """accelerate's Accelerator; precision "auto" is bf16 where a GPU supports it, else fp32."""
    on_gpu = pick_device(config.device).type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    check_inherited_launch()
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not on_gpu)
    refuse_lonely_launch(accelerator.num_processes)
    return accelerator


def run_settings(config, train, accelerator):
    """What decides the result of a training, as JSON keeps it."""
    settings = {name: value for name, value in as_dict(config).items() if name not in FREE_SETTINGS}
    settings |= {"images": len(train), "content": content_hash(train), "identities": train.names}
    settings |= {"processes": accelerator.num_processes}
    return publishable(settings)


def check_settings(folder, settings):
    """Refuse to go on with a training of another configuration or data set."""
    if not (folder / "last" / "state.json").is_file():
        return
    file = folder / SETTINGS_FILE
    old = publishable(read_json(file)) if file.is_file() else {}
    if not isinstance(old, dict):
        raise UserError(f"{file}: damaged; delete {folder} to train again")
    changed = sorted(name for name in settings.keys() | old.keys() if settings.get(name) != old.get(name))
    if changed:
        raise UserError(
            f"{folder}: was trained with other settings ({', '.join(changed)}); "
            "choose another output or restore them"
        )


def content_hash(crops, images=256):
    """A hash of the labels and of up to `images` evenly spaced crops, to tell data sets apart."""
    rows = np.unique(np.linspace(0, len(crops) - 1, images).astype(int))
    return sha256_bytes(np.ascontiguousarray(crops.images[rows]).tobytes() + crops.labels.tobytes())


def read_best(folder):
    """What a seed's run folder notes of its best epoch; UserError for a damaged file."""
    file = Path(folder) / "best" / "state.json"
    state = read_json(file)
    if not isinstance(state, dict) or not isinstance(state.get("epoch"), int):
        raise UserError(f"{file}: damaged; delete {file.parent.parent} to train again")
    return state


def load_trained(folder):
    """The best network of a seed's run folder, in evaluation mode; its shape is that of its weights."""
    return load_recogniser(Path(folder) / "best" / "network.safetensors")


def write_pack_folder(config, folder):
    """An insightface pack: the detector of `config.detector` and the best recogniser of `folder`."""
    with atomic_path(config.export_pack) as temporary:
        temporary.mkdir()
        detector = pack_models(config.detector)["detection"]
        shutil.copyfile(detector, temporary / Path(detector).name)
        export_onnx(load_trained(folder), temporary / EXPORTED)
    log(f"insightface pack: {config.export_pack}")


def print_plan(config, train):
    """What a run would do."""
    steps = count_steps(len(train), config.batch_size)
    log(f"{config.dataset}: {len(train)} images of {len(train.names)} identities to train on")
    log(
        f"{config.network} with {config.head}, {len(config.seeds)} seeds, at most {config.max_epochs} epochs "
        f"of {steps} steps of {config.batch_size} images (one process)"
        + (f", {config.max_steps} steps in all" if config.max_steps else "")
    )
    for seed in config.seeds:
        last = Path(config.output) / f"seed_{seed}" / "last" / "state.json"
        state = read_json(last) if last.is_file() else {"epoch": 0, "finished": False}
        log(f"seed {seed}: {state['epoch']} epochs done{', finished' if state['finished'] else ''}")


if __name__ == "__main__":
    run(main)
