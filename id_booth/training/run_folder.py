"""What training leaves on disk for one identity and objective: checkpoints, resume state, logs.

OUTPUT/{objective}/{identity}/
    checkpoint-{epoch}-{step}/pytorch_lora_weights.safetensors, training_config.json, validation images
    training_config.json    settings, base model, final checkpoint once finished
    train_log.jsonl         losses, identity terms per timestep band, speed, memory
    resume.pt               only while unfinished: adapters and optimiser of the last saved step
    tensorboard/
"""

import functools
import json
import os
import re
import shutil
import time
from pathlib import Path

from arcface_files.face_pack import pack_models
from id_booth.diffusion.lora_files import LOSS_RECOGNISER, NO_RECOGNISER, check_person, checkpoints
from id_booth.diffusion.stacked_lora import LORA_FILE, save_lora
from id_booth.event_files import event_writer
from id_booth.objectives import OBJECTIVES
from id_booth.training.cohort import BANDS, TERMS
from id_booth.training.other_people import content_digest
from id_booth.training.resume import RESUME_FILE, load_resume
from utils.config import as_dict
from utils.errors import UserError
from utils.files import (
    atomic_path,
    atomic_write_json,
    atomic_write_text,
    check_folder_name,
    read_json,
    sha256_file,
    sweep_temporaries,
    trouble_named,
)
from utils.identities import image_files
from utils.outputs import guard, make_folder, open_private
from utils.progress import log
from utils.run_record import describe_run, publishable

CHECKPOINT = re.compile(r"checkpoint-(\d+)-(\d+)")
FEW = 0.05  # share of items with an identity term below which a run says so
WHAT_TO_DO = "choose another output_folder or delete this one"
RECORD_FILE, LOG_FILE, FIGURES = "training_config.json", "train_log.jsonl", "figures"

# Settings that may change between the runs of one training without changing its result.
FREE_SETTINGS = {
    "dry_run",
    "source_folder",
    "output_folder",
    "class_folder",
    "embeds_folder",
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
    "threads",
    "device",
    "lean_layers",
    "gradient_checkpointing",
    "vae_gradient_checkpointing",
    "cache_latents",
    "cache_batch_size",
    "class_batch_size",
    "compile_unet",
    "cuda_graph",
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
        config: TrainConfig; objective: a name of OBJECTIVES; identity: IdentityFolder; models: FrozenModels;
            others: digests_of_others of other_people.py.
    """

    def __init__(self, config, objective, identity, models=None, others=None):
        self.config, self.objective, self.identity, self.models = config, objective, identity, models
        self.name = identity.name
        self.folder = Path(config.output_folder) / objective / self.name
        self.unit = f"{objective}/{self.name}"
        self.identity_term = OBJECTIVES[objective].digest()
        self.writer = self.consent = self.photos = None
        self.others, self.first_step, self.counted, self.started = others or {}, 0, (0, 0), None

    # ------------------------------------------------------------------------------------------ state

    @functools.cached_property
    def digests(self):
        """{field of the record: one SHA-256 of the photos, class images or negatives, in their order}."""
        draws = OBJECTIVES[self.objective].needs_negatives
        others = {field: one for field, one in self.others.items() if draws or field != "negatives_sha256"}
        return {"photos_sha256": content_digest(image_files(self.identity.images_dir)), **others}

    def record(self):
        """The folder's training_config.json, {} when there is none."""
        path = self.folder / RECORD_FILE
        record = read_json(path) if path.is_file() else {}
        whole = isinstance(record, dict)
        if not whole or not all(isinstance(record.get(part, {}), dict) for part in ("config", FIGURES)):
            raise UserError(f"{path}: damaged; delete it to train {self.name} again")
        return record

    def finished(self):
        """The final checkpoint's folder when this training is complete, else None.

        Raises:
            UserError: no name for a folder, or it holds a training with other settings, or on other photos.
        """
        check_folder_name(self.name)
        record = self.record()
        self.check_ours(record)
        if self.trained():
            self.check_settings(record)
        final = record.get("final_checkpoint")
        there = CHECKPOINT.fullmatch(str(final)) and (self.folder / final / LORA_FILE).is_file()
        if there:
            check_person(self.folder / final, self.name)
        self.check_photos(record)
        return self.folder / final if there else None

    def check_ours(self, record):
        """Refuse a folder with somebody else's files, for instance a LoRA of another tool."""
        guard(self.folder / RECORD_FILE)
        present = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if not record and present - {RESUME_FILE, LOG_FILE, "tensorboard"}:
            raise UserError(f"{self.folder}: holds files but no {RECORD_FILE} of ours; move them away")

    def check_settings(self, record):
        """Refuse to go on with a training that was begun otherwise, naming the first difference."""
        before = record.get("config", {})
        for key, value in describe_settings(self.config).items():
            if key in before and publishable(before[key]) != value:
                raise UserError(
                    f"{self.folder}: was trained with {key} = {before[key]!r}, the config now says "
                    f"{value!r}; {WHAT_TO_DO}"
                )
        if record.get("identity_term", self.identity_term) != self.identity_term:
            raise UserError(
                f"{self.folder}: the code of {self.objective}'s identity term has changed since it was "
                f"trained; {WHAT_TO_DO}"
            )

    def check_photos(self, record):
        """Refuse to go on with a training on other photos, class images or negatives."""
        others = {"class_sha256": "the class images", "negatives_sha256": "the negatives"}
        for field, now in self.digests.items() if self.trained() else ():
            if None not in (record.get(field), now) and now != record[field]:
                what = others.get(field, f"the photos in {self.identity.images_dir}")
                raise UserError(f"{self.folder}: {what} have changed since it was trained; {WHAT_TO_DO}")

    def trained(self):
        """Whether anything has been; else a record is of a run that was refused or broke off at once."""
        return bool(checkpoints(self.folder)) or (self.folder / RESUME_FILE).is_file()

    def begin(self):
        """Write the record, clear what a killed writer left, open TensorBoard, and go on counting."""
        before = load_resume(self.folder) or {}
        self.counted = before.get("counted", (0, 0))
        self.started = time.perf_counter() - before.get("seconds", 0)
        with trouble_named(self.folder):
            make_folder(self.folder / "tensorboard")
        sweep_temporaries(self.folder)
        self.write_record()
        self.writer = event_writer(self.folder / "tensorboard", purge_step=before.get("step"))

    def write_record(self, **more):
        """Write training_config.json: settings, base model, versions, seed, start check."""
        run, base = describe_run(self.config), self.models.base
        run["config"] = describe_settings(self.config)
        run |= {
            "identity": self.name,
            "objective": self.objective,
            "identity_term": self.identity_term,
            **self.digests,
            LOSS_RECOGNISER: self.loss_recogniser(),
            "base_model": base.name,
            "base_fingerprint": base.fingerprint,
            "base_family": base.family,
            "instance_prompt": publishable(self.config.instance_prompt),
            "start_check": self.photos.start_check,
            "consent": publishable(self.consent.public()) if self.consent else None,
        }
        atomic_write_json(self.folder / RECORD_FILE, run | more)

    def loss_recogniser(self):
        """Content hash of the recogniser that the identity term is to please, "none" without such a term."""
        if not OBJECTIVES[self.objective].needs_faces:
            return NO_RECOGNISER
        return recogniser_hash(self.config.recogniser or pack_models(self.config.pack)["recognition"])

    def row(self, status, detail):
        """A line of the summary, of what was done before with the figures of the run that did it."""
        own = {"identity": self.name, "objective": self.objective, "status": status, "detail": detail}
        minutes = f"{(time.perf_counter() - self.started) / 60:.1f}" if self.started else ""
        earlier = self.record().get(FIGURES, {}) if status == "done before" else {}
        return own | {"identity term": "", "minutes": minutes} | earlier

    # ------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, slot, epoch, step):
        """Write checkpoint-{epoch}-{step}, whole or not at all: LoRA in diffusers' format, and record."""
        path = self.folder / f"checkpoint-{epoch}-{step}"
        if path.is_dir() and not is_ours(path):
            raise UserError(f"{path}: was not written by this training; move it away")
        with atomic_path(path) as temporary:
            temporary.mkdir()
            base = self.models.base
            metadata = {"base_fingerprint": base.fingerprint, "base_family": base.family}
            metadata |= {"objective": self.objective, "identity": self.name}
            metadata |= {LOSS_RECOGNISER: self.loss_recogniser()}
            metadata |= {"consent_sha256": self.consent.digest} if self.consent else {}
            shape = (self.config.lora_rank, self.config.lora_alpha, self.config.use_dora)
            save_lora(temporary / LORA_FILE, self.models.lora, slot, *shape, metadata)
            shutil.copy(self.folder / RECORD_FILE, temporary / RECORD_FILE)
        self.drop_old_checkpoints()
        return path

    def drop_old_checkpoints(self):
        """Keep the latest checkpoints_total_limit."""
        limit = self.config.checkpoints_total_limit
        if limit:
            for path in [path for path in checkpoints(self.folder) if is_ours(path)][:-limit]:
                shutil.rmtree(path)

    def resume_step(self):
        """Steps already done by an unfinished training."""
        return (load_resume(self.folder) or {"step": 0})["step"]

    def finish(self, checkpoint):
        """Note the final checkpoint; the resume state has done its duty. The row of the summary."""
        total, with_term = self.counted
        share = f"{with_term / total:.0%}" if total and OBJECTIVES[self.objective].needs_faces else ""
        if share and with_term < FEW * total:
            log(f"{self.unit}: an identity term in {share} of the items alone; does the pack find the faces?")
        row = self.row("done", checkpoint.name) | {"identity term": share}
        figures = {name: row[name] for name in ("identity term", "minutes")}
        self.write_record(final_checkpoint=checkpoint.name, **{FIGURES: figures})
        self.forget_resume()
        self.close()
        return row

    def forget_resume(self):
        """Remove the resume state of a finished training; a kill may have come between."""
        if (path := self.folder / RESUME_FILE).is_file() and not path.is_symlink():
            path.unlink()

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
        pairs = zip(self.counted, map(sum, zip(*bands, strict=True)), strict=True)
        self.counted = tuple(before + new for before, new in pairs)
        losses = {name: round(value, 6) for name, value in zip(TERMS, terms, strict=True) if value == value}
        share = [round(with_term / total, 3) if total else None for total, with_term in bands]
        entry = {"step": step, "epoch": epoch, "loss": losses, "identity_share_by_band": share, **timing}
        if "ID" not in losses:
            del entry["identity_share_by_band"]
        path = self.folder / LOG_FILE
        with trouble_named(path), os.fdopen(open_private(path, os.O_APPEND), "a") as stream:
            stream.write(json.dumps(entry) + "\n")
        for name, value in losses.items():
            self.writer.add_scalar(f"Step Loss/{name}", value, step)
        for band in range(BANDS):
            if "ID" in losses and share[band] is not None:
                self.writer.add_scalar(f"Identity term share/band {band}", share[band], step)
        for name, value in timing.items():
            self.writer.add_scalar(f"Run/{name}", value, step)


@functools.cache
def recogniser_hash(path):
    """The content hash of a recogniser's file, read once."""
    return sha256_file(Path(path).expanduser())


def is_ours(checkpoint):
    """Whether a checkpoint folder carries our record, and so may be replaced or deleted."""
    return (checkpoint / RECORD_FILE).is_file() and not checkpoint.is_symlink()


def describe_settings(config):
    """The settings that determine the result, as JSON keeps them."""
    return publishable({k: v for k, v in as_dict(config).items() if k not in FREE_SETTINGS})


def line_step(line):
    """The step of a log line; beyond any step for a torn one, so that it is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
