"""A few mutants of every kind of file; `python -m tests.fuzz` makes thousands."""

import signal

import pytest

from tests.fuzz import KINDS, fuzz, too_long
from tests.fuzz_files import FORMATS, OTHERS, encoded
from utils.errors import UserError
from utils.images import load_image

SCRIPTS = ("bin", "faces", "metadata", "config", "lora")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SCRIPTS])
def test_mutated_files_are_refused_in_one_line(tmp_path, kind):
    before = signal.signal(signal.SIGALRM, too_long)
    try:
        _, _, faults = fuzz(kind, 40, 0, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not faults


@pytest.mark.parametrize("kind", FORMATS + OTHERS)
def test_what_the_photos_to_mutate_are(tmp_path, kind):
    (tmp_path / "a.jpg").write_bytes(encoded(kind))
    if kind in FORMATS:
        assert load_image(tmp_path / "a.jpg").size == 24 * 32 * 3
    else:
        with pytest.raises(UserError, match="not an image"):
            load_image(tmp_path / "a.jpg")
