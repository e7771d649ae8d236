"""What training leaves on disk for one identity and objective: checkpoints, resume state, logs.

OUTPUT/{objective}/{identity}/
    checkpoint-{epoch}-{step}/pytorch_lora_weights.safetensors, training_config.json, validation images
    training_config.json    settings, base model, final checkpoint once finished
    train_log.jsonl         losses, identity terms per timestep band, speed, memory
    resume.pt               only while unfinished: adapters and optimiser of the last saved step
    tensorboard/
"""

import io
import json
import re
import resource
import shutil
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from id_booth.diffusion.stacked_lora import LORA_FILE, load_slot_state, save_lora, slot_state
from id_booth.training.cohort import BANDS, TERMS
from utils.config import as_dict
from utils.errors import UserError
from utils.files import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    full_disk_named,
    read_json,
    sweep_temporaries,
)
from utils.run_record import describe_run, project_relative, publishable
from utils.safe_load import load_tensors

CHECKPOINT = re.compile(r"checkpoint-(\d+)-(\d+)")
LORA_MIB, RESUME_MIB = 4, 12
RESUME_LIMIT = 2 * 2**30  # bytes; adapters and optimiser of rank 4 take 12 MiB, of rank 256 less than 1 GiB
RECORD_FILE, LOG_FILE, RESUME_FILE = "training_config.json", "train_log.jsonl", "resume.pt"

# Settings that may change between the runs of one training without changing its result.
FREE_SETTINGS = {
    "dry_run",
    "source_folder",
    "output_folder",
    "class_folder",
    "negatives_folder",
    "identities",
    "objectives",
    "cohort_size",
    "checkpointing_epochs",
    "checkpoints_total_limit",
    "validation_images",
    "validation_prompt",
    "validation_steps",
    "validation_guidance_scale",
    "log_every",
    "resume_minutes",
    "device",
    "lean_layers",
    "gradient_checkpointing",
    "vae_gradient_checkpointing",
    "cache_latents",
    "cache_batch_size",
    "class_batch_size",
    "compile_unet",
    "require_consent",
    "shard",
    "status",
    "push_to_hub",
    "hub_namespace",
    "hub_public",
}


class IdentityRun:
    """The folder of one identity and objective.

    Args:
        config: TrainConfig; objective: its name; name: the identity; models: TrainingModels.
    """

    def __init__(self, config, objective, name, models=None):
        self.config, self.objective, self.name, self.models = config, objective, name, models
        self.folder = Path(config.output_folder) / objective / name
        self.unit = f"{objective}/{name}"
        self.writer = self.consent = self.photos = None
        self.first_step = 0

    # ------------------------------------------------------------------------------------------ state

    def record(self):
        """The folder's training_config.json, {} when there is none."""
        path = self.folder / RECORD_FILE
        record = read_json(path) if path.is_file() else {}
        if not isinstance(record, dict) or not isinstance(record.get("config", {}), dict):
            raise UserError(f"{path}: damaged; delete it to train {self.name} again")
        return record

    def finished(self):
        """The final checkpoint's folder when this training is complete, else None.

        Raises:
            UserError: the folder holds a training with other settings.
        """
        record = self.record()
        self.check_settings(record)
        final = record.get("final_checkpoint")
        if not isinstance(final, str) or not CHECKPOINT.fullmatch(final):
            return None
        return self.folder / final if (self.folder / final / LORA_FILE).is_file() else None

    def check_settings(self, record):
        """Refuse to go on with a training that was begun with other settings, naming the first difference."""
        before = record.get("config", {})
        now = describe_settings(self.config)
        for key, value in now.items():
            if key in before and before[key] != value:
                raise UserError(
                    f"{self.folder}: was trained with {key} = {before[key]!r}, the config now says "
                    f"{value!r}; choose another output_folder or delete this one"
                )

    def begin(self):
        """Write the record, clear what a killed writer left, and open TensorBoard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(self.folder)
        self.write_record()
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.resume_step() or None)

    def write_record(self, **more):
        """Write training_config.json: settings, base model and its fingerprint, versions, seed."""
        run = describe_run(self.config)
        run["config"] = describe_settings(self.config)
        run |= {
            "identity": self.name,
            "objective": self.objective,
            "base_model": project_relative(self.config.base_model),
            "base_fingerprint": self.models.fingerprint,
            "instance_prompt": self.config.instance_prompt,
            "consent": self.consent,
        }
        atomic_write_json(self.folder / RECORD_FILE, run | more)

    # ------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, slot, epoch, step):
        """Write checkpoint-{epoch}-{step}, whole or not at all: LoRA in diffusers' format, and record."""
        path = self.folder / f"checkpoint-{epoch}-{step}"
        with atomic_path(path) as temporary:
            temporary.mkdir()
            metadata = {"base_fingerprint": self.models.fingerprint, "objective": self.objective}
            save_lora(
                temporary / LORA_FILE,
                self.models.lora_groups(),
                slot,
                self.config.lora_rank,
                self.config.lora_alpha,
                self.config.use_dora,
                metadata,
            )
            shutil.copy(self.folder / RECORD_FILE, temporary / RECORD_FILE)
        self.drop_old_checkpoints()
        return path

    def drop_old_checkpoints(self):
        """Keep the latest checkpoints_total_limit."""
        limit = self.config.checkpoints_total_limit
        if limit:
            for path in checkpoints(self.folder)[:-limit]:
                shutil.rmtree(path)

    def save_resume(self, slot, step, optimizer, scaler):
        """Keep what an interrupted run needs to go on from ``step`` to the bit."""
        state = {
            "step": step,
            "lora": {
                k: v
                for prefix, layers in self.models.lora_groups().items()
                for k, v in slot_state(layers, slot, prefix).items()
            },
            "optimizer": optimizer_slot(optimizer, slot, self.models.cohort_size),
            "scaler": scaler.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write_bytes(self.folder / RESUME_FILE, buffer.getvalue())

    def load_resume(self):
        """The state written by :meth:`save_resume`, or None; UserError when it is corrupt."""
        path = self.folder / RESUME_FILE
        if not path.is_file():
            return None
        try:
            state = load_tensors(path, RESUME_LIMIT)
            if not {"lora", "optimizer", "scaler"} <= state.keys() or not isinstance(state["step"], int):
                raise KeyError("incomplete")
            return state
        except Exception as error:
            raise UserError(
                f"{path}: corrupt, cannot go on from it; delete it to train {self.name} from the start"
            ) from error

    def resume_step(self):
        """Steps already done by an unfinished training."""
        state = self.load_resume()
        return state["step"] if state else 0

    def finish(self, checkpoint):
        """Note the final checkpoint; the resume state has done its duty."""
        self.write_record(final_checkpoint=checkpoint.name)
        self.forget_resume()
        self.close()

    def forget_resume(self):
        """Remove the resume state of a finished training; a kill may have come between."""
        (self.folder / RESUME_FILE).unlink(missing_ok=True)

    def close(self):
        """Close TensorBoard."""
        if self.writer:
            self.writer.close()
            self.writer = None

    # ------------------------------------------------------------------------------------------ logs

    def trim_log(self, step):
        """Forget lines of steps that will be done again."""
        path = self.folder / LOG_FILE
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if line_step(line) <= step]
            atomic_write_text(path, "".join(line + "\n" for line in lines))

    def log(self, step, epoch, terms, bands, timing):
        """Append one line to train_log.jsonl and TensorBoard: means since the last line.

        Args:
            terms: (4,) losses in the order of TERMS, NaN where a term does not exist.
            bands: (BANDS, 2) items, and items with an identity term, by timestep band.
            timing: dict of step_ms, images_per_s, memory_mib, learning_rate.
        """
        losses = {name: round(value, 6) for name, value in zip(TERMS, terms, strict=True) if value == value}
        share = [round(with_term / total, 3) if total else None for total, with_term in bands]
        entry = {"step": step, "epoch": epoch, "loss": losses, "identity_share_by_band": share, **timing}
        if "ID" not in losses:
            del entry["identity_share_by_band"]
        path = self.folder / LOG_FILE
        with full_disk_named(path), open(path, "a") as stream:
            stream.write(json.dumps(entry) + "\n")
        for name, value in losses.items():
            self.writer.add_scalar(f"Step Loss/{name}", value, step)
        for band in range(BANDS):
            if "ID" in losses and share[band] is not None:
                self.writer.add_scalar(f"Identity term share/band {band}", share[band], step)
        for name, value in timing.items():
            self.writer.add_scalar(f"Run/{name}", value, step)


def describe_settings(config):
    """The settings that determine the result, as JSON keeps them."""
    plain = publishable({k: v for k, v in as_dict(config).items() if k not in FREE_SETTINGS})
    for key in ("base_model", "pack", "recogniser"):
        plain[key] = project_relative(plain[key]) if plain[key] else None
    return plain


def disk_needed(config, identity_count):
    """Bytes that training so many identities may write: checkpoints, one resume state, images."""
    epochs = config.num_train_epochs // config.checkpointing_epochs + 1
    per_identity = (min(epochs, config.checkpoints_total_limit or epochs) * LORA_MIB + RESUME_MIB) * 2**20
    return identity_count * len(config.objectives) * per_identity


def line_step(line):
    """The step of a log line; beyond any step for a torn one, so that it is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def checkpoints(folder):
    """Checkpoint folders with a LoRA in them, by step."""
    found = []
    for path in Path(folder).glob("checkpoint-*-*"):
        match = CHECKPOINT.fullmatch(path.name)
        if match and (path / LORA_FILE).is_file():
            found.append((int(match.group(2)), path))
    return [path for _, path in sorted(found)]


def memory_mib(device):
    """Peak memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


# ------------------------------------------------------------------------------------ optimiser by slot


def optimizer_slot(optimizer, slot, cohort_size):
    """One identity's part of an optimiser's state: tensors stacked over the cohort are sliced."""
    state = optimizer.state_dict()
    return {
        "state": {
            index: {key: take_slot(value, slot, cohort_size) for key, value in entry.items()}
            for index, entry in state["state"].items()
        },
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]],
    }


def take_slot(value, slot, cohort_size):
    """The slot's slice of a stacked tensor; shared scalars as they are."""
    stacked = torch.is_tensor(value) and value.ndim > 0 and value.shape[0] == cohort_size
    return value[slot : slot + 1].clone() if stacked else value


def restore_cohort(cohort, states):
    """Put the resume states of a cohort's identities (all of one step) into adapters and optimiser.

    Raises:
        UserError: a state that has the right form but another content.
    """
    try:
        fill_cohort(cohort, states)
    except Exception as error:  # a damaged state can be wrong in any way
        raise UserError(
            f"{RESUME_FILE}: corrupt ({type(error).__name__}), cannot go on from it; delete it to train "
            f"{', '.join(cohort.names)} from the start"
        ) from error


def fill_cohort(cohort, states):
    """:func:`restore_cohort` on states that fit."""
    for slot, state in enumerate(states):
        for prefix, layers in cohort.models.lora_groups().items():
            load_slot_state(layers, slot, state["lora"], prefix)
    merged = {}
    for index, entry in states[0]["optimizer"]["state"].items():
        merged[index] = {
            key: torch.cat([state["optimizer"]["state"][index][key] for state in states])
            if torch.is_tensor(value) and value.ndim > 0
            else value
            for key, value in entry.items()
        }
    current = cohort.optimizer.state_dict()["param_groups"]
    saved = states[0]["optimizer"]["groups"]
    groups = [group | {"params": now["params"]} for group, now in zip(saved, current, strict=True)]
    cohort.optimizer.load_state_dict({"state": merged, "param_groups": groups})
    cohort.scaler.load_state_dict(states[0]["scaler"])
    cohort.scheduler.last_epoch = states[0]["step"]
