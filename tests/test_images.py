import os
import re
import struct

import numpy as np
import pytest
from PIL import Image

from tests.conftest import PROJECT_ROOT
from utils.errors import UserError
from utils.files import read_text
from utils.images import FORMATS, image_size, load_image, read_png_text, save_png


def gradient(height=12, width=20):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 10, y * 15, (x + y) * 5], -1).astype(np.uint8)


def check_unreadable(path, words):
    with pytest.raises(UserError, match=words) as caught:
        load_image(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_what_may_not_be_read_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    check_unreadable(tmp_path / "a.png", "cannot be read .Permission denied.; change its permissions$")
    with pytest.raises(UserError, match=r"a\.png: cannot be read .Permission denied.; change"):
        read_text(tmp_path / "a.png")


def test_png_round_trip_with_text(tmp_path):
    image = gradient()
    text = {"prompt": "photo of sks person", "Author": "Tomašević", "XML:com.adobe.xmp": "<x:xmpmeta/>"}
    save_png(tmp_path / "deep" / "a.png", image, text)
    np.testing.assert_array_equal(load_image(tmp_path / "deep" / "a.png"), image)
    assert read_png_text(tmp_path / "deep" / "a.png") == text
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_failed_save_leaves_the_old_file(tmp_path):
    save_png(tmp_path / "a.png", gradient())
    with pytest.raises((TypeError, ValueError)):
        save_png(tmp_path / "a.png", np.zeros((3, 3, 7), np.uint8))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), gradient())
    assert len(list(tmp_path.iterdir())) == 1


def test_grey_palette_and_bilevel(tmp_path):
    image = Image.fromarray(gradient())
    for mode in ("L", "P", "1"):
        image.convert(mode).save(tmp_path / "a.png")
        np.testing.assert_array_equal(
            load_image(tmp_path / "a.png"), np.asarray(image.convert(mode).convert("RGB"))
        )


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_wide_integers_and_floats_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    check_unreadable(tmp_path / "a.tif", "outside 0..65535")
    Image.fromarray(np.array([[0.0, 0.5]], np.float32)).save(tmp_path / "b.tif")
    check_unreadable(tmp_path / "b.tif", "floating point")


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8)).convert("CMYK").save(
        tmp_path / "a.jpg", quality=95
    )
    read = load_image(tmp_path / "a.jpg")
    assert read.shape == (16, 16, 3) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - (200, 100, 50)).max() < 12


def test_transparency_lies_over_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 204]]
    Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8)).save(tmp_path / "b.png")
    assert load_image(tmp_path / "b.png")[0].tolist() == [[9] * 3, [255] * 3]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "c.png", transparency=1)
    assert load_image(tmp_path / "c.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_exif_turn_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn clockwise to view
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(gradient(), -1))
    assert image_size(tmp_path / "a.png") == (12, 20)


def test_truncated_files(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp", "a.tif"):
        path = tmp_path / name
        image.save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        check_unreadable(path, "damaged image|not an image")


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "a.png").write_text("these are not the pixels you are looking for")
    (tmp_path / "b.png").write_bytes(b"")
    check_unreadable(tmp_path / "a.png", "not an image")
    check_unreadable(tmp_path / "b.png", "not an image")
    check_unreadable(tmp_path / "missing.png", "no such image file")
    (tmp_path / "folder.png").mkdir()
    check_unreadable(tmp_path / "folder.png", "no such image file")


def test_bombs_are_refused_before_decoding(tmp_path):
    Image.new("1", (20_000, 10_001)).save(tmp_path / "a.png")
    check_unreadable(tmp_path / "a.png", "20000 x 10001 pixels, more than 200 megapixels")


def test_large_photo_is_read(tmp_path):
    Image.new("L", (12_000, 9_000), 77).save(tmp_path / "a.jpg", quality=50)
    image = load_image(tmp_path / "a.jpg")
    assert image.shape == (9_000, 12_000, 3) and abs(int(image[4_500, 6_000, 0]) - 77) <= 2


PROGRAMS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n%%EOF\n",
    "EPS with a binary head": struct.pack("<4sII20x", b"\xc5\xd0\xd3\xc6", 32, 99)
    + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n".ljust(99),
    "PostScript": b"%!PS\n{} loop\n",
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH4x", 0, 0, 64, 64, 72) + b"\1\0\t\0" + bytes(99),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>1</script></svg>",
    "video": b"\0\0\1\xb3" + bytes(64),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "eps"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_photos_that_are_programs_start_nothing(tmp_path, monkeypatch, name, suffix):
    """Ghostscript and its like are first in the search path here, and would leave a file."""
    for program in ("gs", "convert", "magick", "ffmpeg"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / f"a.{suffix}").write_bytes(PROGRAMS[name])
    check_unreadable(tmp_path / f"a.{suffix}", "not an image")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["PCX", "TGA", "ICO", "DDS", "SGI", "PDF", "EPS"])
def test_formats_nobody_keeps_photos_in_are_refused(tmp_path, kind):
    Image.fromarray(gradient()).save(tmp_path / "a.png", format=kind)
    check_unreadable(tmp_path / "a.png", "not an image")


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_formats_of_photos_are_read_whatever_the_name_says(tmp_path, kind):
    Image.fromarray(gradient()).save(tmp_path / "a.png", format=kind)
    assert np.abs(load_image(tmp_path / "a.png").astype(int) - gradient()).mean() < 12


def test_only_the_listed_formats_are_ever_opened():
    """One call in the whole project opens pictures, and it names the formats."""
    files = [p for p in PROJECT_ROOT.rglob("*.py") if not {".venv", "tests"} & {*p.parts}]
    assert len(files) > 150
    call = re.compile(r"\bImage\.open\(|imread\(|imageio|read_image\(")
    opening = [path.name for path in files if call.search(path.read_text())]
    assert opening == ["images.py"]
    assert not {"EPS", "WMF", "PDF", "GBR", "MPEG", "FITS", "HDF5"} & {*FORMATS}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)])
def test_what_is_no_regular_file_is_not_opened(tmp_path, make):
    make(tmp_path / "a.png")
    check_unreadable(tmp_path / "a.png", "no such image file")


def test_heif_is_read_once_a_package_has_registered_it(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"heif")
    check_unreadable(tmp_path / "a.jpg", "not an image")

    def factory(stream, name):
        return Image.fromarray(gradient())

    monkeypatch.setitem(Image.OPEN, "HEIF", (factory, lambda start: start.startswith(b"heif")))
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg"), gradient())


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data.replace(b"IDAT", b"IDAT\1")])
def test_text_of_a_damaged_picture_is_refused(tmp_path, damage):
    save_png(tmp_path / "a.png", gradient(), {"id_booth": "{}"})
    (tmp_path / "a.png").write_bytes(damage((tmp_path / "a.png").read_bytes()))
    with pytest.raises(UserError, match="damaged image|not an image"):
        read_png_text(tmp_path / "a.png")
