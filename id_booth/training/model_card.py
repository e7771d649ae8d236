"""LoRAs to the Hugging Face hub, each with a model card. Only on request, and only with consent to publish.

A LoRA has a repository of its own, whose name and card no other LoRA can have. All repositories are looked at
before anything is uploaded: nothing goes into one that is public and should not be, or is not this LoRA's.
"""

import json
import re
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

from arcface_files.people import identity_at
from id_booth.consent import check_consent
from id_booth.diffusion.base_files import licence_of
from id_booth.diffusion.lora_files import check_person
from id_booth.diffusion.stacked_lora import LORA_FILE
from id_booth.training.run_folder import RECORD_FILE
from utils.errors import UserError, one_line
from utils.files import atomic_write_json, atomic_write_text, read_json, sha256_bytes
from utils.progress import log
from utils.run_record import publishable
from utils.text_tables import markdown_text

CARD_FILE = "README.md"
EMPTY = {".gitattributes"}  # what a new repository of the hub holds
MODEL_CARD = """---
{header}
---
{mark}
# {objective} LoRA of identity {identity}

A LoRA adapter for {base} that makes pictures of one consenting person, trained with
[ID-Booth](https://arxiv.org/abs/2504.07392)'s objective {objective} on a few photos.

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({base_literal}, torch_dtype=torch.float16).to("cuda")
pipe.load_lora_weights({repo})
image = pipe({prompt}).images[0]
```

## Consent
The person consented to {purpose}. The consent holds until {until}; do not use the model after that day.

## Intended use
Research within the consent above. Not for pictures that deceive, defame or identify without consent.
Pictures made with it show no real event; mark them as generated (IPTC `trainedAlgorithmicMedia`).

## Licences
The adapter inherits the terms of its base model {base}. The recogniser and detector that guided the
training have their own; insightface's are for non-commercial research only.

## Training
```json
{settings}
```
"""


def model_card(record, repo, consent):
    """The README.md of a LoRA's repository.

    Args:
        record: its training_config.json, publishable; repo: "namespace/name"; consent: its Consent.
    """
    base, text = record["base_model"], markdown_text(publishable(consent.text))
    header = [
        f"license: {licence_of(base)}",
        f"base_model: {yaml_text(base)}" if "/" in base and not Path(base).exists() else None,
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [lora, diffusers, stable-diffusion, id-booth, synthetic-faces]",
        f"instance_prompt: {yaml_text(record['instance_prompt'])}",
    ]
    settings = {key: record[key] for key in ("config", "seed", "code_version", "packages") if key in record}
    return MODEL_CARD.format(
        header="\n".join(line for line in header if line),
        mark=card_mark(record["objective"], record["identity"]),
        objective=markdown_text(record["objective"]),
        identity=markdown_text(record["identity"]),
        base=markdown_text(base),
        base_literal=repr(base),
        repo=repr(repo),
        prompt=repr(record["instance_prompt"]),
        purpose=", ".join(consent.purpose) + (f": {text}" if text else ""),
        until=consent.until,
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
    )


def yaml_text(text):
    """A text on one line as a YAML value."""
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def digest(objective, identity):
    """What tells the LoRA of an objective and identity from every other, in whatever letters."""
    return sha256_bytes(json.dumps([objective, identity]).encode())


def card_mark(objective, identity):
    """The line of a card by which its repository is known to be of this LoRA."""
    return f"<!-- ID-Booth LoRA {digest(objective, identity)} -->"


def repository_name(namespace, objective, identity):
    """The repository of a LoRA: what its names have of plain letters, and eight digits of its hash.

    Letters, digits, ".", "-" and "_" only, at most 96 characters.
    """
    plain = unicodedata.normalize("NFKD", f"{objective}-{identity}").encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    name = re.sub(r"([.-])[.-]+", r"\1", name)[:80].strip("-.")
    return f"{namespace}/{name or 'LoRA'}-{digest(objective, identity)[:8]}"


# --------------------------------------------------------------------------------------------- the upload


def push_trained(config, rows):
    """Upload the finished LoRAs of some summary rows; rows for those that could not be uploaded.

    All are checked before the first is uploaded.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    uploads = [Upload(api, config, row) for row in rows if row["status"] in ("done", "done before")]
    names = Counter(upload.repo.lower() for upload in uploads)
    problems = {id(upload): upload.attempt(upload.check, names[upload.repo.lower()]) for upload in uploads}
    for upload in uploads:
        problems[id(upload)] = problems[id(upload)] or upload.attempt(upload.push)
    return [problem for problem in problems.values() if problem]


class Upload:
    """One LoRA on its way to the hub.

    Args:
        api: huggingface_hub.HfApi; config: TrainConfig; row: of the summary, of a finished LoRA.
    """

    def __init__(self, api, config, row):
        self.api, self.config, self.row, self.root = api, config, row, Path(config.output_folder)
        self.unit = row["objective"], row["identity"]
        self.folder = self.root.joinpath(*self.unit, row["detail"])
        self.repo, self.exists = repository_name(config.hub_namespace, *self.unit), False

    def attempt(self, work, *arguments):
        """The row that says why some work failed; None when it did not."""
        try:
            work(*arguments)
        except Exception as error:  # no network, no rights, no consent: the LoRA itself is safe
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            detail = f"not uploaded: {kind}{one_line(error)[:300]}"
            return self.row | {"status": "failed", "detail": detail, "minutes": ""}

    def check(self, namesakes):
        """Refuse what may not be uploaded, or not there; ``namesakes``: LoRAs with this repository's name."""
        from huggingface_hub.errors import RepositoryNotFoundError

        if namesakes > 1:
            raise UserError(f"{self.repo}: would be the repository of two LoRAs; rename an identity")
        self.files()
        try:
            info = self.api.repo_info(self.repo)
        except RepositoryNotFoundError:
            return
        self.exists = True
        if not info.private and not self.config.hub_public:
            raise UserError(
                f"{self.repo}: is public, and hub_public is off; make it private on the hub first"
            )
        names = {file.rfilename for file in info.siblings or ()}
        if names - EMPTY and card_mark(*self.unit) not in self.card_there(names):
            raise UserError(f"{self.repo}: exists and is not of this LoRA; rename the repository on the hub")

    def card_there(self, names):
        """The card in the repository, "" when there is none among its files."""
        if CARD_FILE not in names:
            return ""
        path = self.api.hf_hub_download(self.repo, CARD_FILE)
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def files(self):
        """(weights as bytes, record, card): all that is uploaded; UserError without consent to publish."""
        consent = check_consent(identity_at(self.config.source_folder, self.row["identity"]), "publish")
        for file in (self.folder / LORA_FILE, self.folder / RECORD_FILE):
            self.refuse_links(file)
        check_person(self.folder, self.row["identity"])
        record = publishable(read_json(self.folder / RECORD_FILE))
        if (record["objective"], record["identity"]) != self.unit:
            raise UserError(f"{self.folder / RECORD_FILE}: is of another training; train this one again")
        return (self.folder / LORA_FILE).read_bytes(), record, model_card(record, self.repo, consent)

    def refuse_links(self, file):
        """UserError when a link lies on the way from the output folder to a file."""
        for place in (file, *file.parents):
            if place != self.root and place.is_relative_to(self.root) and place.is_symlink():
                raise UserError(f"{place}: is a link, and nothing is uploaded through links; replace it")

    def push(self):
        """Upload weights, record and card at once; into a new repository unless it is there."""
        weights, record, card = self.files()
        if not self.exists:
            self.api.create_repo(self.repo, private=not self.config.hub_public, exist_ok=False)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / LORA_FILE).write_bytes(weights)
            atomic_write_json(folder / RECORD_FILE, record)
            atomic_write_text(folder / CARD_FILE, card)
            self.api.upload_folder(
                repo_id=self.repo,
                folder_path=folder,
                allow_patterns=[LORA_FILE, RECORD_FILE, CARD_FILE],
                commit_message=self.row["detail"],
            )
        log(f"{self.repo}: uploaded")
