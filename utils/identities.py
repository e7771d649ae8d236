"""Identity folders: which people there are, and where their photos and embeddings lie."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.outputs import JUNK
from utils.progress import log

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# Sub-folders of a folder of samples that hold overviews and not samples of a person.
NOT_IDENTITIES = {"comparison", "contact_sheets", "contact_sheet"}
NO_TEXT = re.compile("[\ud800-\udfff]")  # what Python makes of a name's bytes that are not UTF-8


@dataclass(frozen=True)
class IdentityFolder:
    """One person's photos and the folder of the embeddings made from them."""

    name: str
    images_dir: Path
    embeds_dir: Path


def natural_key(name):
    """Sort key that puts ID_2 before ID_10; digits of other scripts, and superscripts, are letters."""
    parts = re.split("([0-9]+)", str(name))
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)]


def entries(folder, wanted, whole):
    """The ``wanted`` paths in ``folder`` in natural order, but for hidden ones and those that systems leave.

    Left out, and named once, are those that are not ``whole`` or whose names are not UTF-8.
    """
    try:
        found = [path for path in Path(folder).iterdir() if path.name[0] != "." and path.name not in JUNK]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); change its permissions") from error
    found = sorted(filter(wanted, found), key=lambda path: natural_key(path.name))
    left = {path for path in found if NO_TEXT.search(path.name) or not whole(path)}
    if left:
        report_left_out(folder, tuple(sorted(ascii(path.name) for path in left)))
    return [path for path in found if path not in left]


@functools.cache
def report_left_out(folder, names):
    """One line on what is left out of a folder."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    log(f"{folder}: {len(names)} left out, no regular file or no name in UTF-8: {shown}")


def subfolders(folder):
    """The visible sub-folders of ``folder`` in natural order."""
    return entries(folder, Path.is_dir, lambda path: True)


def image_files(folder):
    """The image files of ``folder`` in natural order, by suffix; other files are none of our business.

    Regular files and links to such, never a pipe, a device or a folder that is called like one.
    """
    if not Path(folder).is_dir():
        return []
    return entries(folder, lambda path: path.suffix.lower() in IMAGE_SUFFIXES, Path.is_file)


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
