"""Pipes under the names of our own files: nothing waits for somebody to write into them."""

import os
import signal

import pytest

from id_booth.sampling.provenance import is_complete_png
from utils.errors import UserError
from utils.files import read_json, sha256_file
from utils.outputs import open_output, read_own


@pytest.fixture(autouse=True)
def hurry():
    """A reader that waits is stopped."""
    signal.alarm(10)
    yield
    signal.alarm(0)


def test_no_reader_waits(tmp_path):
    os.mkfifo(tmp_path / "p")
    with pytest.raises(UserError, match="not found"):
        read_json(tmp_path / "p")
    with pytest.raises(FileNotFoundError):
        sha256_file(tmp_path / "p")
    assert not is_complete_png(tmp_path / "p")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("[" * 100_000)])
def test_a_list_of_our_names_that_is_none(tmp_path, make):
    (tmp_path / ".batch").mkdir()
    make(tmp_path / ".batch/ours.json")
    assert read_own(tmp_path) is None
    open_output(tmp_path, [], write=False)
