"""Identity folders: which people there are, and where their photos and embeddings lie."""

import re
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# Sub-folders of a folder of samples that hold overviews and not samples of a person.
NOT_IDENTITIES = {"comparison", "contact_sheets", "contact_sheet"}


@dataclass(frozen=True)
class IdentityFolder:
    """One person's photos and the folder of the embeddings made from them."""

    name: str
    images_dir: Path
    embeds_dir: Path


def natural_key(name):
    """Sort key that puts ID_2 before ID_10."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", str(name))]


def subfolders(folder):
    """The visible sub-folders of ``folder`` in natural order."""
    found = [path for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: natural_key(path.name))


def image_files(folder):
    """The image files of ``folder`` in natural order, by suffix; other files are none of our business."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return sorted(found, key=lambda path: natural_key(path.name))


def find_identities(root, names=()):
    """All identities under ``root``, in natural order, for both nestings in use.

    ``ROOT/ID_1/images/*`` with ``ROOT/ID_1/ArcFace_embeds/*`` (the README's), or ``ROOT/images/ID_1/*`` with
    ``ROOT/ArcFace_embeds/ID_1/*`` (the published data sets'). ``names`` keeps only those; an unknown one is
    a UserError.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the identities' photos")
    if (root / "images").is_dir() and not image_files(root / "images"):
        found = [
            IdentityFolder(path.name, path, root / "ArcFace_embeds" / path.name)
            for path in subfolders(root / "images")
        ]
    else:
        found = [
            IdentityFolder(path.name, path / "images", path / "ArcFace_embeds")
            for path in subfolders(root)
            if (path / "images").is_dir()
        ]
    if not found:
        raise UserError(f"{root}: no identity found; expected ID_1/images/*.png or images/ID_1/*.png in it")
    return select_identities(found, names, root)


def select_identities(found, names, root):
    """The identities called ``names`` (all when empty); UserError for one that is not there."""
    if not names:
        return found
    by_name = {identity.name: identity for identity in found}
    for name in names:
        if name not in by_name:
            have = ", ".join(list(by_name)[:8]) + (", ..." if len(by_name) > 8 else "")
            raise UserError(f"identities: no {name!r} in {root}; there are {have}")
    return [by_name[name] for name in names]
