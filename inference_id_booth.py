"""Sample an image data set of every identity with the LoRAs that train_id_booth.py made.

    python inference_id_booth.py --config configs/inference_sd21.py                 the published recipe
    python inference_id_booth.py --config configs/inference_sd21_fast.py            ours
    python inference_id_booth.py --config configs/inference_mini.py --dry-run       what would be done
    python inference_id_booth.py --config configs/inference_mini.py --status        how far a batch is
    accelerate launch inference_id_booth.py --config configs/inference_sd21.py      spread over GPUs
    torchrun --nproc_per_node 2 inference_id_booth.py --config ...                  spread over CPU processes

LoRAs and attributes (gender, age) go in; images with their provenance come out, under
Generated_Samples/{set}/{method}/{identity}/000.png, with one metadata.jsonl per method and a data card.
Contact sheets show real photos too, and go elsewhere: Contact_Sheets/{set}/{identity}.jpg. The same command
goes on where an interrupted run stopped, and skips what is done; several may run on one folder and share it.
"""

import contextlib
import time
from collections import deque

from configs.inference_config import InferenceConfig
from utils.config import parse_command_line, parse_shard
from utils.errors import run as run_script

if __name__ == "__main__":  # a wrong command line is answered before the libraries load, for seconds
    run_script(lambda: parse_command_line(InferenceConfig, "configs/inference_mini.py"), exits=False)

import torch

from id_booth import launch
from id_booth.batch_status import print_sampling_status
from id_booth.diffusion.base_files import base_model_fingerprint, find_base_model, published_name
from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.denoising import compile_blocks, decode_latents, make_scheduler, sample_latents
from id_booth.diffusion.lora_files import load_lora, unload_lora
from id_booth.diffusion.lora_reading import read_lora
from id_booth.sampling.contact_sheet import write_contact_sheets
from id_booth.sampling.data_card import CARD_FILE, write_data_card
from id_booth.sampling.lora_stack import LoraStack, stackable_groups
from id_booth.sampling.plan import Plan
from id_booth.sampling.provenance import finish_metadata, is_complete_png
from id_booth.sampling.settings import checked_settings, set_folder, sheets_folder
from id_booth.sampling.writer import SampleWriter, WriteFailed
from utils.claims import Claims
from utils.devices import pick_device, pick_dtype
from utils.errors import Interrupted, UserError, one_line
from utils.files import sweep_temporaries
from utils.outputs import open_output
from utils.progress import log, progress
from utils.run_record import summarise, write_run_record

# A PNG of a photo-like picture takes about this many bytes per pixel.
BYTES_PER_PIXEL = 2.0
FUSE = {"auto": None, "fused": True, "attached": False}


def main(argv=None):
    config = checked_settings(parse_command_line(InferenceConfig, "configs/inference_mini.py", argv))
    base_name = published_name(find_base_model(config.base_model))
    fingerprint = base_model_fingerprint(config.base_model, config.revision)
    plan = Plan(config, base_name, fingerprint)
    if config.status:
        return print_sampling_status(plan, set_folder(config))
    if config.dry_run:
        open_set(config, write=False)
        return print_plan(config, plan)
    launch.leave_on_signals()

    state = launch.start_processes(cpu=pick_device(config.device).type == "cpu")
    device = pick_device(config.device, state)
    pick_dtype(config.precision, device)
    with state.main_process_first():
        open_set(config, write=state.is_main_process)
    launch.ensure_disk_space(config.output_folder, disk_needed(config, plan.units))
    number, count = parse_shard(config.shard)
    groups = [[bundle] for bundle in plan.bundles()[number::count]]
    bundles = launch.work_order(groups, state.process_index, state.num_processes)
    with Claims(set_folder(config), launch.run_token(state)) as claims:
        rows = make_images(config, plan, bundles, device, claims, state.is_main_process)
    # Each process does this at its end; the last one finds all images, and writes the final form.
    for method in config.methods:
        finish_metadata(set_folder(config) / method)
    rows = launch.gather_rows(rows, ("identity", "method"))
    if config.contact_sheets:
        identities = finished_identities(rows)[state.process_index :: state.num_processes]
        write_contact_sheets(config, set_folder(config), sheets_folder(config), identities)
    if state.is_main_process:
        write_data_card(config, set_folder(config))
    # Where all was done before, the summary of the run that did it stays.
    folder = None if all(row["status"] == "done before" for row in rows) else set_folder(config)
    code = summarise(rows, folder, launch.summary_name(config), state.is_main_process)
    return launch.leave_together(code)


def open_set(config, write=True):
    """Take the folders of the set and of its contact sheets, or refuse to (utils/outputs.py)."""
    names, sources = [*launch.record_names(config), CARD_FILE], [config.lora_folder, config.source_folder]
    open_output(set_folder(config), names, sources, write=write)
    if config.contact_sheets:
        open_output(sheets_folder(config), [], [*sources, set_folder(config)], write=write)


def make_images(config, plan, bundles, device, claims, show_progress):
    """Make the missing images of all bundles; summary rows. The base model is loaded only if any is."""
    if any(unit.missing and unit.status != "failed" for bundle in bundles for unit in bundle):
        sampler = Sampler(config, plan, device, claims, show_progress)
        if show_progress:  # not before the base model is there: a refused run leaves no record
            write_run_record(set_folder(config), config)
        return sampler.make(bundles)
    return [unit.row() for bundle in bundles for unit in bundle]


def finished_identities(rows):
    """Identities no other process is still working on, in their order."""
    unfinished = {row["identity"] for row in rows if row["status"] == "elsewhere"}
    return [name for name in dict.fromkeys(row["identity"] for row in rows) if name not in unfinished]


class Sampler:
    """The base model, loaded once, and the loop over LoRAs and batches."""

    def __init__(self, config, plan, device, claims, show_progress=True, base=None):
        self.config, self.plan, self.claims, self.show_progress = config, plan, claims, show_progress
        dtype = pick_dtype(config.precision, device)
        self.base = base or load_base_model(config.base_model, dtype, device, config.revision)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            self.base.unet.to(memory_format=torch.channels_last)
            self.base.vae.to(memory_format=torch.channels_last)
        if config.compile_unet:
            compile_blocks(self.base.unet)
        self.scheduler = make_scheduler(config.scheduler, self.base.schedule)
        self.batch_size, self.unwritten = config.batch_size, deque()
        self.side = config.resolution // self.base.latent_factor

    def make(self, bundles):
        """Make the missing images of all bundles; one that fails stops nobody else. Summary rows."""
        for text in sorted(self.plan.texts):
            self.base.check_prompt(text)
        total = sum(unit.missing for bundle in bundles for unit in bundle if unit.status != "failed")
        self.bar = progress(total=total, desc="sampling", unit="image", disable=not self.show_progress)
        with SampleWriter() as self.writer:
            launch.go_over(bundles, self.make_bundle)
            self.finish()
        self.bar.close()
        return [unit.row() for bundle in bundles for unit in bundle]

    def make_bundle(self, bundle):
        """The missing images of a bundle, unless it is done or another process has it; summary rows."""
        units = [unit for unit in bundle if unit.status != "failed"]
        names = [f"{unit.method}/{unit.identity}" for unit in units]
        if self.plan.count_missing(units) and not self.claims.take_all(names):
            for unit in units:
                unit.status, unit.detail = "elsewhere", "another process works on it"
        elif self.plan.count_missing(units):
            reason = next(filter(None, map(self.claims.failed_now, names)), None)
            if reason:
                fail(units, reason)
            else:
                self.make_groups(units)
                return [unit.row() for unit in bundle]
        for name in names:
            self.claims.release(name)
        return [unit.row() for unit in bundle]

    def make_groups(self, units):
        """Make claimed units, those together whose LoRAs fit side by side.

        A group is done once its images are written, while the next one computes; until then it stays ours.
        """
        for group in stackable_groups(self.base, units):
            for unit in group:
                sweep_temporaries(set_folder(self.config) / unit.method / unit.identity)
            self.make_group(group)
            self.finish()
            self.unwritten.append((group, self.writer.taken))

    def finish(self):
        """Wait for the images of the groups in ``unwritten``, not for later ones; give their claims back."""
        while self.unwritten:
            group, taken = self.unwritten.popleft()
            self.writer.settle(self.writer.taken - taken)
            for unit in group:
                name = f"{unit.method}/{unit.identity}"
                if unit.status == "failed":
                    self.claims.fail(name, unit.detail)
                else:
                    unit.status, unit.missing = "done", 0
                    self.claims.succeed(name)
                self.claims.release(name)

    def make_group(self, units):
        """The images of units that share batches: of one LoRA, of stacked ones, or of the base model."""
        started = time.perf_counter()
        label = f"{units[0].method} {', '.join(unit.identity for unit in units)}"
        self.bar.set_description(label)
        try:
            with self.weights(units):
                self.make_items(self.plan.items(*units))
        except (WriteFailed, Interrupted):
            raise
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            fail(units, kind + one_line(error)[:300])
            log(f"failed: {label}: {units[0].detail}")
            return
        seconds = time.perf_counter() - started
        for unit in units:
            unit.detail = f"{seconds / len(units):.1f} s"

    @contextlib.contextmanager
    def weights(self, units):
        """The LoRA of one unit, or those of several side by side, is in the base model meanwhile."""
        self.stack, self.slots = None, {unit.identity: slot for slot, unit in enumerate(units)}
        if not units[0].lora:
            unload_lora(self.base)
        elif len(units) == 1:
            load_lora(self.base, units[0].lora, FUSE[self.config.lora_mode])
        else:
            with LoraStack(self.base, [read_lora(unit.lora, self.base) for unit in units]) as self.stack:
                yield
            return
        yield

    def make_items(self, items):
        """Denoise, decode and hand over, batch by batch; the batch is halved where memory runs out.

        A batch with one image missing is computed whole, and so that image comes out as it would have.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + self.batch_size]
            missing = [item for item in batch if not is_complete_png(item.path)]
            try:
                images = self.images(batch) if missing else ()
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size = (self.batch_size + 1) // 2
                torch.cuda.empty_cache()
                log(f"out of memory: going on with batches of {self.batch_size}")
                continue
            for item, image in zip(batch, images, strict=bool(missing)):
                if item in missing:
                    self.writer.put(item, image)
            start += len(batch)
            self.bar.update(len(missing))

    def images(self, batch):
        """uint8 RGB images (N, H, W, 3) of a batch of items."""
        config, base = self.config, self.base
        if self.stack:
            self.stack.choose([self.slots[item.record["identity"]] for item in batch], config.guidance > 1)
        latents = sample_latents(
            base.unet,
            self.scheduler,
            base.encode([item.prompt for item in batch], config.resolution),
            base.encode([item.negative for item in batch], config.resolution),
            [item.seed for item in batch],
            config.steps,
            config.guidance,
            (self.side, self.side),
            "batch" if self.show_progress else None,
        )
        if not torch.isfinite(latents).all():
            raise UserError(f"precision: {config.precision} overflowed; set --precision bf16 or fp32")
        return decode_latents(base.vae, latents, config.decode_batch_size)


def fail(units, reason):
    """Note in the units why there is none of their images."""
    for unit in units:
        unit.status, unit.detail = "failed", reason


def disk_needed(config, units):
    """Bytes the run may write."""
    images = sum(unit.missing for unit in units if unit.status != "failed")
    return int(images * config.resolution**2 * BYTES_PER_PIXEL)


def print_plan(config, plan):
    """What a run would do, without loading any network."""
    code = summarise([unit.row() for unit in plan.units])
    remaining = sum(unit.missing for unit in plan.units if unit.status != "failed")
    per_image = config.steps * (2 if config.guidance > 1 else 1)
    log(f"data set: {set_folder(config)}")
    total = sum(unit.total for unit in plan.units)
    log(f"images: {remaining} to make of {total}, {per_image} passes through the UNet each")
    log(f"disk: up to {disk_needed(config, plan.units) / 2**30:.2f} GiB in {config.output_folder}")
    ready = next(unit for unit in plan.units if unit.status != "failed")
    for item in plan.items(ready)[:3]:
        log(f"for instance: {item.prompt!r}, seed {item.seed}")
    return code


if __name__ == "__main__":
    run_script(main)
