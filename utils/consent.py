"""Consent of the people in the photos: an optional consent.json for each identity.

ID_1/consent.json, or consent/ID_1.json beside images/ in the other nesting:

    {"who": "form 2024-017", "purpose": "research on face recognition", "until": "2030-12-31"}

``who`` points to who gave it (a form number or pseudonym will do; it is never published), ``purpose`` says
what for, ``until`` is the last day on which it holds (ISO 8601).
"""

import datetime
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json
from utils.identities import IdentityFolder

FIELDS = ("who", "purpose", "until")


def consent_file(identity):
    """Where the consent of an IdentityFolder lies in either nesting."""
    images = Path(identity.images_dir)
    if images.name == "images":
        return images.parent / "consent.json"
    return images.parent.parent / "consent" / f"{identity.name}.json"


def read_consent(identity):
    """The consent of an IdentityFolder as a dict of strings, None when there is none.

    Raises:
        UserError: the file is damaged, lacks a field, or its date is none.
    """
    path = consent_file(identity)
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: not a consent; write {{"who": ..., "purpose": ..., "until": "2030-12-31"}}')
    for field in FIELDS:
        if not isinstance(content.get(field), str) or not content[field].strip():
            raise UserError(f"{path}: {field} is missing or empty; state who consented, what for, until when")
    consent = {field: " ".join(content[field].split()) for field in FIELDS}
    last_day(consent, path)
    return consent


def last_day(consent, path="consent"):
    """The last day of a consent as a date."""
    try:
        return datetime.date.fromisoformat(consent["until"])
    except ValueError:
        raise UserError(
            f"{path}: until is {consent['until']!r}, not a date such as 2030-12-31; mend it"
        ) from None


def check_consent(identity, today=None):
    """The valid consent of an IdentityFolder; UserError without one or past its last day."""
    consent, path = read_consent(identity), consent_file(identity)
    if consent is None:
        raise UserError(f"{path}: not found, and consent is required; add it or leave {identity.name} out")
    if last_day(consent) < (today or datetime.date.today()):
        raise UserError(f"{path}: consent ended on {consent['until']}; renew it or leave {identity.name} out")
    return consent


def public_part(consent):
    """What records and cards may say of a consent: purpose and date, not who gave it."""
    return None if consent is None else {"purpose": consent["purpose"], "until": consent["until"]}


def known_consent(identity, required, today=None):
    """The public part of a consent, for records; a damaged or expired one counts only where required.

    Raises:
        UserError: as :func:`check_consent`, when ``required``.
    """
    if required:
        return public_part(check_consent(identity, today))
    try:
        return public_part(read_consent(identity))
    except UserError:
        return None


def identity_at(root, name):
    """The IdentityFolder of a name in either nesting; its photos need not be there."""
    root = Path(root)
    if (root / "images" / name).is_dir():
        return IdentityFolder(name, root / "images" / name, root / "ArcFace_embeds" / name)
    return IdentityFolder(name, root / name / "images", root / name / "ArcFace_embeds")
