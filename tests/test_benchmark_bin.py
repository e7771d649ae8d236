"""Verification files: what is read, what is refused, and that nothing in one ever runs."""

import os
import pickle

import cv2
import numpy as np
import pytest

from fr_training import benchmark_bin
from fr_training.benchmark_bin import ADMITTED, IMAGE_BYTES, latin1_bytes, read_bin, write_bin
from fr_training.benchmarks import find_benchmark, load_benchmark
from tests.memory import MEBIBYTE, peak_growth
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


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("form", ["raw arrays", "one raw array many times", "bytearrays"])
def test_pictures_of_the_official_writers(tmp_path, images, encoded, protocol, form):
    data = [bytearray(item) for item in encoded] if form == "bytearrays" else list(images)
    if form == "one raw array many times":
        data, images = [data[0]] * 8, images[[0] * 8]
    read, _ = read_bin(dump(tmp_path / "a.bin", (data, SAME), protocol))
    assert np.array_equal(read, images)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("kind", ["<i8", ">i8", "<i4", ">u2", "u1", "i1", "?"])
def test_flags_are_numbers_of_any_kind(tmp_path, encoded, protocol, kind):
    data = [item.tobytes() for item in encoded]
    for flags in (np.array(SAME, kind), [*np.array(SAME, kind)]):
        assert read_bin(dump(tmp_path / "a.bin", (data, flags), protocol))[1].tolist() == SAME
    if kind != "?":
        for wrong in (2, 3, 100):
            with pytest.raises(UserError, match="true/false"):
                read_bin(dump(tmp_path / "a.bin", (data, np.array([1, 0, wrong, 0], kind)), protocol))


@pytest.mark.parametrize("wrong", [256, 257, 2**16, 2**24 + 1])
def test_flags_with_other_bytes_are_no_flags(tmp_path, encoded, wrong):
    data = [item.tobytes() for item in encoded]
    with pytest.raises(UserError, match="true/false"):
        read_bin(dump(tmp_path / "a.bin", (data, np.array([1, 0, wrong, 0], np.int64))))


@pytest.mark.parametrize("shape", [(112, 112), (112, 112, 4), (160, 160, 3), (3, 112, 112)])
def test_raw_arrays_of_another_shape_are_refused(tmp_path, shape):
    data = [np.zeros(shape, np.uint8)] * 2
    with pytest.raises(UserError, match="image 0"):
        read_bin(dump(tmp_path / "a.bin", (data, [True])))
    with pytest.raises(UserError, match="true/false"):
        read_bin(dump(tmp_path / "a.bin", ([item.astype(np.int64) for item in data], [True])))


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


def number(value, size=4):
    return value.to_bytes(size, "little")


JPEG = cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].tobytes()
TEXT = b"X" + number(10**6) + b"a" * 10**6 + b"q\0"
MANY = 1_000_000
# Little files that would take gigabytes: places in the memo, claimed lengths, one thing named many times.
GREEDY = {
    "memo, 4 bytes": b"\x80\x02Nr" + number(2**31) + b".",
    "memo, all bits": b"\x80\x02Nr" + b"\xff" * 4 + b".",
    "memo, text": b"Np4000000000\n.",
    "memo, just beyond": b"\x80\x02Nr" + number(2**22) + b".",
    "memo, twice": b"\x80\x02Nq\x01r" + number(2**30) + b"r" + number(2**31) + b".",
    "bytes of 4 GB": b"\x80\x03B\xff\xff\xff\xff.",
    "bytes of 2**62": b"\x80\x04\x8e" + number(2**62, 8) + b".",
    "text of 2**40": b"\x80\x04\x8d" + number(2**40, 8) + b".",
    "bytearray of 2**40": b"\x80\x05\x96" + number(2**40, 8) + b".",
    "integer of 2**31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "frame of 2**60": b"\x80\x04\x95" + number(2**60, 8) + b".",
    "integer of 5000 digits": b"I" + b"1" * 5000 + b"\n.",
    "sets without end": b"\x80\x04(" + b"\x8f" * (3 * MANY) + b"t.",
    "lists without end": b"\x80\x02" + b"]" * (3 * MANY) + b".",
    "a picture a million times": b"\x80\x03](B"
    + number(len(JPEG))
    + JPEG
    + b"q\0"
    + b"h\0" * (MANY - 1)
    + b"e]("
    + b"\x88" * (MANY // 2)
    + b"e\x86.",
    "a text encoded a thousand times": b"\x80\x02"
    + TEXT
    + b"0c_codecs\nencode\nq\x01]("
    + b"h\x01h\0\x85R" * 10_000
    + b"e.",
    "a bytearray a thousand times": b"\x80\x05\x96"
    + number(10**6, 8)
    + b"a" * 10**6
    + b"\x940cbuiltins\nbytes\n\x94]("
    + b"h\x01h\0\x85R" * 10_000
    + b"e.",
    "a long name a thousand times": b"\x80\x02"
    + TEXT
    + b"0cnumpy\ndtype\nq\x01]("
    + b"h\x01h\0\x85R" * 10_000
    + b"e.",
    "lists in lists as a name": b"\x80\x02]q\0"
    + b"".join(b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(60))
    + b"0cnumpy\ndtype\nh\x3c\x85R.",
}


@pytest.mark.parametrize("name", GREEDY)
def test_little_files_that_ask_for_much(tmp_path, name):
    path = tmp_path / "greedy.bin"
    path.write_bytes(GREEDY[name])

    def read():
        with pytest.raises(UserError, match="greedy.bin") as caught:
            read_bin(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500

    assert peak_growth(read) < 300 * MEBIBYTE


def test_a_file_may_name_one_picture_in_several_pairs(tmp_path, encoded, images):
    data = [item.tobytes() for item in encoded]
    read, _ = read_bin(dump(tmp_path / "a.bin", (data[:4] * 2, SAME)))
    assert np.array_equal(read, images[[0, 1, 2, 3] * 2])


def test_one_file_changes_nothing_for_the_next(tmp_path, encoded):
    """A stream can set attributes of the functions that it is given: they are its own."""
    names = b"".join(
        b"c"
        + b"\n".join(name.encode() for name in key)
        + b"\n}(X\x0c\0\0\0__defaults__\x85X\x08\0\0\0__name__Nut\x86b0"
        for key in ADMITTED
    )
    for stream in (names, b"c_codecs\nencode\nN}X\x0c\0\0\0__defaults__)s\x86b0"):
        (tmp_path / "evil.bin").write_bytes(b"\x80\x02" + stream + b"N.")
        with pytest.raises(UserError, match="evil.bin"):
            read_bin(tmp_path / "evil.bin")
    good = dump(tmp_path / "a.bin", ([item.tobytes() for item in encoded], SAME))
    assert len(read_bin(good)[0]) == 8 and latin1_bytes("a") == b"a"


def test_too_many_images_are_refused_before_any_is_decoded(tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(benchmark_bin, "decode_image", None)
    path = dump(tmp_path / "a.bin", ([item.tobytes() for item in encoded], SAME))
    for limit in (IMAGE_BYTES, 7 * IMAGE_BYTES):
        monkeypatch.setattr(benchmark_bin, "MAX_BYTES", limit)
        with pytest.raises(UserError, match="split it"):
            read_bin(path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.bin")
    with pytest.raises(UserError, match="no such benchmark file"):
        read_bin(tmp_path / "a.bin")


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


def test_lfw_pairs(tmp_path, images):
    for place, name in enumerate(("Ada/Ada_0001.png", "Ada/Ada_0004_jpg.png", "A.J._B/A.J._B_0012.jpg")):
        save_png(tmp_path / name, images[place])
    (tmp_path / "pairs.txt").write_bytes(b"\xef\xbb\xbf10\t300\r\nAda\t1\t4\r\nAda\t4\tA.J._B\t12\r\n")
    read, same = load_benchmark(tmp_path / "pairs.txt")
    assert np.array_equal(read, images[[0, 1, 1, 2]]) and same.tolist() == [True, False]
    (tmp_path / "pairs.txt").write_text("Ada 1 5\n")
    with pytest.raises(UserError, match="Ada_0005"):
        load_benchmark(tmp_path / "pairs.txt")


@pytest.mark.parametrize("mark", ["\t", ",", ";", " , "])
def test_pair_lists_with_blanks_in_names(tmp_path, images, mark):
    for place, name in enumerate(("a b.png", "ü.png")):
        save_png(tmp_path / name, images[place])
    text = f"# erste zweite gleich, für uns\na b.png{mark}ü.png{mark}1\n"
    (tmp_path / "pairs.csv").write_bytes(text.encode("cp1252"))
    assert np.array_equal(load_benchmark(tmp_path / "pairs.csv")[0], images[:2])


def test_the_real_files(fixtures_dir):
    images, same = read_bin(fixtures_dir / "benchmarks" / "att40x10_112.bin")
    assert images.shape == (2400, 112, 112, 3) and same.sum() == 600
    images, same = read_bin(fixtures_dir / "benchmarks" / "small_lfw.bin")
    assert images.shape == (20, 112, 112, 3) and same.all()
