"""What a training finds out about its own networks and embeddings before the first step."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from arcface_files.extraction import embed_images
from arcface_files.faces import FaceAnalyser, crop_face
from arcface_files.people import IdentityFolder
from arcface_files.recogniser import load_recogniser, recogniser_input
from configs.train_mini import config as mini
from id_booth.training.frozen_models import FrozenModels
from id_booth.training.identity_branch import WHOLE, IdentityBranch
from id_booth.training.photos import prepare_photos
from mini.face_world import render, sample_identity, sample_view
from utils.errors import UserError
from utils.images import load_image, save_png

CONFIG = dataclasses.replace(mini, device="cpu", validation_images=0, with_prior_preservation=False)


@pytest.fixture(scope="module")
def networks():
    """(models, analyser, recogniser) of the miniature."""
    analyser = FaceAnalyser(CONFIG.pack, device="cpu")
    models = FrozenModels(CONFIG, torch.device("cpu"))
    return models, analyser, load_recogniser(analyser.models["recognition"])


@pytest.fixture
def person(tmp_path, networks):
    """(photos, folder of their embeddings) of one person."""
    for number in range(4):
        shot = render(sample_identity(3_000_000), sample_view(number, "lab"))
        save_png(tmp_path / f"images/{number}.png", shot.image)
    paths, embeds = sorted((tmp_path / "images").iterdir()), tmp_path / "ArcFace_embeds"
    embed_images(paths, embeds, *networks[1:])
    return paths, embeds


def check(person, networks, decoder=None, **settings):
    """The Photos of a person whose branch has some settings and a decoder."""
    models, analyser, recogniser = networks
    config = dataclasses.replace(CONFIG, **settings)
    branch = IdentityBranch(config, decoder or models.vae, 8, recogniser, analyser, models.vae)
    folder = IdentityFolder("ID_1", person[0][0].parent, person[1])
    return prepare_photos(folder, config, models, branch)


def test_all_is_well_with_the_miniature(person, networks, capsys):
    photos = check(person, networks)
    found = photos.start_check
    assert found["photos"] == ["0.png", "1.png", "2.png", "3.png"] and found["faces_found"] == "4 of 4"
    assert found["stored_cosine"] > 0.999 and found["margin"] == CONFIG.face_margin
    assert 0.98 <= found["window_cosine"] == found["narrowest_window_cosine"] <= 1
    assert not capsys.readouterr().err
    detected = check(person, networks, face_crop="detect", identity_decode="full").start_check
    assert detected["stored_cosine"] > 0.9 and "margin" not in detected


class Looser:
    """A decoder whose picture is the greyer the smaller the piece of latents that it is shown."""

    def __init__(self, vae, power):
        self.vae, self.power = vae, power
        self.config, self.decoder = vae.config, vae.decoder

    def decode(self, latents):
        share = (latents.shape[-1] / 16) ** self.power
        return SimpleNamespace(sample=self.vae.decode(latents).sample * share + 0.3 * (1 - share))


def test_windows_grow_until_they_show_the_same_face(person, networks, capsys):
    photos = check(person, networks, Looser(networks[0].vae, 1.5), face_margin=0)
    found = photos.start_check
    assert found["margin"] > 0 and found["narrowest_window_cosine"] < 0.98 <= found["window_cosine"]
    said = f"ID_1: faces are decoded with a margin of {found['margin']} latents; as configured (face, "
    assert said in capsys.readouterr().err
    assert photos.windows[0, 2:].min() < 16


@pytest.mark.parametrize("decode", ["face", "taesd"])
def test_else_the_vae_decodes_the_whole(person, networks, capsys, decode):
    class Noise(Looser):
        def decode(self, latents):
            return SimpleNamespace(sample=self.vae.decode(latents).sample.flip(-2))

    photos = check(person, networks, Noise(networks[0].vae, 1), identity_decode=decode, taesd_model="x")
    assert photos.start_check["margin"] is None and photos.windows.tolist() == [list(WHOLE)] * 4
    assert "ID_1: faces are decoded whole, by the VAE" in capsys.readouterr().err
    expected = check(person, networks, identity_decode="full")
    models, analyser, recogniser = networks
    branch = IdentityBranch(CONFIG, Noise(models.vae, 1), 8, recogniser, analyser, models.vae)
    full = IdentityBranch(dataclasses.replace(CONFIG, identity_decode="full"), models.vae, 8, recogniser)
    latents = models.scale_latents(expected.mean)
    with torch.no_grad():
        seen, _ = branch.embeddings(latents, photos.matrices, photos.windows)
        assert torch.equal(seen, full.embeddings(latents, photos.matrices, photos.windows)[0])


def give(person, networks, change):
    """Put embeddings of others, of box crops whose input was changed, in the place of ours."""
    _, analyser, recogniser = networks
    paths, embeds = person
    for path in paths:
        image = load_image(path)
        crop = crop_face(image, analyser.detect([image])[0][0], "box")
        torch.save(recogniser(change(recogniser_input(crop[None])))[0], embeds / f"{path.stem}.pt")
    (embeds / "faces.json").unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda crops: crops.flip(1), "fit faces with red and blue swapped .* better"),
        (lambda crops: (crops + 1) / 2, r"fit faces in \[0, 1\] instead of \[-1, 1\] .* better"),
        (lambda crops: crops.flip(2), "not of these faces, or of another recogniser"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(person, networks, change, message):
    give(person, networks, change)
    with pytest.raises(UserError, match=message):
        check(person, networks, face_crop="detect", identity_decode="full")


def test_given_embeddings_that_fit_are_taken(person, networks):
    give(person, networks, lambda crops: crops)
    photos = check(person, networks, face_crop="detect", identity_decode="full")
    assert photos.start_check["stored_cosine"] > 0.99


class Blind:
    """A detector that finds no face."""

    def detect(self, images):
        return [[] for _ in images]


def test_a_detector_that_finds_nothing_is_told(person, networks, capsys):
    models, _, recogniser = networks
    photos = check(person, (models, Blind(), recogniser), face_crop="detect", identity_decode="face")
    assert photos.start_check == {
        "photos": ["0.png", "1.png", "2.png", "3.png"],
        "stored_cosine": None,
        "faces_found": "0 of 4",
    }
    assert "coded and decoded, 0 of 4 photos have a face for the detector" in capsys.readouterr().err
