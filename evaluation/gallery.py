"""The gallery: a page beside the report to look through samples, sort them and mark them for curation.

gallery.html opens from its folder without a server and loads nothing from elsewhere: gallery/data.js holds
the measurements, gallery/*.jpg the pictures, samples and real photos. So, as the report, it stays where the
photos may be seen. Marks that a person sets are exported as a file, which evaluation/curate.py takes.
"""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from evaluation.image_sets import REAL
from evaluation.measurements import SEEN
from evaluation.sections import TEMPLATES
from evaluation.thumbnails import thumbnail
from id_booth.prompts import PROMPTED
from id_booth.sampling.provenance import read_metadata
from utils.errors import UserError
from utils.files import atomic_write_bytes, atomic_write_text
from utils.outputs import guard
from utils.progress import progress
from utils.run_record import publishable

PAGE, FOLDER = "gallery.html", "gallery"
THUMBNAIL = re.compile(r"[0-9a-f]{24}-\d+\.jpg")
# What is worst of a measurement: the lowest, the highest, or what is far from 0.
OF_JUDGE = {
    "similarity": ("similarity to own photos, {}", "low"),
    "margin": ("margin to others, {}", "low"),
    "other_similarity": ("similarity to the nearest other person, {}", "high"),
}
MEASURES = {
    "quality": ("face quality", "low"),
    "detection_score": ("detector score", "low"),
    "photo_likeness": ("likeness to a photo (copy)", "high"),
    "sample_likeness": ("likeness to a sample (duplicate)", "high"),
    "yaw": ("yaw, degrees", "far"),
    "pitch": ("pitch, degrees", "far"),
    "roll": ("roll, degrees", "far"),
}
PROVENANCE = ("seed", "steps", "guidance", "scheduler", "base_model", "lora_sha256", "code_version")
FACTS = {
    "file": "file",
    "sha256": "SHA-256",
    "nearest_photo": "nearest photo",
    "nearest_sample": "nearest sample",
}


def write_gallery(folder, comparison, measurements):
    """Write FOLDER/gallery.html and FOLDER/gallery/; pictures of before that are not shown any more go.

    Args:
        comparison: for the files and their records. measurements: of its samples and photos.
    """
    folder = Path(folder)
    thumbs = write_thumbnails(folder / FOLDER, comparison, measurements)
    text = json.dumps(gallery_data(comparison, measurements, thumbs))
    atomic_write_text(folder / FOLDER / "data.js", f'"use strict";\nconst GALLERY = {text};\n')
    script = Path(__file__).with_name("gallery.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = publishable(comparison.config.title)
    page = TEMPLATES.get_template("gallery.html.jinja").render(title=title, script=script, digest=digest)
    atomic_write_text(folder / PAGE, page)


def write_thumbnails(folder, comparison, measurements):
    """Write the pictures that are not there yet, by content; returns names (N,), None where unreadable."""
    paths = [path for faces in comparison.sets for path in faces.images.paths]
    size = comparison.config.gallery_pixels
    names = [hashed and f"{hashed[:24]}-{size}.jpg" for hashed in measurements["sha256"]]
    wanted = {name: path for name, path in zip(names, paths, strict=True) if name}
    here = {path.name for path in folder.glob("*.jpg")}
    for name in progress([name for name in wanted if name not in here], "pictures of the gallery"):
        try:
            atomic_write_bytes(folder / name, thumbnail(wanted[name], size))
        except UserError:
            names = [None if one == name else one for one in names]  # it changed since it was measured
    for name in here - set(wanted):
        if THUMBNAIL.fullmatch(name):
            guard(folder / name)
            (folder / name).unlink()
    return names


def gallery_data(comparison, measurements, thumbs):
    """What gallery.js shows, ready for JSON: samples by columns, photos by person, what to sort by."""
    samples = np.flatnonzero(~measurements.of_method(REAL))
    shown = ["method", "identity", "prompt", *PROMPTED]
    texts = [*shown, *FACTS]
    texts += [f"{judge}_other_person" for judge in measurements.judges]
    texts += [name for name in measurements.columns if name.startswith(SEEN)]
    columns = {name: measurements[name][samples].tolist() for name in texts} | records_of(comparison)
    columns["thumb"] = [thumbs[i] for i in samples]
    measures = [
        {"name": f"{judge}_{name}", "title": title.format(judge), "worst": worst}
        for judge in measurements.judges
        for name, (title, worst) in OF_JUDGE.items()
    ]
    measures += [{"name": name, "title": title, "worst": worst} for name, (title, worst) in MEASURES.items()]
    photos = {}
    for i in np.flatnonzero(measurements.of_method(REAL)):
        photo = {"thumb": thumbs[i], "file": measurements["file"][i]}
        photos.setdefault(measurements["identity"][i], []).append(photo)
    return {
        "title": publishable(comparison.config.title),
        "count": len(samples),
        "columns": {name: indexed(values) for name, values in columns.items()}
        | {one["name"]: {"number": rounded(measurements[one["name"]][samples])} for one in measures},
        "measures": measures,
        "asked": [name for name in PROMPTED if SEEN + name in measurements.columns],
        "facts": [[name, fact_title(name)] for name in columns if name not in shown and name != "thumb"],
        "photos": photos,
    }


def records_of(comparison):
    """{field of PROVENANCE: its text per sample, None where its metadata do not say}."""
    columns = {name: [] for name in PROVENANCE}
    for faces in comparison.methods:
        records = read_metadata(faces.images.folder)
        for path in faces.images.paths:
            record = records.get(path.relative_to(faces.images.folder).as_posix(), {})
            for name, values in columns.items():
                values.append(None if record.get(name) is None else str(record[name]))
    return columns


def fact_title(name):
    """How the large view calls a column of text."""
    judge = name.removesuffix("_other_person")
    if judge != name:
        return f"nearest other person, {judge}"
    return FACTS.get(name) or name.replace(SEEN, "seen: ").replace("_", " ")


def indexed(values):
    """A column of text as {"text": the different ones, "index": which, -1 for None}."""
    places = {
        text: place for place, text in enumerate(dict.fromkeys(one for one in values if one is not None))
    }
    return {"text": publishable(list(places)), "index": [places.get(one, -1) for one in values]}


def rounded(values):
    """Numbers to four digits, None where unknown."""
    return [None if np.isnan(value) else round(value, 4) for value in values.tolist()]
