"""The method table on pictures whose faces and embeddings are known by construction."""

import json

import numpy as np
import pytest

from arcface_files.faces import ARCFACE_TEMPLATE, Face
from evaluation.face_sets import find_faces, load_sets
from evaluation.image_sets import find_methods, method_samples, real_photos
from evaluation.summary import method_table, readable, save_table
from utils.errors import UserError
from utils.images import save_png


class ColourAnalyser:
    """A face where the picture is not black; its embedding is the mean colour plus one."""

    def __init__(self, folder, name):
        self.models = {"detection": folder / "detector", "recognition": folder / name}
        for path in self.models.values():
            path.write_bytes(path.name.encode())
        self.detected = self.embedded = 0

    def detect(self, images):
        self.detected += len(images)
        box, points = np.array([0, 0, 111, 111], np.float32), ARCFACE_TEMPLATE
        return [[Face(box, points, 0.9)] if image.any() else [] for image in images]

    def embed(self, crops):
        self.embedded += len(crops)
        return crops.reshape(len(crops), -1, 3).mean(1).astype(np.float32)


def paint(folder, colours):
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        save_png(folder / f"{number:03d}.png", np.full((112, 112, 3), colour, np.uint8))


RED, GREEN, BLUE, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 200), (0, 0, 0)


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


def test_method_table_by_hand(world):
    table = method_table(world / "samples", world / "faces", ColourAnalyser(world, "a"), replicates=100)
    assert list(table.index) == ["real photos", "NonFineTuned", "ID-Booth"]
    assert table.loc["ID-Booth", "face_share"] == 5 / 6 and table.loc["NonFineTuned", "images"] == 6
    assert table.loc["real photos", "similarity"] == pytest.approx(1.0)
    assert table.loc["ID-Booth", "similarity"] == pytest.approx(1.0)
    assert table.loc["NonFineTuned", "similarity"] == pytest.approx(1 / 3)
    # Two faces each: a pair of orthogonal colours counts as two images, equal ones as one.
    assert table.loc["ID-Booth", "vendi"] == pytest.approx(1.0)
    assert (table["vendi_size"] == 2).all()
    assert 1.0 <= table.loc["NonFineTuned", "vendi"] <= 2.0


def test_judge_and_files(world):
    judge = ColourAnalyser(world, "b")
    table = method_table(world / "samples", world / "faces", ColourAnalyser(world, "a"), judge, replicates=20)
    assert table.loc["NonFineTuned", "judge_similarity"] == pytest.approx(1 / 3)
    save_table(table, world / "out")
    records = json.loads((world / "out" / "methods.json").read_text())
    assert [record["method"] for record in records] == list(table.index)
    markdown = (world / "out" / "methods.md").read_text()
    assert "| ID-Booth | 6 | 2 | 83.3 % | 1.000 [1.000, 1.000] |" in markdown
    assert "judge_similarity_low" in (world / "out" / "methods.csv").read_text().splitlines()[0]


def test_a_method_without_any_face_has_no_similarity(world):
    paint(world / "samples" / "Broken" / "ID_1", [BLACK, BLACK])
    table = method_table(world / "samples", world / "faces", ColourAnalyser(world, "a"), replicates=20)
    assert table.loc["Broken", "face_share"] == 0 and np.isnan(table.loc["Broken", "similarity"])
    assert readable(table).loc["Broken", "similarity to own photos"] == "-"


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
    assert faces.face_share == 4 / 6 and faces.hashes[1] is None


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
    from evaluation.image_sets import find_methods
    from utils.images import save_png

    picture = np.zeros((8, 8, 3), np.uint8)
    for name in ("set/ID-Booth/ID_1/000.png", "set/DreamBooth/ID_1/000.png", "set/contact_sheets/ID_1.png"):
        save_png(tmp_path / name, picture)
    assert [path.name for path in find_methods(tmp_path)] == ["DreamBooth", "ID-Booth"]
