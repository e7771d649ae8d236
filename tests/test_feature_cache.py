"""The feature cache: computed once, made anew when its file is damaged or not ours; nothing in it runs."""

import io
import os
import zipfile

import numpy as np
import pytest

from evaluation.feature_cache import FeatureCache
from tests.memory import MEBIBYTE, peak_growth
from tests.test_crop_sets import Evil, npy

KEYS = ["a", "b", "c"]
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def rows_of(positions):
    return ROWS[positions]


def nothing(positions):
    pytest.fail("computed again")


def filled(folder):
    cache = FeatureCache(folder, "encoder")
    cache.fetch(KEYS, rows_of)
    return cache.path


def test_features_are_computed_once(tmp_path):
    filled(tmp_path)
    again = FeatureCache(tmp_path, "encoder").fetch(["c", "a", "c"], nothing)
    assert np.array_equal(again, ROWS[[2, 0, 2]])
    assert FeatureCache(tmp_path, "other").path != FeatureCache(tmp_path, "encoder").path


def packed(path, kind=zipfile.ZIP_STORED, **files):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(f"{name}.npy", data)


def array(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


NAMES = array(np.array(KEYS))


def repeated(path):
    """One entry's data claimed by a thousand entries: an archive whose parts overlap."""
    packed(path, keys=NAMES, features=array(np.zeros((3, 10_000), np.float32)))
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\1\2")
    end = data.rindex(b"PK\5\6")
    entry, tail = data[start:end], data[end:]
    tail[8:12] = (1002).to_bytes(2, "little") * 2
    tail[12:16] = (len(data[:end]) - data.index(b"PK\1\2") + 1000 * len(entry)).to_bytes(4, "little")
    path.write_bytes(data[:end] + entry * 1000 + tail)


DAMAGES = {
    "cut": lambda p: os.truncate(p, p.stat().st_size // 2),
    "empty": lambda p: p.write_bytes(b""),
    "noise": lambda p: p.write_bytes(b"PK\3\4garbage"),
    "a bit turned": lambda p: p.write_bytes(p.read_bytes().replace(ROWS.tobytes()[:16], b"\1" * 16)),
    "text": lambda p: p.write_text("no cache"),
    "a single array": lambda p: p.write_bytes(array(ROWS)),
    "no keys": lambda p: packed(p, features=array(ROWS)),
    "no features": lambda p: packed(p, keys=NAMES),
    "too few features": lambda p: packed(p, keys=NAMES, features=array(ROWS[:2])),
    "whole numbers": lambda p: packed(p, keys=NAMES, features=array(ROWS.astype(int))),
    "flat": lambda p: packed(p, keys=NAMES, features=array(ROWS[0, :3])),
    "numbers as keys": lambda p: packed(p, keys=array(np.arange(3)), features=array(ROWS)),
    "keys in a table": lambda p: packed(p, keys=array(np.array([KEYS])), features=array(ROWS)),
    "objects": lambda p: np.savez(p, keys=np.array([Evil(p.parent / "trap")], object), features=ROWS),
    "objects as features": lambda p: packed(
        p, keys=NAMES, features=npy((3, 4), "|O", b"cos\nsystem\n(S'x'\ntR.")
    ),
    "packed": lambda p: packed(
        p, zipfile.ZIP_DEFLATED, keys=NAMES, features=array(np.zeros((3, 50_000_000), np.float32))
    ),
    "a shape without data": lambda p: packed(p, keys=NAMES, features=npy((3, 10**11), "<f4")),
    "a shape beyond all numbers": lambda p: packed(p, keys=NAMES, features=npy((2**62, 2**62), "<f4")),
    "keys of a gigabyte each": lambda p: packed(p, keys=npy((3,), "<U268435456"), features=array(ROWS)),
    "a program for a shape": lambda p: packed(p, keys=NAMES, features=npy("__import__('os')", "<f4")),
    "entries that overlap": repeated,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cache_is_made_anew(tmp_path, capsys, name):
    path = filled(tmp_path)
    DAMAGES[name](path)

    def read():
        assert np.array_equal(FeatureCache(tmp_path, "encoder").fetch(KEYS, rows_of), ROWS)

    assert peak_growth(read) < 200 * MEBIBYTE and not (tmp_path / "trap").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path}: damaged feature cache, made anew" in said
    assert np.array_equal(FeatureCache(tmp_path, "encoder").fetch(KEYS, nothing), ROWS)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_cache_that_is_no_file_is_not_opened(tmp_path, make):
    make(FeatureCache(tmp_path, "encoder").path)
    assert FeatureCache(tmp_path, "encoder").rows == {}


def test_features_of_another_width_are_made_anew(tmp_path, capsys):
    path = filled(tmp_path)
    packed(path, keys=array(np.array(["a", "z"])), features=array(np.zeros((2, 7), np.float32)))
    assert np.array_equal(FeatureCache(tmp_path, "encoder").fetch(KEYS, rows_of), ROWS)
    assert "another width, made anew" in capsys.readouterr().err
