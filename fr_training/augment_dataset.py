"""Mix real crops with N synthetic ones per identity: a manifest of files, without copying any.

    python -m fr_training.augment_dataset --config configs/augment_tfd.py --count 21 --output SET.json

The synthetic images of an identity are drawn with a seed and balanced over background and pose of their
prompts (evaluation/balance.py). The prompts come from the records that crops of our samples carry, or from
metadata.jsonl of the samples; without either the log says so. An identity with fewer images than wanted is an
error, or named in the log.

The published choice (`choice` "first") takes the first N samples by their number. With `curation` both choose
among the samples that evaluation/curate.py chose.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m fr_training.augment_dataset")

import functools
import os
import re
from collections import Counter
from pathlib import Path

from arcface_files.people import people_in, person_of
from configs.fr_config import AugmentConfig
from evaluation.balance import choose, prompt_group
from evaluation.curation import read_curation
from fr_training.align_faces import crop_hashes, crop_name, read_labels
from fr_training.crops import MANIFEST_KIND
from id_booth.prompts import published_sample
from id_booth.sampling.provenance import read_metadata, read_record
from utils.config import parse_command_line
from utils.errors import UserError, run
from utils.files import atomic_write_json, read_json, sha256_file
from utils.identities import natural_key
from utils.progress import log
from utils.run_record import describe_run


def main(argv=None):
    config = parse_command_line(AugmentConfig, "configs/augment_mini.py", argv)
    manifest = build_manifest(config)
    refuse_outside(config.output, manifest)
    kinds = Counter(item["kind"] for items in manifest["identities"].values() for item in items)
    people = len(manifest["identities"])
    log(f"{people} identities: {kinds['real']} real and {kinds['synthetic']} synthetic images")
    refuse_other_file(config.output)
    if not config.dry_run:
        atomic_write_json(config.output, manifest | {"run": describe_run(config)})
    return 0


def refuse_outside(path, manifest):
    """Refuse a manifest that leads out of its folder: it would name folders, and nobody would read it."""
    files = [item["file"] for items in manifest["identities"].values() for item in items]
    if outside := next((file for file in files if file.startswith("../")), None):
        raise UserError(f"output: {path} leads out of its folder ({outside}); put it into one with the crops")


def refuse_other_file(path):
    """UserError where something else than a manifest of ours has the output's name."""
    content = read_json(path) if Path(path).is_file() else {"kind": MANIFEST_KIND}
    if not isinstance(content, dict) or content.get("kind") != MANIFEST_KIND:
        raise UserError(f"{path}: exists and is no manifest; name another output")


def build_manifest(config):
    """The manifest as a dict, ready for JSON: kind, labels, and identity name -> list of files.

    Raises:
        UserError: a missing crop set, an identity without a label, a shortage that is to be refused, or crops
            of the real images in place of the synthetic ones.
    """
    manifest, shortage = mix(config)
    refuse_photos(config)
    report_shortage(config, shortage)
    return manifest


def refuse_photos(config):
    """Refuse crops of the real images that are given as synthetic; say where nothing tells what they are."""
    if not config.synthetic:
        return
    if config.real:
        same = Path(config.real).resolve() == Path(config.synthetic).resolve()
        hashes = {*map(str, crop_hashes(config.real).values())} - {"None"}
        if same or hashes & {*map(str, crop_hashes(config.synthetic).values())}:
            raise UserError(f"{config.synthetic}: holds crops of the images of {config.real}; give samples'")
    first = [files[0] for files in crop_listing(config.synthetic).values()]
    if not any(read_record(file) or published_sample(file) for file in first):
        log(f"{config.synthetic}: no crop says that it is generated; taken for synthetic all the same")


def mix(config):
    """(manifest, shortage): the manifest with what there is, and identity -> samples where they are too few.

    Raises:
        UserError: a missing crop set, or an identity without a label.
    """
    real = crop_listing(config.real) if config.real else {}
    synthetic = crop_listing(config.synthetic) if config.synthetic else {}
    manifest = {"kind": MANIFEST_KIND}
    if config.synthetic and config.curation:
        curation = read_curation(config.curation)
        synthetic = curated_crops(config, synthetic, curation)
        manifest["curation"] = {"rules": curation["rules"], "sha256": sha256_file(config.curation)}
    names = sorted(real or synthetic, key=natural_key)
    labels = known_labels(config.labels, names)
    refuse_strangers(config, real, synthetic)
    groups = sample_groups(config) if config.synthetic and config.choice == "balanced" else {}
    root, identities, shortage = Path(config.output).parent, {}, {}
    for folder in filter(None, (config.real, config.synthetic)):
        refuse_way(root, folder)
    for name in names:
        chosen = chosen_samples(config, name, synthetic.get(name, []), groups)
        if config.synthetic and len(chosen) < config.count:
            shortage[name] = len(chosen)
        identities[name] = [item(file, "real", root) for file in real.get(name, [])]
        identities[name] += [item(file, "synthetic", root) for file in chosen]
    labels = {name: labels[name] for name in names}
    return manifest | {"labels": labels, "identities": identities}, shortage


def curated_crops(config, listing, curation):
    """The crops in `listing` (identity -> files) of samples that a curation chose.

    Raises:
        UserError: it chose none of this method, or a crop was cut from another image than it chose.
    """
    method, methods = Path(config.synthetic).name, curation["samples"]
    if method not in methods:
        have = ", ".join(methods) or "none"
        raise UserError(
            f"{config.curation}: no samples of {method!r}, the name of the crop set; there are {have}"
        )
    chosen = {name: {crop_name(one["file"]): one for one in of} for name, of in methods[method].items()}
    hashes, kept = crop_hashes(config.synthetic), {}
    for name, files in listing.items():
        kept[name] = [file for file in files if file.name in chosen.get(name, {})]
        for file in kept[name]:
            wanted = chosen[name][file.name]["sha256"]
            if hashes.get((name, file.name), wanted) != wanted:
                raise UserError(
                    f"{file}: is not the crop of the image that {config.curation} chose; align the samples, "
                    "evaluate and curate them again"
                )
    return kept


def known_labels(path, names):
    """name -> label of people; those of flat official crops are called by theirs."""
    numbered = all(name.isdecimal() for name in names) and not Path(path).is_file()
    labels = {name: int(name) for name in names} if numbered else read_labels(path)
    if unknown := [name for name in names if name not in labels]:
        raise UserError(f"{path}: no label for {unknown[0]}; align both sets with one labels file")
    return labels


def refuse_strangers(config, real, synthetic):
    """UserError when two crop sets have nobody in common; people of the second alone are named."""
    strangers = [name for name in synthetic if name not in real] if real else []
    if synthetic and len(strangers) == len(synthetic):
        raise UserError(
            f"{config.synthetic}: has {strangers[0]} and others, but nobody of {config.real}, such as "
            f"{next(iter(real))}; give crops of the same people"
        )
    if strangers:
        log(f"{config.synthetic}: {len(strangers)} without real crops, not used: {', '.join(strangers[:5])}")


def report_shortage(config, shortage):
    """Name the identities (name -> images they have) with too few samples, or refuse them, as configured."""
    for name, have in shortage.items():
        log(f"{config.output}: {name} has only {have} of {config.count} synthetic images")
    if shortage and config.on_shortage == "refuse":
        name, have = next(iter(shortage.items()))
        raise UserError(
            f"{config.synthetic}: {len(shortage)} identities have too few images, {name} has {have} of "
            f"{config.count}; sample more, lower count, or set on_shortage to keep"
        )


def crop_listing(folder):
    """Identity name -> crops of a crop set; UserError for a set or an identity without any."""
    listing = people_in(folder, empty=True)
    if empty := [name for name, files in listing.items() if not files]:
        raise UserError(f"{folder}: identity {empty[0]} has no crops; see its missing_faces.json")
    return listing


def refuse_way(root, folder):
    """Refuse a manifest whose paths would name folders of this machine outside the working folder."""
    common = Path(os.path.commonpath([os.path.abspath(root), os.path.abspath(folder)]))
    leads_up = os.path.relpath(folder, root).startswith("..")
    here = common.is_relative_to(Path.cwd())
    if leads_up and not here and common in (Path.home(), *Path.home().parents):
        raise UserError(
            f"output: from {root} the way to {folder} leads through this machine's folders, and the manifest "
            "would name them; put it into a folder that holds the crops too"
        )


def item(file, kind, root):
    """One entry of the manifest, its path relative to the manifest."""
    return {"file": Path(os.path.relpath(file, root)).as_posix(), "kind": kind}


def chosen_samples(config, name, files, groups):
    """The synthetic crops of an identity that are taken, in natural order."""
    if config.choice == "balanced":
        return choose(name, files, config.count, config.seed, groups)
    return [file for file in files if (sample_number(file) or 0) < config.count]


def sample_number(file):
    """The number of a sample, the first in its name; None without."""
    if published := published_sample(file):
        return published[0]
    number = re.search("[0-9]+", Path(file).stem)
    return int(number[0]) if number else None


def sample_groups(config):
    """(identity, stem) -> (background, pose) of the samples' prompts; where unknown, the log says so."""
    if config.samples_metadata:
        groups = groups_of_metadata(config.samples_metadata)
    else:
        groups = groups_of_crops(config.synthetic)
    if not groups:
        log(
            f"{config.synthetic}: no prompt is known of any image, so they are chosen by seed alone and not "
            "balanced over background and pose; name the samples' metadata.jsonl as samples_metadata"
        )
    return groups


@functools.cache
def groups_of_crops(folder):
    """:func:`sample_groups` by the records that the crops of a set carry, or by their official names."""
    crops = [(name, file) for name, files in crop_listing(folder).items() for file in files]
    prompts = {(name, file.stem): prompt_of(file) for name, file in crops}
    return {place: prompt_group(prompt) for place, prompt in prompts.items() if prompt}


def prompt_of(crop):
    """What a sample was asked to show, None where its crop does not say."""
    record, published = read_record(crop), published_sample(crop)
    return record["prompt"] if record else published[1] if published else None


def groups_of_metadata(metadata):
    """:func:`sample_groups` by a metadata.jsonl, or by that of a folder of samples."""
    folder = Path(metadata)
    folder = folder.parent if folder.suffix == ".jsonl" else folder
    records = read_metadata(folder)
    if not records:
        raise UserError(f"{metadata}: no metadata.jsonl with samples; give the method's sample folder")
    return {
        (person_of(Path(name).parent.name), Path(name).stem): prompt_group(record["prompt"])
        for name, record in records.items()
    }


if __name__ == "__main__":
    run(main)
