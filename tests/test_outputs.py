"""What we write, replace and follow: output folders, links, permissions."""

import errno
import os
import stat

import pytest

from utils import outputs
from utils.errors import UserError
from utils.files import atomic_path, atomic_write_text, sweep_temporaries
from utils.outputs import guard, make_folder, open_output, open_private


@pytest.fixture(autouse=True)
def no_folder_opened(monkeypatch):
    monkeypatch.setattr(outputs, "opened", [])


def test_a_new_or_empty_folder_becomes_ours_and_stays_so(tmp_path):
    for folder in (tmp_path / "new/deep", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "empty/.DS_Store").write_text("x")
        open_output(folder, ["run.json"])
        atomic_write_text(folder / "run.json", "1")
        atomic_write_text(folder / "more/deep.txt", "1")
        open_output(folder, ["run.json", "summary.json"])
        assert outputs.read_own(folder) == ["run.json", "summary.json"]


def test_a_folder_with_files_of_others_is_refused(tmp_path):
    (tmp_path / "holiday.png").write_text("photo")
    with pytest.raises(UserError, match="did not write .'holiday.png'.*new or empty"):
        open_output(tmp_path, ["run.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_in_a_shared_folder_only_our_names_are_ours(tmp_path):
    (tmp_path / "holiday.png").write_text("photo")
    (tmp_path / "summary.json").write_text("theirs")
    with pytest.raises(UserError, match="summary.json: was not written by this project"):
        open_output(tmp_path, ["summary.json"], shared=True)
    open_output(tmp_path, ["run.json"], shared=True)
    with pytest.raises(UserError, match="summary.json: was not written"):
        open_output(tmp_path, ["summary.json"], shared=True)


@pytest.mark.parametrize(
    "output, source", [("a", "a"), ("a/b", "a"), ("a", "a/b"), ("a/../b", "b"), ("link/x", "a")]
)
def test_an_output_never_overlaps_a_source(tmp_path, output, source):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="overlaps"):
        open_output(tmp_path / output, [], sources=[tmp_path / source])
    open_output(tmp_path / "elsewhere", [], sources=[tmp_path / source, None])


def test_a_check_writes_nothing(tmp_path):
    open_output(tmp_path / "new", ["run.json"], write=False)
    assert not (tmp_path / "new").exists()


def test_a_file_where_a_folder_belongs(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        open_output(tmp_path / "out", [])


def test_nothing_below_an_output_is_written_through_a_link(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("keep")
    open_output(tmp_path / "out", [])
    (tmp_path / "out/ID_1").symlink_to(mine)
    (tmp_path / "out/run.json").symlink_to(mine / "notes")
    (tmp_path / "out/dangling").symlink_to(mine / "absent")
    for name in ("ID_1/000.png", "ID_1/deep/000.png", "run.json", "dangling"):
        with pytest.raises(UserError, match="is a link"):
            atomic_write_text(tmp_path / "out" / name, "x")
        with pytest.raises(UserError, match="is a link"):
            open_private(tmp_path / "out" / name, os.O_APPEND)
    with pytest.raises(UserError, match="is a link"):
        sweep_temporaries(tmp_path / "out/ID_1")
    assert [path.name for path in mine.iterdir()] == ["notes"] and (mine / "notes").read_text() == "keep"


def test_a_linked_output_folder_is_the_users_own_choice(tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big disk")
    open_output(tmp_path / "out", ["run.json"])
    atomic_write_text(tmp_path / "out/ID_1/a.txt", "x")
    assert (tmp_path / "big disk/ID_1/a.txt").read_text() == "x"


def test_permissions_are_kept_and_follow_the_group(tmp_path):
    path = tmp_path / "faces.json"
    atomic_write_text(path, "1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    path.chmod(0o600)
    atomic_write_text(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == "2"
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    make_folder(tmp_path / "shared/a/b")
    atomic_write_text(tmp_path / "shared/a/b/c.txt", "x")
    assert (tmp_path / "shared/a/b").stat().st_mode & 0o070 == 0o070
    assert (tmp_path / "shared/a/b/c.txt").stat().st_mode & 0o060 == 0o060
    for folder, group in (("shared/a/b", 0o060), ("alone", 0o060 & ~umask())):
        os.close(open_private(tmp_path / folder / ".lock", 0))
        assert (tmp_path / folder / ".lock").stat().st_mode & 0o060 == group
    (tmp_path / "shared/mine").write_text("x")
    (tmp_path / "shared/mine").chmod(0o600)
    os.close(open_private(tmp_path / "shared/mine", os.O_APPEND))
    assert stat.S_IMODE((tmp_path / "shared/mine").stat().st_mode) == 0o600


def umask():
    value = os.umask(0)
    os.umask(value)
    return value


def test_temporary_names_cannot_be_foreseen(tmp_path):
    names = set()
    for _ in range(3):
        with atomic_path(tmp_path / "a") as temporary:
            names.add(temporary.name)
            temporary.write_text("x")
    assert len(names) == 3 and [path.name for path in tmp_path.iterdir()] == ["a"]


NO_PLACE = [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be"), (errno.EROFS, "cannot be")]
NO_PLACE += [(errno.ENOENT, "cannot be"), (errno.ELOOP, "cannot be"), (errno.EIO, "cannot be")]


@pytest.mark.parametrize("number, words", NO_PLACE)
def test_a_place_that_cannot_be_written_is_named(tmp_path, number, words):
    with pytest.raises(UserError, match=f"faces.json: .*{words}"), atomic_path(tmp_path / "faces.json"):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["/proc/x", "/proc/x/y", "/tmp/" + "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(folder):
    for call in (lambda: make_folder(folder), lambda: open_private(f"{folder}/.lock", 0)):
        with pytest.raises(UserError, match=r"(/proc/x|/tmp/x+): cannot be written \(.*name another place"):
            call()


def test_odd_entries_are_no_files_of_ours(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match=name):
            open_private(tmp_path / name, os.O_APPEND)
    guard(tmp_path / "pipe")
