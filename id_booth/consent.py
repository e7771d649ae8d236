"""Consent of the people in the photos: an optional consent.json for each identity.

ID_1/consent.json, or consent/ID_1.json beside images/ in the other nesting:

    {"who": "form 2024-017", "purpose": ["train", "generate", "publish"],
     "text": "research on face recognition at our institute", "until": "2030-12-31"}

who        points to who gave it (a form number or pseudonym will do). It is never published, nor in any hash.
purpose    what it allows: "train" (embeddings and LoRAs), "generate" (samples), "publish" (uploading a LoRA).
           A text in place of the list is read as train and generate, which is what require_consent has always
           asked for; it never allows to publish.
text       optional: what was consented to, in words. Cards show it.
until      the last day on which it holds, YYYY-MM-DD, to the end of that day in UTC.
withdrawn  optional: the date, YYYY-MM-DD, or true. Then nothing more is trained, sampled or uploaded, with or
           without require_consent; whatever else stands in the file, and whatever the date.

The file belongs to one person: a link to another's is refused.
"""

import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path

from arcface_files.people import named
from utils.errors import UserError
from utils.files import read_json, sha256_bytes
from utils.identities import readable
from utils.progress import log_once

PURPOSES = ("train", "generate", "publish")
OF_A_TEXT = PURPOSES[:2]
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
FORM = '{"who": "form 17", "purpose": ["train", "generate"], "until": "2030-12-31"}'


@dataclass(frozen=True)
class Consent:
    """What a consent.json says, without who gave it.

    ``digest`` tells one consent from another: SHA-256 of the identity's name and what may be published.
    """

    purpose: tuple = ()
    text: str = ""
    until: str = ""
    withdrawn: bool = False
    digest: str = ""

    def public(self):
        """The part that records may hold, as JSON knows it."""
        return {
            "purpose": list(self.purpose),
            "text": self.text,
            "until": self.until,
            "sha256": self.digest,
        }


def consent_file(identity):
    """Where the consent of an IdentityFolder lies in either nesting."""
    images = Path(identity.images_dir)
    if images.name == "images":
        return images.parent / "consent.json"
    return named(images.parent.parent / "consent", f"{identity.name}.json")


@readable()
def read_consent(identity):
    """The Consent of an IdentityFolder, valid or not; None when there is none.

    Raises:
        UserError: the file is damaged, a link, lacks a field, or has one of the wrong form.
    """
    path = consent_file(identity)
    if path.is_symlink():
        raise UserError(f"{path}: is a link; a consent belongs to one person, so put that person's own there")
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a consent; write {FORM}")
    if content.get("withdrawn") is not None and content["withdrawn"] is not False:
        return Consent(withdrawn=True)
    words(content, "who", path)
    purpose, text = read_purpose(content, path)
    until = read_day(content, path)
    digest = sha256_bytes(json.dumps([identity.name, purpose, text, until], ensure_ascii=False).encode())
    return Consent(tuple(purpose), text, until, digest=digest)


def words(content, field, path):
    """A text field on one line; UserError when it is missing or empty."""
    value = content.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: {field} is missing or empty; write {FORM}")
    return " ".join(value.split())


def read_purpose(content, path):
    """(what is allowed, the words about it) of a consent.json."""
    purpose = content.get("purpose")
    if isinstance(purpose, str):
        text = words(content, "purpose", path)
        log_once(f"{path}: purpose is a text, read as {' and '.join(OF_A_TEXT)}; a list says it exactly")
        return list(OF_A_TEXT), text
    if not isinstance(purpose, list) or any(name not in PURPOSES for name in purpose):
        raise UserError(f"{path}: purpose is {purpose!r:.80}, it must be a list out of {', '.join(PURPOSES)}")
    text = words(content, "text", path) if content.get("text") is not None else ""
    return [name for name in PURPOSES if name in purpose], text


def read_day(content, path):
    """The last day, YYYY-MM-DD; UserError for any other form, other ISO 8601 ones included."""
    until = content.get("until")
    try:
        if not isinstance(until, str) or not DATE.fullmatch(until):
            raise ValueError
        datetime.date.fromisoformat(until)
    except ValueError:
        raise UserError(f"{path}: until is {until!r:.40}, not a date such as 2030-12-31; mend it") from None
    return until


def problem(consent, identity, purpose, today=None):
    """Why a Consent (None for none) does not allow a purpose now, and what to do; "" when it does."""
    path, name = consent_file(identity), identity.name
    today = today or datetime.datetime.now(datetime.UTC).date()
    if consent is None:
        return f"{path}: not found, and consent is required; add it or leave {name} out"
    if consent.withdrawn:
        return f"{path}: consent was withdrawn; leave {name} out, and delete what was made of {name}"
    if datetime.date.fromisoformat(consent.until) < today:
        return f"{path}: consent ended on {consent.until}; renew it or leave {name} out"
    if purpose not in consent.purpose:
        allowed = " and ".join(consent.purpose) or "nothing"
        return f"{path}: purpose allows {allowed}, not {purpose}; ask {name} for it or leave {name} out"
    return ""


def check_consent(identity, purpose, today=None):
    """The Consent of an IdentityFolder; UserError unless it is there, holds and allows the purpose."""
    consent = read_consent(identity)
    if reason := problem(consent, identity, purpose, today):
        raise UserError(reason)
    return consent


def known_consent(identity, required, purpose, today=None):
    """The Consent of an IdentityFolder, None without a usable one; what is wrong with it is said once.

    Raises:
        UserError: as :func:`check_consent` when ``required``, and always for a consent that was withdrawn.
    """
    if required:
        return check_consent(identity, purpose, today)
    try:
        consent = read_consent(identity)
    except UserError as error:
        log_once(f"{error} (require_consent is off: going on without it)")
        return None
    reason = problem(consent, identity, purpose, today) if consent else ""
    if reason and consent.withdrawn:
        raise UserError(reason)
    if reason:
        log_once(f"{reason} (require_consent is off: going on all the same)")
    return consent
