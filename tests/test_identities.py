"""Identity folders and photo lists among the odd names and odd files that folders collect."""

import os
import socket

import pytest

from arcface_files.people import class_images, find_identities, people_in
from utils.errors import UserError
from utils.identities import image_files, natural_key, subfolders
from utils.progress import log_once


@pytest.fixture(autouse=True)
def forget():
    """What was said once may be said again."""
    log_once.cache_clear()


def make_photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"photo")
    return folder


def names(paths):
    return [path.name for path in paths]


@pytest.mark.parametrize(
    "mixed, ordered",
    [
        (["ID_10", "ID_2", "id_1"], ["id_1", "ID_2", "ID_10"]),
        (["1²", "1", "10", "2"], ["1", "1²", "2", "10"]),
        (["²", "2", "½", "①"], ["2", "²", "½", "①"]),
        (["a٣", "a2", "a１"], ["a2", "a٣", "a１"]),
        (["7" * 200, "8"], ["8", "7" * 200]),
        (["a", "1", ""], ["", "1", "a"]),
    ],
)
def test_digits_of_other_scripts_are_letters(mixed, ordered):
    assert sorted(mixed, key=natural_key) == ordered


@pytest.mark.parametrize("person", ["1²", "²", "①", "ID_٣", "Ünï", "人", "a b", "ID\n2"])
def test_any_name_in_utf8_is_a_name(tmp_path, person):
    make_photos(tmp_path / person / "images", "1².png", "１.jpg", "½.webp")
    found = find_identities(tmp_path)
    assert [identity.name for identity in found] == [person]
    assert len(image_files(found[0].images_dir)) == 3


@pytest.mark.parametrize("nesting", ["{}/images", "images/{}"])
def test_names_that_are_no_utf8_are_left_out_and_named(tmp_path, capsys, nesting):
    make_photos(tmp_path / nesting.format("ID_1"), "1.png", "x\udcff.png")
    make_photos(tmp_path / nesting.format("bad\udcff"), "1.png")
    for _ in range(2):
        (found,) = find_identities(tmp_path)
        assert found.name == "ID_1" and names(image_files(found.images_dir)) == ["1.png"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and r"1 left out" in lines[0]
    assert r"bad\udcff" in "".join(lines) and r"x\udcff.png" in "".join(lines)


def socket_at(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


ODD = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "socket": socket_at,
    "dangling link": lambda path: path.symlink_to("nowhere.png"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: [os.mkfifo(path.parent / "pipe"), path.symlink_to("pipe")],
    "link to a folder": lambda path: path.symlink_to(path.parent),
}


@pytest.mark.parametrize("kind", ODD)
def test_only_regular_files_are_photos(tmp_path, capsys, kind):
    make_photos(tmp_path, "1.png", "3.png")
    ODD[kind](tmp_path / "2.png")
    assert names(image_files(tmp_path)) == ["1.png", "3.png"]
    assert "1 left out, no regular file" in capsys.readouterr().err


def test_links_to_photos_are_photos(tmp_path, capsys):
    make_photos(tmp_path / "store", "a.png")
    make_photos(tmp_path / "images", "1.png")
    (tmp_path / "images/2.png").symlink_to("../store/a.png")
    assert names(image_files(tmp_path / "images")) == ["1.png", "2.png"]
    assert not capsys.readouterr().err


def test_what_systems_leave_is_no_data(tmp_path, capsys):
    photos = make_photos(tmp_path / "ID_1/images", "1.png", "._1.png", ".hidden.png", "Thumbs.db", "a.txt")
    make_photos(photos / "@eaDir/1.png", "SYNOPHOTO_THUMB_M.jpg")
    for junk in ("__MACOSX", "@eaDir", ".Trash"):
        make_photos(tmp_path / junk / "images", "1.png")
    assert names(subfolders(tmp_path)) == ["ID_1"] and not subfolders(photos)
    assert names(image_files(photos)) == ["1.png"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("listing", [find_identities, people_in, class_images, image_files, subfolders])
def test_a_folder_that_may_not_be_read(tmp_path, permissions, listing):
    root = make_photos(tmp_path / "photos/ID_1/images", "1.png").parents[1]
    root.chmod(0)
    with pytest.raises(UserError, match=f"^{root}: cannot be read .Permission denied.; change"):
        listing(root)


@pytest.mark.parametrize(
    "photos, closed", [("{}/images", "{}"), ("{}/images", "{}/images"), ("images/{}", "images/{}")]
)
def test_a_person_whose_folder_may_not_be_read_is_one(tmp_path, permissions, photos, closed):
    for name in ("ID_1", "ID_2"):
        make_photos(tmp_path / photos.format(name), "1.png")
    (tmp_path / closed.format("ID_1")).chmod(0)
    first, second = find_identities(tmp_path)
    assert first.name == "ID_1" and names(image_files(second.images_dir)) == ["1.png"]
    for listing in (lambda: image_files(first.images_dir), lambda: people_in(tmp_path)):
        with pytest.raises(UserError, match=r"ID_1(/images)?: cannot be read .Permission denied."):
            listing()


def test_many_are_counted_and_a_few_named(tmp_path, capsys):
    for number in range(9):
        (tmp_path / f"{number}.png").mkdir()
    assert not image_files(tmp_path)
    line = capsys.readouterr().err
    assert "9 left out" in line and "'4.png', ..." in line and "5.png" not in line
