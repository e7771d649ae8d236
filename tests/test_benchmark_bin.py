"""Verification files: what is read, what is refused, and that nothing in one ever runs."""

import os
import pickle

import cv2
import numpy as np
import pytest

from fr_training.benchmark_bin import read_bin, write_bin
from fr_training.benchmarks import find_benchmark, load_benchmark
from utils.errors import UserError
from utils.images import save_png


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (8, 7, 7, 3), np.uint8)
    return np.stack([cv2.resize(image, (112, 112)) for image in small])


@pytest.fixture
def encoded(images):
    return [cv2.imencode(".png", image[..., ::-1])[1] for image in images]


SAME = [True, False, True, False]


def dump(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["bytes", "arrays", "numpy flags"])
def test_every_form_in_use_is_read(tmp_path, images, encoded, protocol, form):
    data = encoded if form == "arrays" else [item.tobytes() for item in encoded]
    flags = [np.bool_(flag) for flag in SAME] if form == "numpy flags" else SAME
    read, same = read_bin(dump(tmp_path / "a.bin", (data, flags), protocol))
    assert np.array_equal(read, images) and same.tolist() == SAME and same.dtype == bool


def test_written_files_are_read_by_us_and_by_others(tmp_path, images):
    write_bin(tmp_path / "a.bin", images, SAME)
    read, same = read_bin(tmp_path / "a.bin")
    assert same.tolist() == SAME and np.abs(read.astype(int) - images).mean() < 4
    with open(tmp_path / "a.bin", "rb") as stream:
        theirs, flags = pickle.Unpickler(stream, encoding="bytes").load()
    assert len(theirs) == 8 and flags == SAME and theirs[0][:2] == b"\xff\xd8"


class Evil:
    """On reading, a plain unpickler would call `function(argument)`."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, print])
def test_code_is_refused_by_name_and_never_runs(tmp_path, function):
    trap = tmp_path / "trap"
    path = dump(tmp_path / "evil.bin", (Evil(function, f"open({str(trap)!r}, 'w')"), SAME))
    with pytest.raises(UserError, match=rf"evil\.bin: refused.*\.{function.__name__}"):
        read_bin(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"cnumpy\nload\n(S'x'\ntR.",  # another function of an admitted module
        b"cnumpy.core.multiarray\nscalar.__globals__\n.",
        b"c_codecs\nlookup\n(S'x'\ntR.",
        b"c__builtin__\nbytes\n(I99999999999\ntR.",  # a length instead of content
        b"c_codecs\nencode\n(Vabc\nVzip\ntR.",
        b"Px\n.",  # a persistent object
        b"",
        b"no pickle at all",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_crafted_streams_are_refused(tmp_path, text):
    path = tmp_path / "crafted.bin"
    path.write_bytes(text)
    with pytest.raises(UserError, match="crafted.bin"):
        read_bin(path)


def test_object_arrays_are_refused(tmp_path):
    path = dump(tmp_path / "a.bin", ([np.array([1, "x"], dtype=object)] * 2, [True]))
    with pytest.raises(UserError, match="array of O8"):
        read_bin(path)


def test_wrong_contents_are_named(tmp_path, encoded):
    data = [item.tobytes() for item in encoded]
    large = cv2.imencode(".png", np.zeros((100, 112, 3), np.uint8))[1].tobytes()
    cases = [
        ((data[:3], SAME[:1]), "3 images, an odd number"),
        ((data, SAME[:3]), "8 images but 3 same flags"),
        ((data, [1, 0, 2, 0]), "true/false"),
        (([], []), "not a verification file"),
        (data, "not a verif"),
        ((data, "ab"), "true/false"),
        (([b"xy", *data[1:]], SAME), "image 0 does not decode"),
        (([large, *data[1:]], SAME), "image 0 is 112 x 100"),
    ]
    for content, message in cases:
        with pytest.raises(UserError, match=message):
            read_bin(dump(tmp_path / "a.bin", content))


def test_a_missing_benchmark_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"lfw\.bin.*insightface"):
        find_benchmark("lfw", tmp_path)


def test_write_refuses_what_does_not_fit(tmp_path, images):
    with pytest.raises(UserError, match="2 x flags"):
        write_bin(tmp_path / "a.bin", images, SAME[:3])
    assert not (tmp_path / "a.bin").exists()


def test_pair_lists(tmp_path, images):
    for place, image in enumerate(images[:4]):
        save_png(tmp_path / f"{place}.png", image)
    (tmp_path / "pairs.txt").write_text("# first second same\n0.png 1.png 1\n2.png,3.png,0\n\n")
    read, same = load_benchmark(find_benchmark(str(tmp_path / "pairs.txt"), tmp_path))
    assert np.array_equal(read, images[:4]) and same.tolist() == [True, False]
    (tmp_path / "pairs.txt").write_text("0.png 1.png yes\n")
    with pytest.raises(UserError, match="line 1"):
        load_benchmark(tmp_path / "pairs.txt")


def test_the_real_files(fixtures_dir):
    images, same = read_bin(fixtures_dir / "benchmarks" / "att40x10_112.bin")
    assert images.shape == (2400, 112, 112, 3) and same.sum() == 600
    images, same = read_bin(fixtures_dir / "benchmarks" / "small_lfw.bin")
    assert images.shape == (20, 112, 112, 3) and same.all()
