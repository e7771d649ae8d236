"""Crop sets of others: manifests stay in their folder, arrays are what they say, nothing large is made."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from fr_training import benchmark_bin
from fr_training.benchmarks import read_pair_list
from fr_training.crops import load_crops, write_crop_arrays
from tests.bad_data import png_header
from tests.memory import MEBIBYTE, peak_growth
from utils import outputs
from utils.errors import UserError
from utils.images import save_png

CROP = np.full((112, 112, 3), 7, np.uint8)


@pytest.fixture
def root(tmp_path):
    """A folder of crops with a manifest beside, and crops outside of it."""
    for name in ("set/a/0.png", "set/a/1.png", "set/b/0.png", "outside/0.png"):
        save_png(tmp_path / name, CROP)
    (tmp_path / "set/inside").symlink_to("a")
    (tmp_path / "set/leads_out").symlink_to("../outside")
    (tmp_path / "set/out.png").symlink_to(tmp_path / "outside/0.png")
    (tmp_path / "set/in.png").symlink_to("a/0.png")
    (tmp_path / "set/gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "set/pipe.png")
    return tmp_path / "set"


def manifest(root, content, name="m.json"):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / name).write_text(text)
    return root / name


def listing(*files):
    return {"kind": "fr-manifest", "identities": {"x": [{"file": file} for file in files]}}


def refused(path, message, call=load_crops):
    with pytest.raises(UserError, match=message) as caught:
        call(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["a/0.png", "./a/0.png", "inside/0.png", "in.png", "a//1.png"])
def test_a_manifest_names_files_of_its_folder(root, file, monkeypatch):
    assert len(load_crops(manifest(root, listing(file, "b/0.png")))) == 2
    monkeypatch.chdir(root)
    assert len(load_crops("m.json")) == 2
    monkeypatch.chdir(root / "a")
    assert len(load_crops("../m.json")) == 2


@pytest.mark.parametrize(
    "file",
    [
        "../outside/0.png",
        "a/../../outside/0.png",
        "a/../a/0.png",
        "leads_out/0.png",
        "out.png",
        "/etc/passwd",
        "//etc/passwd",
        "{root}/a/../../outside/0.png",
        "{outside}/0.png",
        "..",
    ],
)
def test_a_manifest_that_leads_out_of_its_folder_is_refused(root, file, monkeypatch):
    file = file.format(root=root, outside=root.parent / "outside")
    path = manifest(root, listing("a/0.png", file))
    refused(path, r"m\.json: .* lies outside the manifest's folder; put")
    monkeypatch.setattr(outputs, "opened", [root / "elsewhere"])
    refused(path, "lies outside")


def test_a_manifest_of_our_own_may_lead_elsewhere(root, monkeypatch):
    path = manifest(root, listing("../outside/0.png", "a/0.png"))
    monkeypatch.setattr(outputs, "opened", [root])
    assert len(load_crops(path)) == 2


@pytest.mark.parametrize(
    "people",
    [
        {"x": [{"fil": 1}]},
        {"x": [{"file": 1}]},
        {"x": [{"file": None}]},
        {"x": [{"file": ""}]},
        {"x": [{"file": ["a/0.png"]}]},
        {"x": [{"file": "a\0b"}]},
        {"x": [{"file": "\ud800.png"}]},
        {"x": ["a/0.png"]},
        {"x": [None]},
        {"x": "a/0.png"},
        {"x": {"file": "a/0.png"}},
        {"x": 5},
        {"x": None},
        [{"file": "a/0.png"}],
        "a/0.png",
        5,
        None,
    ],
)
def test_a_manifest_of_another_form_is_refused(root, people):
    refused(manifest(root, {"kind": "fr-manifest", "identities": people}), r"m\.json: damaged")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not readable as JSON"),
        ("", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"kind": ' + "9" * 5000 + "}", "not readable as JSON"),
        ("[]", "not a manifest"),
        ('"fr-manifest"', "not a manifest"),
        ('{"kind": "fr-manifest"}', "damaged"),
        ('{"kind": ["fr-manifest"]}', "not a manifest"),
        ({"kind": "fr-manifest", "identities": {"x": []}}, "has no images"),
        (listing("a/0.png", "a/1.png", "a/0.png"), r"lists .*0\.png twice"),
        (listing("a/0.png", "./a//0.png"), r"lists .*0\.png twice"),
    ],
)
def test_broken_manifests(root, content, message):
    refused(manifest(root, content), message)


@pytest.mark.parametrize("file", ["gone.png", "pipe.png", "a", "nothing.png", "m.json", "a" * 300 + ".png"])
def test_what_a_manifest_names_must_be_a_crop(root, file):
    with pytest.raises(UserError) as caught:
        load_crops(manifest(root, listing(file)))
    assert "\n" not in str(caught.value)


def test_one_file_named_often_makes_nothing_large(root):
    text = json.dumps(listing("a/0.png")).replace("]", ', {"file": "a/0.png"}' * 10**5 + "]")
    path = manifest(root, text)
    assert peak_growth(lambda: refused(path, "twice")) < 300 * MEBIBYTE  # the crops would take 3.5 GiB


@pytest.mark.parametrize("large", ["a bomb", "a large one"])
def test_crops_of_another_size_are_not_decoded(root, large):
    if large == "a bomb":
        (root / "a/0.png").write_bytes(png_header(14_000, 14_000))
    else:
        Image.new("RGB", (12_000, 12_000)).save(root / "a/0.png", compress_level=1)
    calls = [lambda: load_crops(root), lambda: load_crops(manifest(root, listing("a/0.png")))]
    (root / "p.txt").write_text("a/1.png a/0.png 1\n")
    for name in ("inside", "leads_out"):
        (root / name).unlink()
    for call in [*calls, lambda: read_pair_list(root / "p.txt")]:

        def read(call=call):
            with pytest.raises(UserError, match=r"0\.png: 1.000 x 1.000 pixels, crops are 112 x 112"):
                call()

        assert peak_growth(read) < 100 * MEBIBYTE


# -------------------------------------------------------------------------------------------- crop arrays


@pytest.fixture
def arrays(tmp_path):
    write_crop_arrays(tmp_path / "arrays", np.stack([CROP] * 4), [0, 0, 1, 1], ["a", "b"])
    return tmp_path / "arrays"


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def npy(shape, kind="|u1", data=b"", length=None):
    """A .npy file of a hand-made header."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + (length or len(header)).to_bytes(2, "little") + header + data


def archive(folder):
    with zipfile.ZipFile(folder / "labels.npy", "w") as packed:
        packed.writestr("labels.npy", npy("(4,)", "<i8", bytes(32)))


ARRAYS = {
    "a shape without data": lambda f: (f / "images.npy").write_bytes(npy((10**9, 112, 112, 3))),
    "labels without data": lambda f: (f / "labels.npy").write_bytes(npy((10**12,), "<i8")),
    "a shape beyond all numbers": lambda f: (f / "labels.npy").write_bytes(npy((2**62, 2**62), "<i8")),
    "a negative shape": lambda f: (f / "labels.npy").write_bytes(npy((-4,), "<i8", bytes(32))),
    "no shape": lambda f: (f / "labels.npy").write_bytes(npy("()", "<i8", bytes(8))),
    "a program for a shape": lambda f: (f / "labels.npy").write_bytes(npy("__import__('os')", "<i8")),
    "a deep header": lambda f: (f / "labels.npy").write_bytes(npy("(" * 90)),
    "a long header": lambda f: (f / "labels.npy").write_bytes(npy((4,), "<i8", bytes(32), 65535)),
    "objects": lambda f: np.save(f / "labels.npy", np.array([Evil(f / "trap")], object), allow_pickle=True),
    "a pickle": lambda f: (f / "labels.npy").write_bytes(pickle.dumps(Evil(f / "trap"))),
    "an archive": archive,
    "a pipe": lambda f: [(f / "images.npy").unlink(), os.mkfifo(f / "images.npy")],
    "no file": lambda f: (f / "images.npy").unlink(),
    "an empty file": lambda f: (f / "labels.npy").write_bytes(b""),
    "a cut file": lambda f: os.truncate(f / "images.npy", 40_000),
    "other numbers": lambda f: np.save(f / "images.npy", np.zeros((4, 112, 112, 3), np.float32)),
    "other sizes": lambda f: np.save(f / "images.npy", np.zeros((4, 64, 64, 3), np.uint8)),
    "labels of text": lambda f: np.save(f / "labels.npy", np.array(list("abcd"))),
    "labels of fractions": lambda f: np.save(f / "labels.npy", np.array([0.0, 0, 1, 1])),
    "labels that are none": lambda f: np.save(f / "labels.npy", np.array([0, 0, 1, 2**40])),
    "negative labels": lambda f: np.save(f / "labels.npy", np.array([0, 0, 1, -1])),
    "too few labels": lambda f: np.save(f / "labels.npy", np.array([0, 1])),
    "labels in a table": lambda f: np.save(f / "labels.npy", np.array([[0, 0], [1, 1]])),
    "names of no text": lambda f: (f / "names.json").write_text("[1, 2]"),
    "names in a dict": lambda f: (f / "names.json").write_text('{"a": 0, "b": 1}'),
    "a number of names": lambda f: (f / "names.json").write_text("2"),
    "deep names": lambda f: (f / "names.json").write_text("[" * 100_000),
    "too many names": lambda f: (f / "names.json").write_text('["a", "b", "c"]'),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_broken_crop_arrays(arrays, name):
    ARRAYS[name](arrays)

    def read():
        with pytest.raises(UserError, match="write|mend") as caught:
            load_crops(arrays)
        assert str(arrays) in str(caught.value) and "\n" not in str(caught.value)

    assert peak_growth(read) < 100 * MEBIBYTE and not (arrays / "trap").exists()


def test_good_crop_arrays_stay_on_the_disk(arrays):
    crops = load_crops(arrays)
    assert isinstance(crops.images, np.memmap) and crops.labels.tolist() == [0, 0, 1, 1]


# --------------------------------------------------------------------------------------------- pair lists


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff\xfe\0", "not readable as text"),
        (b"a/0.png a/1.png 2\n", "line 1 is not"),
        (b"a/0.png\n", "line 1 is not"),
        (b"a/0.png a/1.png 1 1\n", "line 1 is not"),
        (b"a " + b"1" * 5000 + b" a 2\n", "line 1 is not"),
        (b"\n# only a remark\n", "holds no pairs"),
        (b"", "holds no pairs"),
        ("a/0.png a/1.png ²\n".encode(), "line 1 is not"),
    ],
)
def test_broken_pair_lists(root, content, message):
    (root / "p.txt").write_bytes(content)
    refused(root / "p.txt", message, read_pair_list)


@pytest.mark.parametrize("file", ["pipe.png", "gone.png", "a", "a\0b", "a" * 300])
def test_a_pair_of_what_is_no_crop(root, file):
    (root / "p.txt").write_text(f"a/0.png {file} 1\n")
    with pytest.raises(UserError) as caught:
        read_pair_list(root / "p.txt")
    assert "\n" not in str(caught.value)


def test_pairs_are_counted_before_a_crop_is_read(root, monkeypatch):
    (root / "p.txt").write_text("a/0.png a/1.png 1\n" * 30_000)
    assert peak_growth(lambda: refused(root / "p.txt", "60000 images", read_pair_list)) < 100 * MEBIBYTE
    monkeypatch.setattr(benchmark_bin, "MAX_BYTES", 4 * benchmark_bin.IMAGE_BYTES)
    (root / "p.txt").write_text("a/0.png a/1.png 1\n" * 2)
    assert len(read_pair_list(root / "p.txt")[0]) == 4
