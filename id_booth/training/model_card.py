"""LoRAs to the Hugging Face hub, each with a model card. Only on request, and only with consent."""

import json
import re
from pathlib import Path

from id_booth.consent import check_consent
from id_booth.diffusion.base_model import licence_of
from id_booth.diffusion.stacked_lora import LORA_FILE
from id_booth.training.run_folder import RECORD_FILE
from utils.errors import UserError, one_line
from utils.files import read_json
from utils.identities import find_identities
from utils.progress import log
from utils.text_tables import markdown_text

MODEL_CARD = """---
{header}
---
# {objective} LoRA of identity {identity}

A LoRA adapter for `{base}` that makes pictures of one consenting person, trained with
[ID-Booth](https://arxiv.org/abs/2504.07392)'s objective {objective} on a few photos.

```python
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.float16).to("cuda")
pipe.load_lora_weights("{repo}")
image = pipe("{prompt}").images[0]
```

## Consent
The person consented to: {purpose}. The consent holds until {until}; do not use the model after that day.

## Intended use
Research within the consent above. Not for pictures that deceive, defame or identify without consent.
Pictures made with it show no real event; mark them as generated (IPTC `trainedAlgorithmicMedia`).

## Licences
The adapter inherits the terms of its base model `{base}`. The recogniser and detector that guided the
training have their own; insightface's are for non-commercial research only.

## Training
```json
{settings}
```
"""


def model_card(record, repo, consent):
    """The README.md of a LoRA's repository.

    Args:
        record: its training_config.json; repo: "namespace/name"; consent: its public part.
    """
    base = record["base_model"]
    header = [
        f"license: {licence_of(base)}",
        f"base_model: {json.dumps(base)}" if "/" in base and not Path(base).exists() else None,
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [lora, diffusers, stable-diffusion, id-booth, synthetic-faces]",
        f"instance_prompt: {json.dumps(record['instance_prompt'])}",
    ]
    settings = {key: record[key] for key in ("config", "seed", "code_version", "packages") if key in record}
    return MODEL_CARD.format(
        header="\n".join(line for line in header if line),
        objective=record["objective"],
        identity=markdown_text(record["identity"]),
        base=base,
        repo=repo,
        prompt=record["instance_prompt"],
        purpose=markdown_text(consent["text"] or ", ".join(consent["purpose"])),
        until=consent["until"],
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
    )


def repository_name(namespace, objective, identity):
    """The repository of a LoRA: letters, digits, ".", "-" and "_" only, at most 96 characters."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{objective}-{identity}")
    name = re.sub(r"([.-])[.-]+", r"\1", name)[:96].strip("-.")
    return f"{namespace}/{name}"


def push_trained(config, rows):
    """Upload the finished LoRAs of some summary rows; rows for those that could not be uploaded."""
    from huggingface_hub import HfApi

    api, problems = HfApi(), []
    identities = {identity.name: identity for identity in find_identities(config.source_folder)}
    for row in rows:
        if row["status"] not in ("done", "done before"):
            continue
        folder = Path(config.output_folder) / row["objective"] / row["identity"]
        repo = repository_name(config.hub_namespace, row["objective"], row["identity"])
        try:
            consent = check_consent(identities[row["identity"]], "publish").public()
            push(api, folder, row["detail"], repo, consent, not config.hub_public)
            log(f"{repo}: uploaded")
        except Exception as error:  # no network, no rights, no consent: the LoRA itself is safe
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            detail = f"not uploaded: {kind}{one_line(error)[:200]}"
            problems.append(row | {"status": "failed", "detail": detail, "minutes": ""})
    return problems


def push(api, folder, checkpoint, repo, consent, private):
    """Upload one checkpoint: the weights, its record and the card; nothing else of the folder."""
    record = read_json(folder / checkpoint / RECORD_FILE)
    api.create_repo(repo, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo,
        folder_path=folder / checkpoint,
        allow_patterns=[LORA_FILE, RECORD_FILE],
        commit_message=checkpoint,
    )
    card = model_card(record, repo, consent).encode("utf-8")
    api.upload_file(repo_id=repo, path_or_fileobj=card, path_in_repo="README.md")
