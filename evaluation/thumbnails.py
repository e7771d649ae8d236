"""Small JPEGs for the report and the gallery, marked as generated where their pictures are."""

import io

from PIL import Image

from id_booth.sampling.provenance import jpeg_marks, read_record, source_type_of
from utils.images import load_image


def thumbnail(path, size):
    """A picture as the bytes of a JPEG of at most `size` x `size` pixels, with its mark and record.

    Of a photo nothing but the pixels remains.
    """
    picture, record = Image.fromarray(load_image(path)), read_record(path)
    picture.thumbnail((size, size), Image.LANCZOS, reducing_gap=2.0)
    marks = jpeg_marks(source_type_of([record]), (record or {}).get("code_version"), record)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82, optimize=True, **marks)
    return stream.getvalue()
