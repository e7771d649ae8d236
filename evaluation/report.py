"""The report: one HTML page that opens offline, on a phone and in dark mode; tables also as files.

Whatever comes from outside (names, prompts, paths, messages) is escaped; the page loads nothing.
"""

import base64
import html
import io
import json
from pathlib import Path

from PIL import Image

from evaluation.adherence import read_prompts
from evaluation.image_sets import REAL
from utils.errors import UserError
from utils.files import atomic_write_json, atomic_write_text
from utils.images import load_image
from utils.run_record import project_relative

THUMBNAIL = 112
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


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
    atomic_write_json(folder / "results.json", results)
    atomic_write_text(folder / "report.html", page(comparison, sections, not_measured, record))
    return folder / "report.html"


def page(comparison, sections, not_measured, record):
    """The whole HTML document as text."""
    title = html.escape(comparison.config.title)
    first, *rest = [section.to_html(f"s{number}") for number, section in enumerate(sections)]
    parts = [first, pictures(comparison), *rest]
    parts += [missing_html(comparison, not_measured), settings_html(comparison, sections, record)]
    links = "".join(
        f'<a href="#s{number}">{html.escape(section.title)}</a>' for number, section in enumerate(sections)
    )
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><header><h1>{title}</h1>"
        f"<p>{html.escape(subtitle(comparison))}</p><nav>{links}"
        '<a href="#missing">Not measured</a><a href="#settings">Settings</a></nav></header>'
        f"<main>{''.join(parts)}</main></body></html>\n"
    )


def subtitle(comparison):
    """One sentence: what was compared with what."""
    names = ", ".join(faces.name for faces in comparison.methods)
    images = sum(len(faces.images) for faces in comparison.methods)
    people = len(comparison.real.images.identities)
    return f"{names}: {images:,} samples against {len(comparison.real.images):,} photos of {people} people."


def pictures(comparison):
    """Grids of samples beside the real photos, for the first identities."""
    people = comparison.real.images.identities[: comparison.config.grid_identities]
    prompts = {faces.name: prompts_or_nothing(faces.images.folder) for faces in comparison.methods}
    blocks = []
    for person in people:
        rows = "".join(
            picture_row(faces, person, prompts.get(faces.name, {}), comparison) for faces in comparison.sets
        )
        blocks.append(f"<h3>{html.escape(person)}</h3><div class=scroll><div class=grid>{rows}</div></div>")
    left = len(comparison.real.images.identities) - len(people)
    more = f"<p class=note>{left} more people are measured but not shown.</p>" if left else ""
    return f"<section><h2>Samples beside the photos</h2>{''.join(blocks)}{more}</section>"


def prompts_or_nothing(folder):
    """The prompts of a method folder, or {} where there is no metadata: pictures are shown without."""
    try:
        return read_prompts(folder)
    except UserError:
        return {}


def picture_row(faces, person, prompts, comparison):
    """One method's pictures of a person; those without a usable face have a dashed frame."""
    with_face = set(faces.index.tolist())
    cells = []
    for i, (path, label) in enumerate(zip(faces.images.paths, faces.images.labels, strict=True)):
        if label != person or faces.hashes[i] is None:
            continue
        if len(cells) == comparison.config.grid_images:
            break
        name = path.relative_to(faces.images.folder).as_posix()
        prompt = prompts.get(name, "" if faces.name == REAL else name)
        frame = "" if i in with_face else " class=noface"
        text = prompt + ("" if i in with_face else " (no usable face)")
        text = html.escape(text)
        cells.append(f'<img{frame} src="{thumbnail(path)}" alt="{text}" title="{text}">')
    line = "".join(cells) or "<i>no image</i>"
    return f"<div class=row><span>{html.escape(faces.name)}</span>{line}</div>"


def thumbnail(path):
    """A picture as a small JPEG data URI."""
    picture = Image.fromarray(load_image(path))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def missing_html(comparison, not_measured):
    """What was not measured and why, and which images could not be read."""
    items = [f"<dt>{html.escape(what)}</dt><dd>{html.escape(why)}</dd>" for what, why in not_measured]
    for faces in comparison.sets:
        name = html.escape(faces.name)
        items += [f"<dt>{name}</dt><dd>{html.escape(line)}</dd>" for line in faces.unreadable]
    body = f"<dl>{''.join(items)}</dl>" if items else "<p>Everything that was asked for was measured.</p>"
    return f'<section id="missing"><h2>Not measured</h2>{body}</section>'


def settings_html(comparison, sections, record):
    """Settings, command, code and package versions, licences of what was used."""
    settings = {name: json.dumps(value) for name, value in record["config"].items()}
    versions = record["packages"] | {"python": record["python"], "project": record["code_version"]}
    licence = "that of the pack; insightface's own packs are for non-commercial research"
    licences = {f"{judge}: {name}": licence for judge, name in comparison.judges.items()}
    for section in sections:
        licences |= section.networks
    return (
        '<section id="settings"><h2>Settings</h2>'
        f"<p><code>{html.escape(record['command'])}</code></p>"
        f"<p class=note>{html.escape(record['started'])}</p>"
        f"<details><summary>All settings</summary>{pairs(settings)}</details>"
        f"<details><summary>Versions</summary>{pairs(versions)}</details>"
        f"<details><summary>Networks and licences</summary>{pairs(licences)}</details></section>"
    )


def pairs(mapping):
    """A mapping as a definition list."""
    texts = [(html.escape(str(key)), html.escape(str(value))) for key, value in mapping.items()]
    return f"<dl>{''.join(f'<dt>{key}</dt><dd>{value}</dd>' for key, value in texts)}</dl>"


def without_machine_paths(record):
    """The run record with absolute paths shortened: a report is passed on, this machine's folders are not."""
    config = {
        name: project_relative(value) if isinstance(value, str) and value.startswith("/") else value
        for name, value in record["config"].items()
    }
    words = record["command"].split(" ")
    words = [project_relative(word) if word.startswith("/") else word for word in words]
    return record | {"config": config, "command": " ".join(words)}
