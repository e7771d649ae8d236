"""Fine-tune a Stable Diffusion model on identities: one LoRA per identity and objective.

    python train_id_booth.py --config configs/train_sd21.py                     the published recipe
    python train_id_booth.py --config configs/train_sd21_fast.py                ours, the same result sooner
    python train_id_booth.py --config configs/train_mini.py --dry-run           what would be done
    accelerate launch train_id_booth.py --config configs/train_sd21.py          identities spread over GPUs

Photos and their embeddings (extract_arcface_embeds.py) go in; LoRAs that diffusers loads come out, under
Trained_LoRA_Models/{DreamBooth|PortraitBooth|ID-Booth}/{identity}/checkpoint-{epoch}-{step}. The same command
goes on where an interrupted run stopped, and skips what is done.
"""

import signal
import time

from accelerate import PartialState

from arcface_files.recogniser import load_recogniser
from configs.train_config import TrainConfig
from extract_arcface_embeds import embed_folder
from utils.class_images import ensure_class_images, read_negatives
from utils.config import parse_command_line
from utils.devices import pick_device
from utils.errors import Interrupted, UserError, one_line
from utils.errors import run as run_script
from utils.faces import FaceAnalyser
from utils.files import ensure_disk_space
from utils.identities import find_identities, image_files
from utils.identity_branch import IdentityBranch
from utils.meter import Meter
from utils.progress import log, progress
from utils.run_record import summarise, write_run_record
from utils.trainer import Cohort, epoch_steps
from utils.training_data import prepare_photos
from utils.training_models import TrainingModels
from utils.training_run import IdentityRun, restore_cohort
from utils.validation import save_validation_images

LORA_MIB, RESUME_MIB = 4, 12


def main():
    config = parse_command_line(TrainConfig, "configs/train_mini.py")
    identities = find_identities(config.source_folder, config.identities)
    if config.dry_run:
        return print_plan(config, identities)
    ensure_disk_space(config.output_folder, disk_needed(config, identities))
    # Without the flag, a launcher's CPU processes would not know of each other.
    state = PartialState(cpu=pick_device(config.device).type == "cpu")
    if state.is_main_process:
        write_run_record(config.output_folder, config)
    trainer = Trainer(config, pick_device(config.device, state))
    with state.main_process_first():
        trainer.prepare_shared()
    chunks = [identities[i : i + config.cohort_size] for i in range(0, len(identities), config.cohort_size)]
    rows = []
    for chunk in chunks[state.process_index :: state.num_processes]:
        rows += trainer.train_identities(chunk)
    name = "summary" if state.num_processes == 1 else f"summary-{state.process_index}"
    return summarise(rows, config.output_folder, name)


class Trainer:
    """The networks all identities share, and the loop over identities and objectives."""

    def __init__(self, config, device):
        self.config, self.device = config, device
        self.stop = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask_to_stop)
        self.needs_faces = any(objective != "DreamBooth" for objective in config.objectives)
        self.models = TrainingModels(config, device)
        self.branch = self.class_photos = self.negatives = None

    def ask_to_stop(self, *_):
        """Finish the current step, save, leave; a second signal stops at once."""
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True

    def prepare_shared(self):
        """Recogniser, class images with their embeddings, negatives."""
        config, models = self.config, self.models
        if self.needs_faces:
            # Without a pack one can still train on given embeddings and negatives, with aligned crops.
            detects = config.with_prior_preservation or config.face_crop == "detect"
            pack_used = detects or not config.recogniser
            analyser = FaceAnalyser(config.pack, device=self.device.type) if pack_used else None
            recogniser = load_recogniser(config.recogniser or analyser.models["recognition"], self.device)
            models.embedding_size = recogniser.embedding_size
            self.branch = IdentityBranch(config, models.decoder(), models.latent_factor, recogniser, analyser)
        if config.with_prior_preservation:
            ensure_class_images(config, models)
            if self.needs_faces:
                embed_folder(config.class_folder, analyser, recogniser)
            images, embeds = f"{config.class_folder}/images", f"{config.class_folder}/ArcFace_embeds"
            self.class_photos = prepare_photos("class images", images, embeds, config, models, False)
        if "ID-Booth" in config.objectives:
            folder = config.negatives_folder or config.class_folder
            self.negatives = read_negatives(folder, models.embedding_size)

    # ------------------------------------------------------------------------------------------ identities

    def train_identities(self, identities):
        """All objectives of a chunk of identities; returns summary rows. One failure stops nobody else."""
        rows, photos = [], {}
        for identity in identities:
            try:
                if self.unfinished(identity.name):
                    self.models.recall_encoders()
                    photos[identity.name] = prepare_photos(
                        identity.name, identity.images_dir, identity.embeds_dir, self.config, self.models,
                        self.needs_faces,
                    )  # fmt: skip
            except UserError as error:
                rows.append(row(identity.name, "all", "failed", one_line(error)))
        self.models.offload_encoders()
        failed = {entry["identity"] for entry in rows}
        names = [identity.name for identity in identities if identity.name not in failed]
        for objective in self.config.objectives:
            rows += self.train_objective(objective, names, photos)
        return rows

    def unfinished(self, name):
        """Whether any objective of this identity remains to be trained."""
        objectives = self.config.objectives
        return any(not IdentityRun(self.config, objective, name).finished() for objective in objectives)

    def train_objective(self, objective, names, photos):
        """Train the identities for one objective, in cohorts that stand at the same step; summary rows."""
        rows, groups = [], {}
        for name in names:
            run = IdentityRun(self.config, objective, name, self.models)
            try:
                if done := run.finished():
                    rows.append(row(name, objective, "done before", done.name))
                else:
                    key = (run.resume_step(), self.total_steps(photos[name]))
                    groups.setdefault(key, []).append(run)
            except UserError as error:
                rows.append(row(name, objective, "failed", one_line(error)))
        for (step, _), runs in groups.items():
            try:
                rows += self.train_cohort(objective, runs, [photos[run.name] for run in runs], step)
            except UserError as error:
                rows += [row(run.name, objective, "failed", one_line(error)) for run in runs]
        return rows

    def total_steps(self, photos):
        """Optimiser steps this identity trains for."""
        items = max(len(photos), len(self.class_photos or ()))
        return self.config.max_train_steps or self.config.num_train_epochs * epoch_steps(self.config, items)

    # ------------------------------------------------------------------------------------------ one cohort

    def train_cohort(self, objective, runs, photos, first_step):
        """Train some identities in one batch from ``first_step`` to the end; summary rows."""
        branch = None if objective == "DreamBooth" else self.branch
        self.models.set_cohort_size(len(runs))
        cohort = Cohort(self.config, objective, self.models, branch, photos, self.class_photos,
                        self.negatives)  # fmt: skip
        if first_step:
            restore_cohort(cohort, [run.load_resume() for run in runs])
        for run in runs:
            run.begin()
            run.trim_log(first_step)
        started = time.perf_counter()
        rows = self.loop(cohort, runs, first_step)
        seconds = time.perf_counter() - started
        return [entry | {"minutes": f"{seconds / 60:.1f}"} for entry in rows]

    def loop(self, cohort, runs, first_step):
        """The steps of a cohort: train, log, save."""
        config, rows, meter = self.config, {}, Meter()
        per_epoch = cohort.steps_per_epoch
        label = f"{cohort.objective} {', '.join(cohort.names)}"
        bar = progress(total=cohort.total_steps, initial=first_step, desc=label, unit="step")
        saved_at = time.perf_counter()
        for step in range(first_step, cohort.total_steps):
            meter.add(*cohort.step(step))
            done, last = step + 1, step + 1 == cohort.total_steps
            epoch, epoch_ends = step // per_epoch, done % per_epoch == 0
            checkpoint = last or (epoch_ends and (epoch + 1) % config.checkpointing_epochs == 0)
            save = self.stop or time.perf_counter() - saved_at > 60 * config.resume_minutes
            if checkpoint or save or done % config.log_every == 0:
                for slot, reason in meter.flush(cohort, runs, done, epoch, bar):
                    rows[slot] = row(cohort.names[slot], cohort.objective, "failed", reason)
            for slot, run in enumerate(runs):
                if not cohort.active[slot]:
                    continue
                if checkpoint:
                    path = run.save_checkpoint(slot, epoch, done)
                    save_validation_images(config, self.models, slot, run.name, path)
                if last:
                    run.finish(path)
                    rows[slot] = row(run.name, cohort.objective, "done", path.name)
                elif checkpoint or save:
                    run.save_resume(slot, done, cohort.optimizer, cohort.scaler)
                    saved_at = time.perf_counter()
            bar.update()
            if self.stop and not last:
                raise Interrupted(f"{label}: saved at step {done} of {cohort.total_steps}")
            if not any(cohort.active):
                break
        bar.close()
        return [rows[slot] for slot in sorted(rows)]


def row(identity, objective, status, detail):
    """A line of the summary."""
    return {"identity": identity, "objective": objective, "status": status, "detail": detail, "minutes": ""}


def disk_needed(config, identities):
    """Bytes the run may write: checkpoints, one resume state, validation images."""
    epochs = config.num_train_epochs // config.checkpointing_epochs + 1
    per_identity = (min(epochs, config.checkpoints_total_limit or epochs) * LORA_MIB + RESUME_MIB) * 2**20
    return len(identities) * len(config.objectives) * per_identity


def print_plan(config, identities):
    """What a run would do, without loading any network."""
    class_count = len(image_files(f"{config.class_folder}/images"))
    rows = []
    for identity in identities:
        photos = len(image_files(identity.images_dir))
        items = max(photos, config.num_class_images if config.with_prior_preservation else 0)
        steps = config.max_train_steps or config.num_train_epochs * epoch_steps(config, items)
        for objective in config.objectives:
            run = IdentityRun(config, objective, identity.name)
            try:
                state = "done" if run.finished() else f"{run.resume_step()} steps done"
            except UserError as error:
                state = one_line(error)
            rows.append({"identity": identity.name, "objective": objective, "photos": photos, "steps": steps,
                         "state": state})  # fmt: skip
    summarise(rows)
    if config.with_prior_preservation:
        log(f"class images: {class_count} of {config.num_class_images} in {config.class_folder}")
    log(f"disk: up to {disk_needed(config, identities) / 2**30:.2f} GiB in {config.output_folder}")
    remaining = sum(entry["steps"] for entry in rows if entry["state"] != "done")
    log(f"steps: {remaining}; the first log line of a run tells the time of each on this machine")


if __name__ == "__main__":
    run_script(main)
