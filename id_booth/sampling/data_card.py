"""The data card of a generated set: README.md in the form of a Hugging Face data set, from what lies there.

The folder then loads with ``datasets.load_dataset(folder, "ID-Booth")``, and each method's folder on its own
with ``load_dataset("imagefolder", data_dir=...)``. The card is made from the files of the folder: it speaks
of images that carry our record, and names every other file as one of which it knows nothing.
"""

import json
import os
from collections import Counter
from pathlib import Path

from arcface_files.people import identity_at
from id_booth.consent import read_consent
from id_booth.diffusion.base_files import licence_of
from id_booth.sampling.provenance import METADATA_FILE, is_complete_png, read_record
from utils.errors import UserError
from utils.files import TEMPORARY, atomic_write_text
from utils.identities import natural_key
from utils.outputs import JUNK
from utils.progress import log
from utils.run_record import publishable
from utils.text_tables import markdown_text

CARD_FILE = "README.md"
OURS = "ID-Booth"
IDENTITIES_LISTED = 200
EXAMPLES = 5
STRANGERS_LISTED = 20
GENERATED = """\
**Every image in this data set is generated**; none is a photograph and none shows a real event. They were
sampled with [ID-Booth](https://arxiv.org/abs/2504.07392) from a text-to-image model that was fine-tuned on a
few photos of each person. Each PNG says so itself: the IPTC digital source type `trainedAlgorithmicMedia`,
and its prompt, seed and models as text chunks."""
NOT_ALL = """\
**Do not pass this folder on as it is: {strangers} of its files carry no record of
[ID-Booth](https://arxiv.org/abs/2504.07392).** They may be photographs of people; nothing that follows is
about them: {names}.

The {images} others are generated images, which say so themselves: the IPTC digital source type
`trainedAlgorithmicMedia`, and prompt, seed and models as text chunks."""
CARD = """---
{header}
---
# {name}: generated faces of {people} identities

{intro}

```python
from datasets import load_dataset

images = load_dataset("imagefolder", data_dir={data_dir}, split="train")
```

## Contents
| method | identities | images |
|---|---|---|
{methods}

Per image `metadata.jsonl` has: {fields}.

## Identities and consent
{consent}

## Prompts
{prompts}

Negative prompt: {negative}

## Models
Base model: {bases}. Sampler: {samplers}. LoRA files are named by SHA-256 in the metadata.

## Licences
{licence}

## Intended use
Research on biometrics within the consent of the people shown: training and testing face recognition, privacy
and fairness studies. Not for deceiving, harassing or identifying anyone, and not for presenting a person in
scenes as if they had happened. Keep the provenance marks when you pass images on; remove a person's images
when the consent ends or is withdrawn.

## Limits
Faces inherit the biases of the base model and of the recogniser that guided the fine-tuning. Attributes in
the prompts (gender, age, background, pose) are what was asked for, not what was verified in the image.
"""


def write_data_card(config, folder):
    """Write README.md for the set in ``folder`` (InferenceConfig ``config``); nothing for an empty set."""
    methods, strangers = survey(folder)
    if not methods:
        return
    if strangers:
        log(
            f"{folder}: {len(strangers)} files carry no record of this project (first: {strangers[0]}); they "
            "may be photographs, so take them out before you pass the folder on"
        )
    names = dict.fromkeys(record["identity"] for records in methods.values() for record in records)
    card = data_card(Path(folder).name, methods, consents(config.source_folder, names), strangers)
    atomic_write_text(Path(folder) / CARD_FILE, card)


def survey(folder):
    """(method -> records of its images, paths of all files that are neither such images nor our own notes).

    Only a file that carries a record counts as generated. Nothing is followed through links.
    """
    methods, strangers = {}, []
    for place, folders, files in os.walk(folder):
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = sorted(set(folders) - JUNK - set(linked), key=natural_key)
        for name in [*linked, *sorted(files, key=natural_key)]:
            path = Path(place, name)
            inside = path.relative_to(folder)
            record = None if path.is_symlink() or not is_complete_png(path) else read_record(path)
            if record and len(inside.parts) == 3:
                record = record | {"file_name": Path(*inside.parts[1:]).as_posix()}
                methods.setdefault(inside.parts[0], []).append(record)
            elif not (is_note(inside) and not path.is_symlink()):
                strangers.append(inside.as_posix())
    return methods, strangers


def is_note(path):
    """Whether a path in a set's folder is the name of a file that sampling writes beside the images."""
    own = path.name == f".{METADATA_FILE}.lock" or TEMPORARY.search(path.name)
    if own or path.name in JUNK or path.name.startswith("._"):
        return True
    if len(path.parts) == 2:
        return path.name == METADATA_FILE
    at_top = path.name in (CARD_FILE, "run.json") or path.stem.startswith("summary")
    return len(path.parts) == 1 and at_top and path.suffix in (".md", ".json", ".txt")


def consents(source_folder, names):
    """identity -> its Consent, None where there is none that can be read."""
    found = {}
    for name in names:
        try:
            found[name] = read_consent(identity_at(source_folder, name))
        except UserError:  # a name from a file that would lead elsewhere too
            found[name] = None
    return found


def data_card(name, methods, consent, strangers=()):
    """The text of the card.

    Args:
        name: of the set. methods, strangers: from :func:`survey`. consent: from :func:`consents`.
    """
    records = [record for found in methods.values() for record in found]
    return CARD.format(
        header="\n".join(header(methods, records)),
        name=markdown_text(name),
        intro=intro(len(records), strangers),
        data_dir=repr(f"{name}/{shown_first(methods)}"),
        people=len(consent),
        methods="\n".join(
            f"| {markdown_text(method)} | {len({r['identity'] for r in found})} | {len(found)} |"
            for method, found in methods.items()
        ),
        fields=", ".join(map(markdown_text, dict.fromkeys(key for record in records for key in record))),
        consent=consent_text(consent),
        prompts=prompt_text(records),
        negative=", ".join(f"*{text}*" if text else "none" for text in listed(records, "negative_prompt")),
        bases=", ".join(listed(records, "base_model")),
        samplers=", ".join(dict.fromkeys(map(sampler_text, records))),
        licence=licence_text(records),
    )


def intro(images, strangers):
    """What the images are; where other files lie among them, that first."""
    if not strangers:
        return GENERATED
    names = ", ".join(map(markdown_text, strangers[:STRANGERS_LISTED]))
    names += ", ..." if len(strangers) > STRANGERS_LISTED else ""
    return NOT_ALL.format(strangers=len(strangers), images=images, names=names)


def shown_first(methods):
    """The method a reader meets first: ID-Booth where it is there, otherwise the last one."""
    return OURS if OURS in methods else list(methods)[-1]


def header(methods, records):
    """The YAML lines that the hub and the datasets library read."""
    count = len(records)
    size = next(
        (
            text
            for limit, text in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"))
            if count < limit
        ),
        "100K<n<1M",
    )
    licence = licence_of(str(records[0].get("base_model")))
    lines = [
        f"license: {licence}",
        "task_categories: [image-classification]",
        "tags: [faces, synthetic, biometrics, id-booth]",
        f"size_categories: [{json.dumps(size)}]",
        "configs:",
    ]
    for method in methods:
        pattern = json.dumps(f"{method}/**", ensure_ascii=False)
        lines += [f"  - config_name: {json.dumps(method, ensure_ascii=False)}", f"    data_files: {pattern}"]
        lines += ["    default: true"] if method == shown_first(methods) else []
    return lines


def consent_text(consent):
    """A table of who consented to what until when; for large sets how many did."""
    given = {name: found for name, found in consent.items() if found and not found.withdrawn}
    if not any(consent.values()):
        return "No consent file was found beside the photos. Do not use or pass on the data without consent."
    lines = [f"{len(given)} of {len(consent)} identities have a consent file"]
    lines[0] += f"; the earliest ends on {min(found.until for found in given.values())}." if given else "."
    kept = len(consent) - sum("publish" in found.purpose for found in given.values())
    if kept:
        lines[0] += f" **Of {kept} no file allows to publish: do not pass on their images.**"
    if len(consent) > IDENTITIES_LISTED:
        purposes = Counter(map(consent_row, consent.values())).most_common(EXAMPLES)
        return "\n".join([*lines, "", *(f"- {count}: {words}" for (words, _), count in purposes)])
    lines += ["", "| identity | what for | until |", "|---|---|---|"]
    rows = ((name, *consent_row(found)) for name, found in consent.items())
    return "\n".join(
        [*lines, *(f"| {markdown_text(name)} | {words} | {until} |" for name, words, until in rows)]
    )


def consent_row(consent):
    """(what for as Markdown, until) of a Consent, or why there is none."""
    if consent is None:
        return "no consent file", ""
    if consent.withdrawn:
        return "**consent withdrawn: delete these images**", ""
    words = ", ".join(consent.purpose) or "nothing"
    text = markdown_text(publishable(consent.text))
    return f"{words}: {text}" if text else words, consent.until


def prompt_text(records):
    """How many different prompts there are, and the first few."""
    prompts = listed(records, "prompt")
    examples = "\n".join(f"- *{text}*" for text in prompts[:EXAMPLES])
    return f"{len(prompts)} different prompts, for instance:\n\n{examples}"


def sampler_text(record):
    """Scheduler, steps and guidance of a record."""
    words = (publishable(str(record.get(key))) for key in ("scheduler", "steps", "guidance"))
    return "{}, {} steps, guidance {}".format(*map(markdown_text, words))


def licence_text(records):
    """What the terms of the parts mean for the images."""
    if all("stable-diffusion" in str(record.get("base_model")) for record in records):
        terms = "The model is under a CreativeML Open RAIL licence; its use restrictions apply."
    else:
        terms = "The terms of the base model named above apply to the images."
    return (
        f"{terms} insightface's detector and recogniser, where they guided the fine-tuning, are for "
        "non-commercial research only."
    )


def listed(records, field):
    """The different values of a field as Markdown text, in the order in which they come."""
    values = dict.fromkeys(str(record.get(field, "")) for record in records)
    return [markdown_text(publishable(value)) for value in values]
