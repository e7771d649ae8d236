"""Whose pictures lie where: our layouts, the official code's, and what else lies among them."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from arcface_files.people import class_images, find_identities, identity_at, people_in
from utils.errors import UserError
from utils.identities import image_files
from utils.progress import log_once

OFFICIAL = "{}_checkpoint-31-6400_stable-diffusion-2-1-base"


@pytest.fixture(autouse=True)
def forget():
    """What was said once may be said again."""
    log_once.cache_clear()


def pictures(folder, *names, side=16):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("0.png", "1.png"):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / name)


def listing(folder):
    return {name: [file.name for file in files] for name, files in people_in(folder).items()}


@pytest.mark.parametrize("layout", ["{}/images", "images/{}", "{}", OFFICIAL])
def test_everybody_is_found_in_every_layout(tmp_path, layout):
    for name in ("ID_10", "ID_2"):
        pictures(tmp_path / layout.format(name))
    assert listing(tmp_path) == {"ID_2": ["0.png", "1.png"], "ID_10": ["0.png", "1.png"]}


def test_the_folder_of_the_images_stands_for_the_one_above(tmp_path):
    pictures(tmp_path / "images/ID_1")
    (found,) = find_identities(tmp_path / "images")
    assert found.images_dir == tmp_path / "images/ID_1"
    assert found.embeds_dir == tmp_path / "ArcFace_embeds/ID_1"
    assert [found] == find_identities(tmp_path) == [identity_at(tmp_path / "images", "ID_1")]


@pytest.mark.parametrize("stray", ["cover.png", "images/cover.png"])
@pytest.mark.parametrize("layout", ["{}/images", "images/{}", "{}"])
def test_a_stray_picture_costs_nobody(tmp_path, capsys, layout, stray):
    for name in ("Ada", "Bob"):
        pictures(tmp_path / layout.format(name))
    pictures((tmp_path / stray).parent, "cover.png")
    people = listing(tmp_path)
    people.pop("images", None)
    assert people == {"Ada": ["0.png", "1.png"], "Bob": ["0.png", "1.png"]}


@pytest.mark.parametrize("name", ["comparison", "Contact_Sheets", "contact_sheet"])
@pytest.mark.parametrize("layout", ["{}/images", "images/{}", "{}"])
def test_people_may_be_called_like_overviews(tmp_path, layout, name):
    for person in (name, "ID_1"):
        pictures(tmp_path / layout.format(person))
    assert set(listing(tmp_path)) == {name, "ID_1"}


@pytest.mark.parametrize("name", ["Comparison", "Contact_Sheets"])
@pytest.mark.parametrize("layout", ["{}", OFFICIAL])
def test_overviews_are_nobody_and_named(tmp_path, capsys, layout, name):
    people = [layout.format("ID_1"), layout.format("ID_2")]
    for person in people:
        pictures(tmp_path / person)
    pictures(tmp_path / name, *(f"{person}_5.0.jpg" for person in people))
    assert set(listing(tmp_path)) == {"ID_1", "ID_2"}
    assert "taken for overviews and passed over" in capsys.readouterr().err


def test_two_folders_of_one_person(tmp_path):
    pictures(tmp_path / "ID_1")
    pictures(tmp_path / OFFICIAL.format("ID_1"))
    with pytest.raises(UserError, match="are both of ID_1"):
        people_in(tmp_path)


def test_names_in_either_normal_form_are_one_person(tmp_path):
    pictures(tmp_path / unicodedata.normalize("NFD", "José") / "images")
    (found,) = find_identities(tmp_path, [unicodedata.normalize("NFC", "José")])
    assert found == identity_at(tmp_path, unicodedata.normalize("NFD", "José"))
    assert len(image_files(found.images_dir)) == 2
    pictures(tmp_path / unicodedata.normalize("NFC", "José") / "images")
    with pytest.raises(UserError, match="are both of José"):
        find_identities(tmp_path)


def test_flat_crops_go_by_their_labels(tmp_path):
    pictures(tmp_path, "10_0.png", "2_5_0_face portrait photo of male sks person, .png", "2_a.jpg", side=112)
    expected = {"2": ["2_5_0_face portrait photo of male sks person, .png", "2_a.jpg"], "10": ["10_0.png"]}
    assert listing(tmp_path) == expected


@pytest.mark.parametrize("names", [("a.png",), ("1.png", "2_a.png"), ("1_a.png", "b.png")])
def test_other_flat_pictures_are_nobody(tmp_path, names):
    pictures(tmp_path, *names, side=112)
    with pytest.raises(UserError, match="no identity found"):
        people_in(tmp_path)


@pytest.mark.parametrize(
    "made, given, images",
    [
        ("images", ".", "images"),
        ("images", "images", "images"),
        ("flat", "flat", "flat"),
        (None, "new", "new/images"),
        (None, "new/images", "new/images"),
    ],
)
def test_the_class_folder_as_it_is(tmp_path, made, given, images):
    if made:
        pictures(tmp_path / made)
    found = class_images(tmp_path / given)
    assert found.images_dir == tmp_path / images
    assert found.embeds_dir == found.images_dir.parent / "ArcFace_embeds" or images == "flat"
