"""Fine-tune a Stable Diffusion model on identities: one LoRA per identity and objective.

    python train_id_booth.py --config configs/train_sd21.py                     the published recipe
    python train_id_booth.py --config configs/train_sd21_fast.py                ours, the same result sooner
    python train_id_booth.py --config configs/train_mini.py --dry-run           what would be done
    python train_id_booth.py --config configs/train_sd21.py --status            how far a batch is
    accelerate launch train_id_booth.py --config configs/train_sd21.py          identities spread over GPUs
    torchrun --nproc_per_node 2 train_id_booth.py --config ...                  spread over CPU processes

Photos and their embeddings (extract_arcface_embeds.py) go in; LoRAs that diffusers loads come out, under
Trained_LoRA_Models/{DreamBooth|PortraitBooth|ID-Booth}/{identity}/checkpoint-{epoch}-{step}. The same command
goes on where an interrupted run stopped, and skips what is done; several may run on one folder and share it.
"""

import signal
import time
import traceback

from configs.train_config import TrainConfig
from utils.config import parse_command_line, parse_shard
from utils.errors import run as run_script

if __name__ == "__main__":  # a wrong command line is answered before the libraries load, for seconds
    run_script(lambda: parse_command_line(TrainConfig, "configs/train_mini.py"), exits=False)

from arcface_files.faces import FaceAnalyser
from arcface_files.people import find_identities
from arcface_files.recogniser import load_recogniser
from id_booth import launch
from id_booth.batch_status import any_left, print_training_plan, print_training_status
from id_booth.consent import known_consent
from id_booth.diffusion.base_costs import disk_needed
from id_booth.objectives import OBJECTIVES, any_needs_faces, with_objectives
from id_booth.training.class_images import save_validation_images
from id_booth.training.cohort import Cohort
from id_booth.training.cohort_size import cohort_size
from id_booth.training.frozen_models import FrozenModels
from id_booth.training.identity_branch import IdentityBranch
from id_booth.training.meter import Meter
from id_booth.training.model_card import push_trained
from id_booth.training.other_people import (
    digests_of_others,
    hashes_of_others,
    open_class_folder,
    prepare_class_photos,
    prepare_negatives,
    refuse_photos_of_others,
)
from id_booth.training.photos import prepare_photos
from id_booth.training.resume import load_resume, restore_cohort, save_resume
from id_booth.training.run_folder import IdentityRun
from utils.claims import Claims
from utils.devices import out_of_memory, pick_device, use_threads
from utils.errors import Interrupted, UserError, one_line
from utils.outputs import open_output
from utils.progress import log, progress
from utils.run_record import summarise, write_run_record


def main(argv=None):
    config = with_objectives(parse_command_line(TrainConfig, "configs/train_mini.py", argv))
    identities = find_identities(config.source_folder, config.identities, config.embeds_folder)
    if config.status:
        return print_training_status(config, identities)
    if config.dry_run:
        open_outputs(config, write=False)
        return print_training_plan(config, identities)
    use_threads(config.threads)
    if config.deterministic:
        launch.make_deterministic()
    state = launch.start_processes(cpu=pick_device(config.device).type == "cpu")
    with state.main_process_first():
        open_outputs(config, write=state.is_main_process)
    launch.ensure_disk_space(config.output_folder, disk_needed(config, len(identities)))
    fine_tuning = FineTuning(config, pick_device(config.device, state), launch.run_token(state))
    with state.main_process_first():
        fine_tuning.prepare_shared()
    if state.is_main_process and any_left(config, identities):
        write_run_record(config.output_folder, config)
    with fine_tuning.claims:
        rows = fine_tuning.train_identities(identities, state.process_index, state.num_processes)
    rows = launch.gather_rows(rows, ("identity", "objective"))
    if config.push_to_hub and state.is_main_process:
        rows += push_trained(config, rows)
    code = summarise(rows, config.output_folder, launch.summary_name(config), state.is_main_process)
    return launch.leave_together(code)


def open_outputs(config, write=True):
    """Take the folders that training writes into, or refuse to (utils/outputs.py).

    Other LoRAs may lie in the output folder: what is ours in it is decided by identity and objective.
    """
    sources = [config.source_folder, config.class_folder, config.negatives_folder]
    if config.with_prior_preservation:
        open_class_folder(config, config.class_folder, write=False)
    open_output(config.output_folder, launch.record_names(config), sources, shared=True, write=write)


class FineTuning:
    """The networks all identities share, and the loop over identities and objectives."""

    def __init__(self, config, device, run=None, base=None):
        self.config, self.device = config, device
        self.claims = Claims(config.output_folder, run)
        self.stop = self.stepping = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask_to_stop)
        self.needs_faces = any_needs_faces(config.objectives)
        self.models = FrozenModels(config, device, base)
        self.branch = self.class_photos = self.digests = self.negatives = None
        self.encoded, self.others = {}, {}

    def ask_to_stop(self, *_):
        """Finish the current step, save, leave; a second signal, or one between trainings, stops at once."""
        if self.stop or not self.stepping:
            raise Interrupted("asked to stop")
        self.stop = True

    def prepare_shared(self):
        """Recogniser, class images with their embeddings, negatives."""
        config, models = self.config, self.models
        if self.needs_faces:
            # Without a pack one can still train on given embeddings and negatives, with aligned crops.
            detects = config.with_prior_preservation or config.face_crop == "detect"
            pack_used = detects or not config.recogniser
            analyser = FaceAnalyser(config.pack, device=self.device) if pack_used else None
            recogniser = load_recogniser(config.recogniser or analyser.models["recognition"], self.device)
            factor = models.base.latent_factor
            self.branch = IdentityBranch(config, models.decoder(), factor, recogniser, analyser, models.vae)
        if config.with_prior_preservation:
            self.class_photos = prepare_class_photos(config, models, self.branch)
        self.others = hashes_of_others(config)
        self.digests = digests_of_others(config)
        if any(OBJECTIVES[name].needs_negatives for name in config.objectives):
            self.negatives = prepare_negatives(config, self.branch)

    # ------------------------------------------------------------------------------------------ identities

    def train_identities(self, identities, index=0, count=1):
        """Train all objectives of all identities, as process ``index`` of ``count``; summary rows.

        A unit of work is an objective of ``cohort_size`` identities.
        """
        number, parts = parse_shard(self.config.shard)
        identities = identities[number::parts]
        size = cohort_size(self.config, self.models, self.branch, -(-len(identities) // count))
        chunks = [identities[i : i + size] for i in range(0, len(identities), size)]
        groups = [[(chunk, objective) for objective in self.config.objectives] for chunk in chunks]
        return launch.go_over(launch.work_order(groups, index, count), self.train_unit)

    def train_unit(self, unit):
        """Train one objective of some identities, less what is done or held by others; summary rows."""
        identities, objective = unit
        names = {identity.name for identity in identities}
        self.encoded = {name: photos for name, photos in self.encoded.items() if name in names}
        rows, runs = [], []
        for identity in identities:
            run = IdentityRun(self.config, objective, identity, self.models, self.digests)
            found = self.guarded([run], self.begin, run, identity)
            rows += found
            runs += [] if found else [run]
        self.models.offload_encoders()
        groups = {}
        for run in runs:
            items = max(len(run.photos), len(self.class_photos or ()))
            groups.setdefault((run.first_step, self.config.total_steps(items)), []).append(run)
        for members in groups.values():
            rows += self.guarded(members, self.train_with_retry, members)
        for entry in rows:
            self.claims.release(f"{objective}/{entry['identity']}")
        return rows

    def begin(self, run, identity):
        """Claim a run and read its photos; a row when it is not to be trained now, else none."""
        run.consent = known_consent(identity, self.config.require_consent, "train")
        done = run.finished()
        if not done and not self.claims.take(run.unit):
            return [run.row("elsewhere", "another process works on it")]
        if done := done or run.finished():
            run.forget_resume()
            return [run.row("done before", done.name)]
        if reason := self.claims.failed_now(run.unit):
            return [run.row("failed", reason)]
        refuse_photos_of_others(identity, self.others)
        run.first_step = run.resume_step()
        if identity.name not in self.encoded:
            self.models.base.recall()
            photos = prepare_photos(identity, self.config, self.models, self.branch)
            self.encoded[identity.name] = photos
        run.photos = self.encoded[identity.name]
        return []

    def guarded(self, runs, work, *arguments):
        """The rows that ``work`` returns; whatever goes wrong in it becomes theirs, and the others go on."""
        try:
            return work(*arguments)
        except Interrupted:
            raise
        except UserError as error:
            reason = one_line(error)
        except Exception as error:
            log(traceback.format_exc(), lines=True)
            reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        return [self.failed(run, reason) for run in runs]

    def failed(self, run, reason):
        """The row of a run that failed, which is also noted for other processes."""
        if self.claims.held(run.unit):
            self.claims.fail(run.unit, reason)
        return run.row("failed", reason)

    def train_with_retry(self, runs):
        """Train a cohort; where memory runs out, once more one by one with gradient checkpointing."""
        try:
            return self.train_cohort(runs, runs[0].first_step)
        except (RuntimeError, MemoryError) as error:
            if self.models.recomputes or not out_of_memory(error):
                raise
        log(f"{', '.join(run.name for run in runs)}: out of memory, once more with gradient checkpointing")
        rows = []
        with self.models.recomputing():
            for run in runs:
                rows += self.guarded([run], self.train_cohort, [run], run.resume_step())
        return rows

    # ------------------------------------------------------------------------------------------ one cohort

    def train_cohort(self, runs, first_step):
        """Train some identities in one batch from ``first_step`` to the end; summary rows."""
        objective, photos = runs[0].objective, [run.photos for run in runs]
        branch = self.branch if OBJECTIVES[objective].needs_faces else None
        self.models.set_cohort_size(len(runs))
        cohort = Cohort(
            self.config, objective, self.models, branch, photos, self.class_photos, self.negatives
        )
        if first_step:
            restore_cohort(cohort, [load_resume(run.folder) for run in runs])
        for run in runs:
            run.begin()
            run.trim_log(first_step)
        self.stepping = True
        try:
            return self.loop(cohort, runs, first_step)
        finally:
            self.stepping = False
            for run in runs:
                run.close()

    def loop(self, cohort, runs, first_step):
        """The steps of a cohort: train, log, save."""
        config, rows, meter = self.config, {}, Meter()
        per_epoch = cohort.steps_per_epoch
        label = f"{cohort.objective} {', '.join(cohort.names)}"
        bar = progress(total=cohort.total_steps, initial=first_step, desc=label, unit="step", leave=False)
        saved_at = time.perf_counter()
        for step in range(first_step, cohort.total_steps):
            meter.add(*cohort.step(step))
            done, last = step + 1, step + 1 == cohort.total_steps
            epoch, epoch_ends = step // per_epoch, done % per_epoch == 0
            checkpoint = last or (epoch_ends and (epoch + 1) % config.checkpointing_epochs == 0)
            save = self.stop or time.perf_counter() - saved_at > 60 * config.resume_minutes
            if checkpoint or save or done % config.log_every == 0:
                for slot, reason in meter.flush(cohort, runs, done, epoch, bar):
                    rows[slot] = self.failed(runs[slot], reason)
            if checkpoint or save:
                rows |= self.save(cohort, runs, epoch, done, checkpoint)
                saved_at = time.perf_counter()
            bar.update()
            if self.stop and not last:
                raise Interrupted(f"{label}: saved at step {done} of {cohort.total_steps}")
            if not any(cohort.active):
                break
        bar.close()
        return [rows[slot] for slot in sorted(rows)]

    def save(self, cohort, runs, epoch, done, checkpoint):
        """Keep what every identity has learnt: a checkpoint, the resume state, or the end; rows by slot."""
        rows, last = {}, done == cohort.total_steps
        for slot, run in enumerate(runs):
            if not cohort.active[slot]:
                continue
            if not self.claims.held(run.unit):
                cohort.retire(slot)
                rows[slot] = run.row("elsewhere", "another process took it over")
                continue
            if checkpoint:
                path = run.save_checkpoint(slot, epoch, done)
                save_validation_images(self.config, self.models, slot, run.name, path)
            if last:
                rows[slot] = run.finish(path)
                self.claims.succeed(run.unit)
            else:
                save_resume(run, cohort, slot, done)
        return rows


if __name__ == "__main__":
    run_script(main)
