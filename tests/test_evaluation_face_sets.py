"""Image sets and their faces, on pictures whose faces and embeddings are known by construction."""

import numpy as np
import pytest

from evaluation.face_sets import find_faces, load_sets
from evaluation.image_sets import REAL, find_methods, method_samples, real_photos
from evaluation.measure_identity import own_similarity
from tests.evaluation_world import BLACK, BLUE, GREEN, RED, ColourAnalyser, paint
from utils.errors import UserError
from utils.images import save_png


@pytest.fixture
def world(tmp_path):
    paint(tmp_path / "faces" / "ID_1" / "images", [RED, (100, 0, 0)])
    paint(tmp_path / "faces" / "ID_2" / "images", [GREEN, (0, 90, 0)])
    good, poor = tmp_path / "samples" / "ID-Booth", tmp_path / "samples" / "NonFineTuned"
    paint(good / "ID_1", [RED, RED, BLACK])
    paint(good / "ID_2", [GREEN, GREEN, GREEN])
    paint(poor / "ID_1", [GREEN, RED, BLUE])
    paint(poor / "ID_2", [BLUE, BLUE, GREEN])
    paint(poor / "Comparison", [RED])
    paint(poor / "ID_77", [RED])
    return tmp_path


def test_similarity_to_the_own_photos_by_hand(world):
    analyser = ColourAnalyser(world, "a")
    images = [method_samples(path, ("ID_1", "ID_2")) for path in find_methods(world / "samples")]
    sets = load_sets([real_photos(world / "faces"), *images], analyser, {"judge": analyser})
    similarity = {name: own_similarity(faces, sets[REAL], "judge") for name, faces in sets.items()}
    assert similarity[REAL] == pytest.approx({"ID_1": 1.0, "ID_2": 1.0})
    assert similarity["ID-Booth"] == pytest.approx({"ID_1": 1.0, "ID_2": 1.0})
    assert similarity["NonFineTuned"] == pytest.approx({"ID_1": 1 / 3, "ID_2": 1 / 3})
    assert sets["ID-Booth"].face_share == 5 / 6 and len(sets["NonFineTuned"].images) == 6


def test_one_photo_and_no_face_have_no_similarity(world):
    paint(world / "alone" / "ID_1" / "images", [RED])
    paint(world / "samples" / "Broken" / "ID_1", [BLACK, BLACK])
    analyser = ColourAnalyser(world, "a")
    images = [real_photos(world / "alone"), method_samples(world / "samples" / "Broken")]
    sets = load_sets(images, analyser, {"judge": analyser})
    assert [own_similarity(faces, sets[REAL], "judge") for faces in sets.values()] == [{}, {}]


def test_cache_is_keyed_by_content(world):
    images = [method_samples(world / "samples" / "ID-Booth"), real_photos(world / "faces")]
    first, second = ColourAnalyser(world, "a"), ColourAnalyser(world, "a")
    sets = load_sets(images, first, {"own": first}, cache_folder=world / "cache")
    # Six samples are three different pictures, and ID_1's and ID_2's first photos are two of them.
    assert first.detected == 5 and first.embedded == 4
    again = load_sets(images, second, {"own": second}, cache_folder=world / "cache")
    assert second.detected == second.embedded == 0
    for name, faces in sets.items():
        np.testing.assert_array_equal(faces.embeddings["own"], again[name].embeddings["own"])
    save_png(world / "samples" / "ID-Booth" / "ID_1" / "000.png", np.full((112, 112, 3), BLUE, np.uint8))
    changed = load_sets(images, second, {"own": second}, cache_folder=world / "cache")
    np.testing.assert_allclose(changed["ID-Booth"].embeddings["own"][0], BLUE)


def test_unreadable_images_are_named_and_left_out(world):
    broken = world / "samples" / "ID-Booth" / "ID_1" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    faces = find_faces(method_samples(world / "samples" / "ID-Booth"), ColourAnalyser(world, "a"))
    assert len(faces.unreadable) == 1 and "001.png" in faces.unreadable[0]
    assert faces.face_share == 4 / 5 and faces.hashes[1] is None


def test_missing_folders_are_refused_in_words(world):
    with pytest.raises(UserError, match="no 'PortraitBooth'"):
        find_methods(world / "samples", ("PortraitBooth",))
    with pytest.raises(UserError, match="no such folder"):
        find_methods(world / "nowhere")
    (world / "empty" / "ID-Booth").mkdir(parents=True)
    with pytest.raises(UserError, match="no method folder"):
        find_methods(world / "empty")
    with pytest.raises(UserError, match="no images of any wanted identity"):
        method_samples(world / "samples" / "ID-Booth", ("ID_9",))
    assert [path.name for path in find_methods(world / "samples" / "ID-Booth")] == ["ID-Booth"]


def test_a_folder_with_one_data_set_and_its_contact_sheets_stands_for_the_set(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    for name in ("set/ID-Booth/ID_1/000.png", "set/DreamBooth/ID_1/000.png", "set/contact_sheets/ID_1.png"):
        save_png(tmp_path / name, picture)
    assert [path.name for path in find_methods(tmp_path)] == ["DreamBooth", "ID-Booth"]
