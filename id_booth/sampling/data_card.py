"""The data card of a generated set: README.md in the form of a Hugging Face data set, from what lies there.

The folder then loads with ``datasets.load_dataset(folder, "ID-Booth")``, and each method's folder on its own
with ``load_dataset("imagefolder", data_dir=...)``. The card depends on images and settings alone.
"""

import json
from collections import Counter
from pathlib import Path

from id_booth.consent import identity_at, read_consent
from id_booth.diffusion.base_model import licence_of
from id_booth.sampling.provenance import read_metadata
from utils.errors import UserError
from utils.files import atomic_write_text
from utils.identities import subfolders
from utils.text_tables import markdown_text

CARD_FILE = "README.md"
OURS = "ID-Booth"
IDENTITIES_LISTED = 200
EXAMPLES = 5
CARD = """---
{header}
---
# {name}: generated faces of {people} identities

**Every image in this data set is generated**; none is a photograph and none shows a real event. They were
sampled with [ID-Booth](https://arxiv.org/abs/2504.07392) from a text-to-image model that was fine-tuned on a
few photos of each person. Each PNG says so itself: the IPTC digital source type `trainedAlgorithmicMedia`,
and its prompt, seed and models as text chunks.

```python
from datasets import load_dataset

images = load_dataset("imagefolder", data_dir="{name}/{method}", split="train")
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
    methods = {}
    for path in subfolders(folder):
        if records := list(read_metadata(path).values()):
            methods[path.name] = records
    if methods:
        card = data_card(Path(folder).name, methods, consents(config, methods))
        atomic_write_text(Path(folder) / CARD_FILE, card)


def consents(config, methods):
    """identity -> public part of the consent (None without one), for everybody in the set."""
    names = dict.fromkeys(str(record.get("identity")) for records in methods.values() for record in records)
    found = {}
    for name in names:
        try:
            consent = read_consent(identity_at(config.source_folder, name))
            found[name] = consent.public() if consent and not consent.withdrawn else None
        except UserError:
            found[name] = None
    return found


def data_card(name, methods, consent):
    """The text of the card.

    Args:
        name: of the set. methods: method -> records of metadata.jsonl. consent: from :func:`consents`.
    """
    records = [record for found in methods.values() for record in found]
    bases = listed(records, "base_model")
    return CARD.format(
        header="\n".join(header(methods, records)),
        name=name,
        method=shown_first(methods),
        people=len(consent),
        methods="\n".join(
            f"| {markdown_text(method)} | {len({str(r.get('identity')) for r in found})} | {len(found)} |"
            for method, found in methods.items()
        ),
        fields=", ".join(f"`{field}`" for field in records[0]),
        consent=consent_text(consent),
        prompts=prompt_text(records),
        negative=", ".join(f"*{text}*" if text else "none" for text in listed(records, "negative_prompt")),
        bases=", ".join(f"`{base}`" for base in bases),
        samplers=", ".join(f"{sampler}" for sampler in dict.fromkeys(map(sampler_text, records))),
        licence=licence_text(bases),
    )


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
    given = {name: value for name, value in consent.items() if value}
    if not given:
        return "No consent file was found beside the photos. Do not use or pass on the data without consent."
    lines = [
        f"{len(given)} of {len(consent)} identities have a consent file; the earliest ends on "
        f"{min(value['until'] for value in given.values())}.",
        "",
    ]
    if len(consent) > IDENTITIES_LISTED:
        purposes = Counter(value["text"] for value in given.values()).most_common(20)
        return "\n".join(lines + [f"- {count}: {markdown_text(text)}" for text, count in purposes])
    lines += ["| identity | what for | until |", "|---|---|---|"]
    for name, value in consent.items():
        value = value or {"text": "no consent file", "until": ""}
        lines.append(f"| {markdown_text(name)} | {markdown_text(value['text'])} | {value['until']} |")
    return "\n".join(lines)


def prompt_text(records):
    """How many different prompts there are, and the first few."""
    prompts = listed(records, "prompt")
    examples = "\n".join(f"- *{text}*" for text in prompts[:EXAMPLES])
    return f"{len(prompts)} different prompts, for instance:\n\n{examples}"


def sampler_text(record):
    """Scheduler, steps and guidance of a record."""
    words = (str(record.get(key)) for key in ("scheduler", "steps", "guidance"))
    return "{}, {} steps, guidance {}".format(*map(markdown_text, words))


def licence_text(bases):
    """What the terms of the parts mean for the images."""
    if all("stable-diffusion" in base for base in bases):
        terms = "The model is under a CreativeML Open RAIL licence; its use restrictions apply."
    else:
        terms = "The terms of the base model named above apply to the images."
    return (
        f"{terms} insightface's detector and recogniser, where they guided the fine-tuning, are for "
        "non-commercial research only."
    )


def listed(records, field):
    """The different values of a field as Markdown text, in the order in which they come."""
    return [markdown_text(value) for value in dict.fromkeys(str(record.get(field, "")) for record in records)]
