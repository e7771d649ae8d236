"""What training reads of extracted faces: of which crop and network, and what it makes anew or refuses."""

import json
import shutil

import pytest
import torch

from arcface_files.extraction import embed_images
from arcface_files.faces import FaceAnalyser
from arcface_files.people import class_images
from arcface_files.recogniser import load_recogniser
from arcface_files.stored_faces import StoredFaces
from id_booth.training.other_people import read_negatives
from tests.tiny_pack import face_photo, make_recogniser, make_tiny_pack
from utils.errors import UserError
from utils.images import save_png


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """(analyser, recogniser, another recogniser)."""
    folder = make_tiny_pack(tmp_path_factory.mktemp("packs") / "tiny")
    make_recogniser(folder.parent / "other.onnx", "batch", seed=1)
    rec = load_recogniser(folder / "rec_tiny.onnx"), load_recogniser(folder.parent / "other.onnx")
    return FaceAnalyser(folder, device="cpu"), *rec


@pytest.fixture
def faces(tmp_path, networks):
    """Function of a crop: a folder with three photos, extracted; returns (photos, folder)."""

    def extract(crop, name="f"):
        for number in range(3):
            photo = face_photo((8 * number, 8), blue=60 * number, seed=number)
            save_png(tmp_path / name / f"images/{number}.png", photo)
        paths, embeds = sorted((tmp_path / name / "images").iterdir()), tmp_path / name / "ArcFace_embeds"
        embed_images(paths, embeds, networks[0], networks[1], crop=crop)
        return paths, embeds

    return extract


def read(embeds, paths, crop, recogniser):
    values, present = StoredFaces(embeds, crop, recogniser).embeddings(paths)
    assert present.all()
    return values


def files(embeds):
    return torch.stack([torch.load(embeds / f"{n}.pt", weights_only=True) for n in range(3)])


@pytest.mark.parametrize("crop", ["aligned", "box"])
def test_the_same_crop_is_read_and_the_other_made_anew(faces, networks, capsys, crop):
    other = {"aligned": "box", "box": "aligned"}[crop]
    paths, embeds = faces(crop)
    theirs, their_embeds = faces(other, "g")
    before = {path: path.read_bytes() for path in embeds.iterdir()}
    assert torch.equal(read(embeds, paths, crop, networks[1]), files(embeds))
    assert "made anew" not in capsys.readouterr().err
    anew = read(embeds, paths, other, networks[1])
    assert f"3 embeddings are of the other crop; made anew ({other} crop" in capsys.readouterr().err
    torch.testing.assert_close(anew, files(their_embeds), atol=0.05, rtol=1e-3)  # landmarks are rounded
    assert (anew - files(embeds)).abs().max() > 1
    assert {path: path.read_bytes() for path in embeds.iterdir()} == before


def test_embeddings_of_another_recogniser_are_made_anew(faces, networks, capsys):
    paths, embeds = faces("aligned")
    anew = read(embeds, paths, "aligned", networks[2])
    assert "of another recogniser; made anew" in capsys.readouterr().err
    embed_images(paths, embeds, networks[0], networks[2])
    torch.testing.assert_close(anew, files(embeds), atol=0.05, rtol=1e-3)


def test_embeddings_without_a_record_or_of_others_are_of_box_crops(faces, networks):
    paths, embeds = faces("aligned")
    given = torch.arange(32.0)
    torch.save(given[None], embeds / "1.pt")  # (1, D), as the official script writes
    embed_images(paths, embeds, networks[0], networks[1])
    assert torch.equal(read(embeds, paths, "box", networks[1])[1], given)
    assert not torch.equal(read(embeds, paths, "aligned", networks[1])[1], given)
    (embeds / "faces.json").unlink()
    assert torch.equal(read(embeds, paths, "box", networks[1]), files_of_any_shape(embeds))
    with pytest.raises(UserError, match="faces.json: does not say where the face is in 0.png; run extract"):
        read(embeds, paths, "aligned", networks[1])


@pytest.mark.parametrize("record", ["none", "without one photo"])
def test_faces_are_looked_for_where_no_record_says_where_they_are(faces, networks, capsys, record):
    paths, embeds = faces("box")
    expected = StoredFaces(embeds, "aligned", networks[1]).embeddings(paths)[0]
    content = json.loads((embeds / "faces.json").read_text())
    del content["images"]["1.png"]
    (embeds / "faces.json").write_text(json.dumps(content))
    if record == "none":
        (embeds / "faces.json").unlink()
    before = {path: path.read_bytes() for path in embeds.iterdir()}
    stored = StoredFaces(embeds, "aligned", networks[1], lambda: networks[0])
    values, present = stored.embeddings(paths)
    assert present.all() and "faces found anew) in memory" in capsys.readouterr().err
    torch.testing.assert_close(values, expected, atol=0.05, rtol=1e-3)
    assert [stored.landmarks(path).shape for path in paths] == [(5, 2)] * 3
    assert {path: path.read_bytes() for path in embeds.iterdir()} == before


def test_a_photo_without_a_face_has_no_aligned_embedding(faces, networks):
    paths, embeds = faces("box")
    (embeds / "faces.json").unlink()
    save_png(paths[1], face_photo()[:, :, :] * 0)
    stored = StoredFaces(embeds, "aligned", networks[1], lambda: networks[0])
    assert stored.embeddings(paths)[1].tolist() == [True, False, True]
    assert stored.landmarks(paths[1]) is None


def files_of_any_shape(embeds):
    return torch.stack([torch.load(embeds / f"{n}.pt", weights_only=True).reshape(-1) for n in range(3)])


def test_a_record_from_before_there_was_a_choice_is_of_aligned_crops(faces, networks):
    paths, embeds = faces("aligned")
    content = json.loads((embeds / "faces.json").read_text())
    del content["crop"]
    (embeds / "faces.json").write_text(json.dumps(content))
    assert torch.equal(read(embeds, paths, "aligned", networks[1]), files(embeds))
    assert embed_images(paths, embeds, networks[0], networks[1])["kept"] == 3


def test_changed_photos_and_embeddings_are_refused(faces, networks):
    paths, embeds = faces("aligned")
    torch.save(torch.zeros(32), embeds / "1.pt")
    with pytest.raises(
        UserError, match="1.pt: has changed since the face was extracted; put it back, or run extract"
    ):
        read(embeds, paths, "aligned", networks[1])
    save_png(paths[0], face_photo((8, 16), seed=9))
    with pytest.raises(UserError, match="0.png: has changed since"):
        read(embeds, paths, "aligned", networks[1])


def test_negatives_need_their_photos_only_to_be_made_anew(faces, networks):
    _, embeds = faces("box")
    expected = read_negatives(class_images(embeds.parent), "aligned", networks[1])
    assert expected.shape == (3, 32)
    shutil.rmtree(embeds.parent / "images")
    assert torch.equal(read_negatives(class_images(embeds.parent), "box", networks[1]), files(embeds))
    with pytest.raises(UserError, match="0.png is not there to make it anew; add the photo"):
        read_negatives(class_images(embeds.parent), "aligned", networks[1])
    (embeds / "0.pt").unlink()
    (embeds / "stray.pt").write_bytes(b"no photo of faces.json has this stem")
    assert len(read_negatives(class_images(embeds.parent), "box", networks[1])) == 2
