"""Photos of any size, mode, colours and turn in, uint8 RGB out; PNG files with text out, whole or not."""

import contextlib
import functools
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from utils.errors import UserError
from utils.files import atomic_path

MAX_PIXELS, MAX_ASPECT = 200_000_000, 100
# What photos of people come in. Pillow goes by the content, not by the name, and knows formats that are
# programs: for EPS it starts Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
XMP_KEY = "XML:com.adobe.xmp"
ORIENTATION = 0x0112  # the EXIF tag, and what to do for each of its values
TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))
# First bytes, and where, of what is met under the names of photos and is not read, or only while it is whole.
KINDS = (
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypm", "HEIC"),
    (4, b"ftypav", "AVIF"),
    (4, b"ftypcrx", "a camera's raw file"),
    (4, b"ftyp", "a video"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\xff\xd8", "JPEG"),
    (0, b"II*\0", "TIFF, perhaps a camera's raw file"),
    (0, b"MM\0*", "TIFF, perhaps a camera's raw file"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"<", "a page of text, HTML or SVG"),
)


def load_image(path):
    """Read a photo as a uint8 RGB array (H, W, 3).

    The EXIF turn is applied, and a colour profile other than sRGB; damage to either costs it alone. 16-bit
    grey is scaled (65535 -> 255), transparency is laid over white, CMYK, palette and grey are converted; of
    an animation the first frame counts.

    Raises:
        UserError: the file is missing, truncated, no image, or larger than 200 megapixels.
    """
    path = Path(path)
    with open_image(path) as image:
        try:
            image.load()  # before the turn: a PNG may say it after its pixels, and Pillow turns a TIFF itself
            return to_array(to_rgb(in_srgb(turned(image)), path))
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, zlib.error, ...
            raise UserError(f"{path}: damaged image ({error}); replace or remove it") from error


def turned(image):
    """A loaded image as it is to be looked at, by its EXIF; other tags may be wrong in any way."""
    with contextlib.suppress(Exception):
        return image.transpose(TURNS[image.getexif()[ORIENTATION]])
    return image


def in_srgb(image):
    """A loaded image with its colour profile applied, as phones and cameras with wide gamuts embed one."""
    with contextlib.suppress(Exception):  # a profile that is damaged, or of another mode than the image
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if "srgb" not in str(profile.profile.profile_description).lower():
            image = image if image.mode in ("CMYK", "L", "LAB") else to_rgb(image)
            same = image.mode == "RGB"  # then no second copy of a large photo
            converted = ImageCms.profileToProfile(
                image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB", inPlace=same
            )
            return image if same else converted
    return image


def to_array(image, rows=256):
    """A Pillow RGB image as a writable array; in strips, as numpy's own way holds three copies at once."""
    array = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        array[top : top + rows] = image.crop((0, top, image.width, min(top + rows, image.height)))
    return array


def open_picture(source):
    """A file or a stream in one of FORMATS as a lazily decoded Pillow image; raises what Pillow raises."""
    return Image.open(source, formats=known_formats())


@functools.cache
def known_formats():
    """Those of FORMATS that this Pillow can read, set up once."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    # Limits of our own replace Pillow's, which lies at 179 megapixels and warns from 89 on.
    Image.MAX_IMAGE_PIXELS = None
    Image.init()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of tags; what costs a picture is raised
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(path):
    """The file as a lazily decoded Pillow image; UserError as in :func:`load_image`."""
    path = Path(path)
    if not os.path.isfile(path):  # which also takes what cannot be a path
        raise UserError(f"{path}: no such image file")
    try:
        image = open_picture(path)
    except Exception as error:  # as above: header parsers raise many kinds
        what = f"not an image of a known format{kind_of(path)}"
        raise UserError(f"{path}: {what}; replace or remove it") from error
    large = image.width * image.height > MAX_PIXELS
    if not large and max(image.size) <= MAX_ASPECT * min(image.size):  # scaled, a strip is huge
        return image
    image.close()
    limit = f"more than {MAX_PIXELS // 10**6} megapixels; scale it down"
    trouble = limit if large else "no shape of a photo; replace or remove it"
    raise UserError(f"{path}: {image.width} x {image.height} pixels, {trouble}")


def kind_of(path):
    """What a file is by its first bytes, for a message; "" if nothing known. UserError: it cannot be read."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
    found = (kind for place, mark, kind in KINDS if head[place:].startswith(mark))
    kind = next(found, "" if head else "an empty file")
    return f" or damaged; its content is {kind}" if kind else ""


def image_size(path):
    """(height, width) in pixels from the file's header, before the EXIF turn; nothing is decoded."""
    with open_image(path) as image:
        return image.size[1], image.size[0]


def to_rgb(image, path="image"):
    """A Pillow image of any mode as an RGB Pillow image; `path` names it in errors."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return wide_grey_to_rgb(image, path)
    if image.mode == "F":
        raise UserError(f"{path}: floating point pixels of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def wide_grey_to_rgb(image, path):
    """A 16-bit grey image (modes I;16, I;16B, or I holding 16-bit values) scaled to 8 bits, as RGB.

    Values that all lie below 4096 are those of a 12-bit camera: as 16-bit values they would be black.
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: pixel values outside 0..65535; save it with 8 or 16 bits per channel")
    most = 4095 if 255 < values.max() < 4096 else 65535
    grey = ((values * 255 + most // 2) // most).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def save_png(path, array, text=None):
    """Write a uint8 array (H, W, 3) RGB or (H, W) grey as PNG, whole or not at all.

    Args:
        text: mapping of PNG text chunks; XMP (key "XML:com.adobe.xmp") and text beyond Latin-1 become iTXt.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        add = info.add_itxt if key == XMP_KEY or not value.isascii() else info.add_text
        add(key, value)
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG", pnginfo=info)


def read_png_text(path):
    """The text chunks of a PNG file as a plain dict of strings."""
    with open_image(path) as image:
        try:
            image.load()
        except Exception as error:  # as in load_image
            raise UserError(f"{path}: damaged image ({error}); replace or remove it") from error
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}
