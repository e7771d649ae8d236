"""Which images a sampling run has to make: identities x methods x prompts, less what is there already."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from arcface_files.people import identity_at
from configs.inference_config import BASELINE
from id_booth.consent import known_consent
from id_booth.diffusion.lora_files import (
    LOSS_RECOGNISER,
    NO_RECOGNISER,
    check_person,
    loss_recogniser_of,
)
from id_booth.diffusion.lora_reading import lora_file
from id_booth.prompts import prompts_for_identity
from id_booth.sampling.lora_stack import identities_per_batch
from id_booth.sampling.provenance import (
    first_difference,
    is_complete_png,
    is_torn_png,
    make_record,
    read_record,
)
from id_booth.sampling.settings import choose_checkpoint, known_attributes, sample_identities, set_folder
from utils.errors import UserError, one_line
from utils.files import sha256_file
from utils.outputs import absolute, guard
from utils.run_record import code_version
from utils.seeding import derive_seed


class SettingsChanged(UserError):
    """Images of the set exist that were made with other settings of the run."""


@dataclass(frozen=True)
class Item:
    """One image to be made: its texts, its seed, its file, and the record that goes with it."""

    prompt: str
    negative: str
    seed: int
    path: Path
    record: dict


@dataclass
class Unit:
    """The images of one identity by one method: their LoRA, how many they are and how many remain."""

    identity: str
    method: str
    lora: Path | None = None
    lora_sha256: str = ""
    loss_recogniser: str = NO_RECOGNISER
    total: int = 0
    missing: int = 0
    status: str = ""
    detail: str = ""

    def row(self):
        """A line of the summary."""
        made = f"{self.total - self.missing} of {self.total}"
        return {
            "identity": self.identity,
            "method": self.method,
            "status": self.status or "to do",
            "images": made,
            "detail": self.detail,
        }


class Items(Sequence):
    """Items that are made when they are asked for: a record takes two kilobytes, a prompt far less."""

    def __init__(self, recipes):
        self.recipes = recipes

    def __len__(self):
        return len(self.recipes)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [make(prompt) for make, prompt in self.recipes[index]]
        make, prompt = self.recipes[index]
        return make(prompt)


class Plan:
    """All units of a run in a fixed order, and the items of each on demand.

    What concerns one identity only (no LoRA, attribute unknown, LoRA trained anew since) makes its unit
    "failed"; what concerns them all raises UserError, so that no data set is made with mixed settings.
    """

    def __init__(self, config, base_name, fingerprint):
        self.config = config
        self.shared = run_fields(config, base_name, fingerprint)
        self.attributes = known_attributes(config)
        self.texts = {config.negative_prompt}
        self.units = [
            self.make_unit(identity, method)
            for identity in sample_identities(config)
            for method in config.methods
        ]
        if all(unit.status == "failed" for unit in self.units):
            raise UserError(self.units[0].detail)

    def make_unit(self, identity, method):
        """Find the unit's LoRA and count the images that remain to be made."""
        unit = Unit(identity, method)
        try:
            person = identity_at(self.config.source_folder, identity)
            known_consent(person, self.config.require_consent, "generate")
            if method != BASELINE:
                unit.lora = choose_checkpoint(self.config, method, identity)
                check_person(unit.lora, identity)
                unit.lora_sha256 = sha256_file(lora_file(unit.lora))
                unit.loss_recogniser = loss_recogniser_of(unit.lora)
            refuse_way(set_folder(self.config) / method, identity)
            items = self.items(unit)
            unit.total = unit.missing = len(items)
            self.texts |= {item.prompt for item in items}
            unit.missing = sum(not already_made(item) for item in items)
            unit.status = "" if unit.missing else "done before"
        except SettingsChanged:
            raise
        except UserError as error:
            unit.status, unit.detail = "failed", one_line(error)
        return unit

    def count_missing(self, units):
        """Count anew, from the files, what units still lack; how many images that is in all."""
        for unit in units:
            unit.missing = sum(not is_complete_png(item.path) for item in self.items(unit))
            unit.status, unit.detail = ("", "") if unit.missing else ("done before", "")
        return sum(unit.missing for unit in units)

    def items(self, *units):
        """All items of some units, made or not, unit after unit in the order of their prompts."""
        recipes = []
        for unit in units:
            make = partial(make_item, self.config, unit, shared=self.fields(unit))
            recipes += [(make, prompt) for prompt in self.prompts(unit)]
        return Items(recipes)

    def prompts(self, unit):
        """The prompts of a unit."""
        config = self.config
        return prompts_for_identity(
            unit.identity,
            self.attributes.get(unit.identity.strip()),
            prompt_set=config.prompt_set,
            seed=config.seed,
            use_gender=config.use_gender,
            use_pose=config.use_pose,
            use_age=config.use_age,
            use_background=config.use_background,
            negative=config.negative_prompt,
            subject=config.subject,
        )

    def fields(self, unit):
        """What the records of a unit's images have in common."""
        lora = unit.lora.relative_to(self.config.lora_folder).as_posix() if unit.lora else ""
        own = {"identity": unit.identity, "method": unit.method, "lora_sha256": unit.lora_sha256}
        return {**self.shared, **own, "lora": lora, LOSS_RECOGNISER: unit.loss_recogniser}

    def bundles(self):
        """The units in groups that are sampled together.

        A group has one LoRA, or the LoRAs of as many people as fill a batch, or as many units of the base
        model. Groups depend on the settings alone, not on what is done already or on the number of processes,
        so neither of these changes an image by as much as rounding.
        """
        images_each = max(unit.total or 1 for unit in self.units)
        people = self.config.cohort_size
        if people == 0:
            can_mix = self.config.lora_mode == "auto" and not self.config.compile_unet
            people = identities_per_batch(images_each, self.config.batch_size) if can_mix else 1
        sizes = {BASELINE: max(1, self.config.batch_size // images_each)}
        by_method = {}
        for unit in self.units:
            by_method.setdefault(unit.method, []).append(unit)
        groups = [
            (method != BASELINE, start, units[start : start + size])
            for method, units in by_method.items()
            for size in [sizes.get(method, people)]
            for start in range(0, len(units), size)
        ]
        # The base model first; then all methods of some people, before the next people.
        return [units for _, _, units in sorted(groups, key=lambda group: group[:2])]


def refuse_way(folder, identity):
    """UserError when no folder can be where a person's images of a method belong, in a method's folder."""
    guard(folder / identity, absolute(folder))
    if (folder / identity).exists() and not (folder / identity).is_dir():
        raise UserError(f"{folder / identity}: is in the way of a folder for images; move it away")


def run_fields(config, base_name, fingerprint):
    """The fields of the record that all images of a run share."""
    return {
        "steps": config.steps,
        "guidance": config.guidance,
        "scheduler": config.scheduler,
        "width": config.resolution,
        "height": config.resolution,
        "precision": config.precision,
        "base_model": base_name,
        "base_fingerprint": fingerprint,
        "code_version": code_version(),
    }


def make_item(config, unit, prompt, shared):
    """One image's item; its seed depends on (seed, identity, prompt index) and on nothing else."""
    seed = derive_seed(config.seed, unit.identity, prompt.index)
    name = f"{unit.identity}/{prompt.index:03d}.png"
    record = make_record(
        file_name=name,
        prompt=prompt.text,
        negative_prompt=prompt.negative,
        background=prompt.background,
        pose=prompt.pose,
        gender=prompt.gender,
        age=prompt.age,
        seed=seed,
        **shared,
    )
    return Item(prompt.text, prompt.negative, seed, set_folder(config) / unit.method / name, record)


def already_made(item):
    """Whether the image is there, whole and with these settings; UserError when it was made with others."""
    if not is_complete_png(item.path):
        if os.path.lexists(item.path) and not is_torn_png(item.path):
            raise UserError(f"{item.path}: in the way of an image, and none of this project; move it away")
        return False
    record = read_record(item.path)
    if record is None:  # perhaps a photo: that metadata.jsonl has a line for this name says nothing of it
        raise UserError(f"{item.path}: carries no record of ours; move it away or set another set_name")
    name = first_difference(record, item.record)
    if name is None:
        return True
    kind = UserError if name == "lora_sha256" else SettingsChanged
    raise kind(
        f"{item.path}: was made with {name} {record.get(name)!r}, now it is {item.record[name]!r}; "
        "set another set_name, or delete the old images"
    )
