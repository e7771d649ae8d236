"""Listings of folders as people keep them: in natural order, without what systems leave."""

import contextlib
import re
import unicodedata
from pathlib import Path

from utils.errors import UserError
from utils.outputs import JUNK
from utils.progress import log_once

IMAGE_SUFFIX = re.compile(
    r"\.(png|jpe?g|jpe|jfif|mpo|webp|bmp|dib|tiff?|gif|p[gpbn]m|jp2|j2k|jpx|jpf|avif|hei[cf]|hif)", re.I
)
# Of what lies beside pictures and tells of them.
OTHER_SUFFIX = re.compile(r"\.(txt|jsonl?|[ct]sv|md|xm[lp]|aae|ini|log|lock|pt|npy|yaml|html|pdf)", re.I)
NO_TEXT = re.compile("[\ud800-\udfff]")  # what Python makes of a name's bytes that are not UTF-8


def natural_key(name):
    """Sort key that puts ID_2 before ID_10; digits of other scripts, and superscripts, are letters.

    Names that differ are never equal (1.png and 01.png, a.png and A.png), so that no order is that of a disk.
    """
    parts = re.split("([0-9]+)", str(name))
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)], str(name)


def same_name(name):
    """A name in one spelling: macOS writes letters and their accents apart, others together."""
    return unicodedata.normalize("NFC", str(name))


@contextlib.contextmanager
def readable():
    """Turn what keeps the block from reading, such as permissions, into a UserError that names the place."""
    try:
        yield
    except OSError as why:
        raise UserError(f"{why.filename}: cannot be read ({why.strerror}); change its permissions") from why


def entries(folder, wanted, whole):
    """The ``wanted`` paths in ``folder`` in natural order, but for hidden ones and those that systems leave.

    Left out, and named once, are those that are not ``whole`` or whose names are not UTF-8.
    """
    found = [path for path in Path(folder).iterdir() if path.name[0] != "." and path.name not in JUNK]
    found = sorted(filter(wanted, found), key=lambda path: natural_key(path.name))
    left = {path for path in found if NO_TEXT.search(path.name) or not whole(path)}
    report_left_out(folder, tuple(left), "no regular file or no name in UTF-8")
    return [path for path in found if path not in left]


def report_left_out(folder, paths, why):
    """One line on what is left out of a folder, the first time."""
    if paths:
        names = sorted(ascii(path.name) for path in paths)
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        log_once(f"{folder}: {len(names)} left out, {why}: {shown}")


@readable()
def subfolders(folder):
    """The visible sub-folders of ``folder`` in natural order."""
    return entries(folder, Path.is_dir, lambda path: True)


@readable()
def image_files(folder):
    """The image files of ``folder`` in natural order, by suffix; files of unknown formats are named.

    Regular files and links to such, never a pipe, a device or a folder that is called like one.
    """
    if not Path(folder).is_dir():
        return []
    found = entries(folder, may_be_image, Path.is_file)
    others = {path for path in found if not IMAGE_SUFFIX.fullmatch(path.suffix)}
    report_left_out(folder, tuple(others), "not in a format of photos that is read")
    return [path for path in found if path not in others]


def may_be_image(path):
    """Whether a path is called like an image, or is a file that is called like nothing else."""
    named = IMAGE_SUFFIX.fullmatch(path.suffix)
    return bool(named) or (not OTHER_SUFFIX.fullmatch(path.suffix) and path.is_file())
