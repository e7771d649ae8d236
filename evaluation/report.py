"""The report: one HTML page that opens offline, on a phone and in dark mode; tables also as files.

Whatever comes from outside (names, prompts, messages) is escaped, and no folder of this machine gets in; the
page loads nothing. Its pictures of generated images carry their mark and record, as the images do.
"""

import base64
import json
from pathlib import Path

from evaluation.adherence import prompts_or_nothing
from evaluation.gallery import PAGE as GALLERY
from evaluation.sections import fill
from evaluation.thumbnails import thumbnail
from utils.files import atomic_write_json, atomic_write_text
from utils.run_record import publishable

THUMBNAIL = 112


def write_report(folder, comparison, sections, not_measured, record):
    """Write report.html, tables/*.csv|.json|.md|.tex and results.json into `folder`; returns the page's path.

    Args:
        sections: list of Section; the first stands before the pictures. not_measured: (what, why) pairs.
        record: run_record.describe_run's dict.
    """
    folder = Path(folder)
    for table in [table for section in sections for table in section.tables]:
        table.write(folder / "tables")
    results = {
        "tables": [table.to_json() for section in sections for table in section.tables],
        "not_measured": [{"what": what, "why": why} for what, why in not_measured],
        "run": record,
    }
    atomic_write_json(folder / "results.json", publishable(results))
    atomic_write_text(folder / "report.html", page(comparison, sections, not_measured, record))
    return folder / "report.html"


def page(comparison, sections, not_measured, record):
    """The whole HTML document as text."""
    people = comparison.real.images.identities
    shown = people[: comparison.config.grid_identities]
    return fill(
        "page",
        title=publishable(comparison.config.title),
        subtitle=subtitle(comparison),
        gallery=GALLERY if comparison.config.gallery else None,
        sections=sections,
        people=pictures(comparison, shown),
        not_shown=len(people) - len(shown),
        missing=publishable(not_measured),
        run=record,
        details=details(comparison, sections, record),
    )


def subtitle(comparison):
    """One sentence: what was compared with what."""
    names = ", ".join(faces.name for faces in comparison.methods)
    images = sum(len(faces.images) for faces in comparison.methods)
    people = len(comparison.real.images.identities)
    return f"{names}: {images:,} samples against {len(comparison.real.images):,} photos of {people} people."


def pictures(comparison, people):
    """{person: {set: pictures}}: samples beside the real photos."""
    prompts = {faces.name: prompts_or_nothing(faces.images.folder) for faces in comparison.methods}
    return {
        person: {
            faces.name: picture_row(faces, person, prompts.get(faces.name), comparison.config.grid_images)
            for faces in comparison.sets
        }
        for person in people
    }


def picture_row(faces, person, prompts, count):
    """The first `count` readable pictures of a person in a set: source, text, and whether there is a face.

    Args:
        prompts: {path in the set's folder: prompt}; None for photos, which have none.
    """
    images, with_face = faces.images, set(faces.index.tolist())
    mine = [i for i, label in enumerate(images.labels) if label == person and faces.hashes[i] is not None]
    row = []
    for i in mine[:count]:
        name = images.paths[i].relative_to(images.folder).as_posix()
        text = "" if prompts is None else prompts.get(name, name)
        text += "" if i in with_face else " (no usable face)"
        row.append({"source": data_uri(images.paths[i]), "text": text, "face": i in with_face})
    return row


def data_uri(path):
    """A picture as a small JPEG data URI, marked as generated where the picture is."""
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(path, THUMBNAIL)).decode("ascii")


def details(comparison, sections, record):
    """{heading: {name: value}}: settings, versions, and licences of what was used."""
    licence = "that of the pack; insightface's own packs are for non-commercial research"
    licences = {f"{name}: {judge.title}": licence for name, judge in comparison.judges.items()}
    for section in sections:
        licences |= section.networks
    return {
        "All settings": {name: json.dumps(value) for name, value in record["config"].items()},
        "Versions": record["packages"] | {"python": record["python"], "project": record["code_version"]},
        "Networks and licences": licences,
    }
