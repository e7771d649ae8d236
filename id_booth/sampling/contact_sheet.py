"""Contact sheets: one picture per identity with its real photos first and every method's samples beside.

Rows of the same block show the same prompts and seeds, one row per method, so that columns compare. Sheets
show photos: they lie outside the sets, which are there to be passed on.
"""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arcface_files.people import identity_at
from id_booth.sampling.provenance import jpeg_marks, read_record, save_jpeg, source_type_of
from utils.errors import UserError
from utils.files import sweep_temporaries
from utils.identities import image_files, natural_key, subfolders
from utils.images import load_image
from utils.run_record import code_version

PHOTOS_SHOWN = 12
MARGIN, LABEL_WIDTH, CAPTION_HEIGHT, TITLE_HEIGHT = 4, 84, 26, 24
INK, PAPER, EMPTY = "black", "white", (225, 225, 225)


def contact_sheet(title, photos, rows, captions, thumb=128, columns=11, photos_title="real photos"):
    """Draw a sheet.

    Args:
        title: text above.
        photos: uint8 RGB arrays (H, W, 3), the real photos for the first column; without any there is none.
        rows: mapping of method name -> list of uint8 RGB arrays or None, one for each prompt.
        captions: one short text for each prompt.
        thumb: side of a picture in pixels.
        columns: samples per row; more prompts make further blocks of rows.
        photos_title: what stands above the first column.

    Returns:
        uint8 RGB array.
    """
    count = len(captions)
    columns = max(1, min(columns, count))
    blocks = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
    cell = thumb + MARGIN
    block_height = CAPTION_HEIGHT + len(rows) * cell
    left = LABEL_WIDTH + (cell if photos else 0)
    width = left + columns * cell + MARGIN
    sheet = Image.new("RGB", (width, TITLE_HEIGHT + len(blocks) * block_height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    draw.text((MARGIN, MARGIN), title, INK, ImageFont.load_default(size=14))
    photo_number = 0
    for number, block in enumerate(blocks):
        top = TITLE_HEIGHT + number * block_height
        if photos:
            draw.text((LABEL_WIDTH, top + CAPTION_HEIGHT - 14), photos_title, INK, font)
        for column, index in enumerate(block):
            lines = textwrap.wrap(captions[index], max(8, thumb // 6))[:2]
            corner = (left + column * cell, top)
            draw.multiline_text(corner, "\n".join(lines), INK, font, spacing=1)
        for line, (method, images) in enumerate(rows.items()):
            y = top + CAPTION_HEIGHT + line * cell
            draw.text((MARGIN, y + thumb // 2), method, INK, font)
            if photos:
                paste(sheet, photos[photo_number % len(photos)], (LABEL_WIDTH, y), thumb)
                photo_number += 1
            for column, index in enumerate(block):
                paste(sheet, images[index], (left + column * cell, y), thumb)
    return np.asarray(sheet)


def paste(sheet, image, corner, thumb):
    """Put a picture, shrunk to fit a square, on the sheet; a grey square stands for a missing one."""
    if image is None:
        sheet.paste(EMPTY, (*corner, corner[0] + thumb, corner[1] + thumb))
        return
    picture = Image.fromarray(image)
    scale = thumb / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(picture, (corner[0] + (thumb - size[0]) // 2, corner[1] + (thumb - size[1]) // 2))


def load_thumbnail(path, thumb):
    """An image file reduced to about thumb pixels; None when it is missing or broken."""
    try:
        image = Image.fromarray(load_image(path))
    except UserError:
        return None
    image.thumbnail((2 * thumb, 2 * thumb))
    return np.asarray(image)


def write_contact_sheets(config, set_folder, sheets_folder, identities):
    """Write SHEETS_FOLDER/{identity}.jpg for each identity that has no sheet newer than its images.

    Args:
        config: InferenceConfig (source_folder, sheet_images, sheet_columns, sheet_thumb, methods).
        set_folder: Path of the data set; every method folder in it gets a row.
        identities: names.
    """
    sweep_temporaries(sheets_folder)
    methods = [folder.name for folder in subfolders(set_folder)]
    methods.sort(key=lambda name: config.methods.index(name) if name in config.methods else len(methods))
    for identity in identities:
        files = {method: image_files(set_folder / method / identity) for method in methods}
        files = {method: found for method, found in files.items() if found}
        path = sheets_folder / f"{identity}.jpg"
        newest = max((file.stat().st_mtime for found in files.values() for file in found), default=None)
        if newest is not None and not (path.is_file() and path.stat().st_mtime >= newest):
            write_sheet(config, path, identity, real_photos(config.source_folder, identity), files)


def write_sheet(config, path, identity, photos, files):
    """Draw and write the sheet of one identity from photos and from {method: its sample files}."""
    names = sorted({file.name for found in files.values() for file in found}, key=natural_key)
    names = names[: config.sheet_images]
    folders = {method: found[0].parent for method, found in files.items()}
    images = {
        m: [load_thumbnail(folder / name, config.sheet_thumb) for name in names]
        for m, folder in folders.items()
    }
    records = {m: [read_record(folder / name) for name in names] for m, folder in folders.items()}
    thumbs = [load_thumbnail(photo, config.sheet_thumb) for photo in photos[:PHOTOS_SHOWN]]
    thumbs = [thumb for thumb in thumbs if thumb is not None]
    texts = [caption([found[place] for found in records.values()]) for place in range(len(names))]
    sheet = contact_sheet(identity, thumbs, images, texts, config.sheet_thumb, config.sheet_columns)
    cells = [(image, record) for m in images for image, record in zip(images[m], records[m], strict=True)]
    shown = [record for image, record in cells if image is not None]
    source_type = source_type_of([None] * len(thumbs) + shown)
    save_jpeg(path, sheet, jpeg_marks(source_type, code_version()))


def real_photos(source_folder, identity):
    """Photo files of an identity; none where they are not on this machine or may not be read."""
    try:
        return image_files(identity_at(source_folder, identity).images_dir)
    except UserError:
        return []


def caption(records):
    """A few words on a prompt, from the first record there is: background and pose, or the prompt itself."""
    record = next(filter(None, records), {})
    if not record.get("pose"):
        return str(record.get("prompt", ""))
    side = "side" if record["pose"] == "side-portrait" else ""
    return ", ".join(str(word) for word in (record.get("background"), side) if word)
