"""What generated images say of themselves, and metadata.jsonl."""

import json

import numpy as np
import pytest
from PIL import Image

from id_booth.sampling.contact_sheet import contact_sheet
from id_booth.sampling.provenance import (
    FIELDS,
    append_metadata,
    finish_metadata,
    first_difference,
    is_complete_png,
    jpeg_marks,
    make_record,
    png_chunks,
    read_metadata,
    read_record,
    save_jpeg,
    source_type_of,
)
from utils.images import XMP_KEY, read_png_text, save_png

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def record(file_name="ID_1/000.png", **changes):
    values = {name: "" for name in FIELDS if name != "digital_source_type"}
    values |= {
        "file_name": file_name,
        "prompt": 'a "photo" of <sks>\u2028& Müller',
        "seed": 2**62 + 1,
        "steps": 30,
        "guidance": 5.0,
        "width": 8,
        "height": 8,
        "code_version": "abc",
    }
    return make_record(**{**values, **changes})


def write_image(folder, file_name, **changes):
    found = record(file_name, **changes)
    save_png(folder / file_name, np.zeros((8, 8, 3), np.uint8), png_chunks(found))
    return found


def lines(folder):
    with open(folder / "metadata.jsonl", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_image_carries_its_record_and_the_iptc_mark(tmp_path):
    written = write_image(tmp_path, "ID_1/000.png")
    assert read_record(tmp_path / "ID_1/000.png") == written
    chunks = read_png_text(tmp_path / "ID_1/000.png")
    assert chunks["Description"] == written["prompt"]
    assert IPTC in chunks[XMP_KEY] and chunks[XMP_KEY].startswith("<?xpacket begin")
    assert "Iptc4xmpExt:DigitalSourceType=" in chunks[XMP_KEY]
    with Image.open(tmp_path / "ID_1/000.png") as image:
        assert IPTC in str(image.info["xmp"])


def test_record_has_exactly_the_known_fields():
    assert tuple(record()) == FIELDS
    with pytest.raises(ValueError, match="colour"):
        make_record(colour="red")


def test_metadata_is_in_natural_order_one_line_per_image(tmp_path):
    names = ["ID_10/000.png", "ID_2/001.png", "ID_2/000.png"]
    append_metadata(tmp_path, [write_image(tmp_path, name) for name in names])
    assert finish_metadata(tmp_path) == 3
    assert [line["file_name"] for line in lines(tmp_path)] == names[::-1]


def test_metadata_is_made_again_from_the_images(tmp_path):
    append_metadata(tmp_path, [write_image(tmp_path, f"ID_1/00{i}.png", seed=i) for i in range(3)])
    finish_metadata(tmp_path)
    whole = (tmp_path / "metadata.jsonl").read_bytes()
    (tmp_path / "metadata.jsonl").unlink()
    finish_metadata(tmp_path)
    assert (tmp_path / "metadata.jsonl").read_bytes() == whole


def test_half_a_line_is_dropped_and_mended(tmp_path):
    first = write_image(tmp_path, "ID_1/000.png")
    append_metadata(tmp_path, [first])
    with open(tmp_path / "metadata.jsonl", "a") as stream:
        stream.write('{"file_name": "ID_1/001.p')
    append_metadata(tmp_path, [write_image(tmp_path, "ID_1/002.png")])
    assert set(read_metadata(tmp_path)) == {"ID_1/000.png", "ID_1/002.png"}
    write_image(tmp_path, "ID_1/001.png")
    assert finish_metadata(tmp_path) == 3


def test_what_an_image_says_of_itself_counts_and_lines_without_image_go(tmp_path):
    write_image(tmp_path, "ID_1/000.png", seed=5)
    append_metadata(tmp_path, [record(seed=1), record(seed=2), record("ID_1/9.png")])
    finish_metadata(tmp_path)
    assert [(line["file_name"], line["seed"]) for line in lines(tmp_path)] == [("ID_1/000.png", 5)]


def test_a_forged_line_makes_no_sample_of_a_photo(tmp_path):
    """Not one of another prompt, and not one of a file that carries no record, a torn one, or none at all."""
    written = write_image(tmp_path, "ID_1/000.png")
    save_png(tmp_path / "ID_1/001.png", np.zeros((8, 8, 3), np.uint8))
    write_image(tmp_path, "ID_1/002.png")
    torn = (tmp_path / "ID_1/002.png").read_bytes()[:-20]
    (tmp_path / "ID_1/002.png").write_bytes(torn)
    append_metadata(tmp_path, [record(f"ID_1/00{i}.png", prompt="forged", identity="ID_9") for i in range(4)])
    assert finish_metadata(tmp_path) == 1
    assert lines(tmp_path) == [written]


OF_OURS = {"digital_source_type": IPTC, "identity": "ID_1", "method": "M", "prompt": "p"}
FOREIGN = [
    ("id_booth", json.dumps(OF_OURS | {"prompt": "p" * 40_000})),
    ("id_booth", json.dumps(OF_OURS | {"prompt": "\ud83d"})),
    ("id_booth", "not json"),
    ("id_booth", "[]"),
    ("id_booth", '{"identity": "ID_1", "method": "M", "prompt": "p"}'),
    ("id_booth", json.dumps({"digital_source_type": IPTC, "identity": 1, "method": "M", "prompt": "p"})),
    ("id_booth", "[" * 100_000),
    ("parameters", "a portrait, Steps: 20, Sampler: Euler"),
]


@pytest.mark.parametrize("key, text", FOREIGN, ids=range(len(FOREIGN)))
def test_what_is_no_record(tmp_path, key, text):
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), {key: text})
    assert read_record(tmp_path / "a.png") is None


def test_records_of_others_in_our_form_break_nothing(tmp_path):
    """Little of it, and of any kind: still marked, and again a record in what is made of it."""
    found = OF_OURS | {"code_version": "\x00<&" + "v" * 30_000, "seed": [1], "pose": {}}
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), png_chunks(found))
    assert read_record(tmp_path / "a.png") == found
    marks = jpeg_marks(IPTC, found["code_version"], found)
    save_jpeg(tmp_path / "a.jpg", np.zeros((4, 4, 3), np.uint8), marks)
    assert read_record(tmp_path / "a.jpg") == found and b"\x00" not in marks["xmp"]


def test_jpegs_carry_mark_and_record_too(tmp_path):
    found = record(prompt="Müller 李")
    pixels = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    pixels.save(tmp_path / "a.jpg", **jpeg_marks(source_type_of([found]), "abc", found))
    pixels.save(tmp_path / "photo.jpg", **jpeg_marks(source_type_of([None, None]), "abc"))
    assert read_record(tmp_path / "a.jpg") == found and IPTC.encode() in (tmp_path / "a.jpg").read_bytes()
    assert read_record(tmp_path / "photo.jpg") is None
    assert b"AlgorithmicMedia" not in (tmp_path / "photo.jpg").read_bytes()


def test_what_shows_photos_and_samples_is_a_composite():
    assert source_type_of([record(), record()]) == IPTC
    assert source_type_of([None, record()]).endswith("/compositeWithTrainedAlgorithmicMedia")
    assert source_type_of([None]) is source_type_of([]) is None


def test_differences_that_change_the_picture():
    assert first_difference(record(code_version="1", base_model="x"), record(code_version="2")) is None
    assert first_difference(record(steps=30), record(steps=20)) == "steps"
    assert first_difference({}, record()) == "seed"
    new = record(base_fingerprint="weights:1", base_model="x")
    assert first_difference(record(base_fingerprint="weights:2", base_model="x"), new) == "base_fingerprint"
    assert first_difference(record(base_fingerprint="sha256:2", base_model="x"), new) is None
    assert first_difference(record(base_fingerprint="sha256:2", base_model="y"), new) == "base_model"


def test_broken_or_foreign_images_have_no_record(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a png")
    save_png(tmp_path / "b.png", np.zeros((4, 4, 3), np.uint8))
    assert read_record(tmp_path / "a.png") is None
    assert read_record(tmp_path / "b.png") is None
    assert is_complete_png(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-5])
    assert not is_complete_png(tmp_path / "b.png")
    assert not is_complete_png(tmp_path / "missing.png")


def test_contact_sheet_puts_photos_first_and_prompts_in_columns():
    red, green, blue = (
        np.full((10, 10, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))
    )
    rows = {"A": [green, None], "B": [blue, green]}
    sheet = contact_sheet("ID_1", [red], rows, ["beach", "office"], thumb=32, columns=5)
    cell = 36
    left, top = 84, 24 + 26

    def colour(row, column):
        return tuple(sheet[top + row * cell + 16, left + column * cell + 16])

    assert colour(0, 0) == colour(1, 0) == (200, 0, 0)
    assert colour(0, 1) == (0, 200, 0) and colour(0, 2) == (225, 225, 225)
    assert colour(1, 1) == (0, 0, 200) and colour(1, 2) == (0, 200, 0)


def test_contact_sheet_breaks_into_blocks_and_is_marked(tmp_path):
    image = np.zeros((10, 20, 3), np.uint8)
    one = contact_sheet("t", [], {"A": [image] * 3}, [""] * 3, thumb=32, columns=3)
    two = contact_sheet("t", [], {"A": [image] * 3}, [""] * 3, thumb=32, columns=2)
    assert two.shape[0] > one.shape[0] and two.shape[1] < one.shape[1]
    save_jpeg(tmp_path / "s.jpg", two, jpeg_marks(IPTC, "abc"))
    with Image.open(tmp_path / "s.jpg") as sheet:
        assert sheet.size == two.shape[1::-1]
        assert IPTC.encode() in sheet.info["xmp"]
