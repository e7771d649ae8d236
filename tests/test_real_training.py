"""The two recipes for Stable Diffusion 2.1 on real photos, with a real detector and recogniser."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderTiny
from torch.nn.functional import cosine_similarity

import extract_arcface_embeds
import train_id_booth
from arcface_files.faces import FaceAnalyser, crop_face
from arcface_files.recogniser import embed_crops, load_recogniser
from id_booth.diffusion.noise_schedule import add_noise, predict_x0
from id_booth.training.identity_branch import IdentityBranch
from id_booth.training.photos import alignment_matrices, face_windows
from utils.images import load_image


def run(script, *arguments):
    """Exit code of a script's main."""
    before, sys.argv = sys.argv, [f"{script.__name__}.py", *map(str, arguments)]
    try:
        return script.main() or 0
    finally:
        sys.argv = before


@pytest.fixture
def lab(tmp_path, fixtures_dir):
    """A person of each collection, and other people as negatives."""
    people = {"s1": "att_faces/s1", "p017": "london/017"}
    others = [f"att_faces/s{person}/1.png" for person in (5, 9)] + ["london/033/neutral.jpg"]
    for name, folder in people.items():
        photos = sorted((fixtures_dir / "images" / folder).iterdir())[:3]
        (tmp_path / "faces" / name / "images").mkdir(parents=True)
        for photo in photos:
            shutil.copy(photo, tmp_path / "faces" / name / "images")
    (tmp_path / "class/images").mkdir(parents=True)
    for number, photo in enumerate(others):
        suffix = photo.rpartition(".")[2]
        shutil.copy(fixtures_dir / "images" / photo, tmp_path / f"class/images/{number:05d}.{suffix}")
    return tmp_path


def crops_of(analyser, recogniser, photos, crop):
    """Embeddings of one crop kind, made photo by photo."""
    rows = []
    for path in photos:
        image = load_image(path)
        rows.append(embed_crops(crop_face(image, analyser.detect([image])[0][0], crop)[None], recogniser)[0])
    return torch.stack(rows)


def test_each_recipe_compares_one_kind_of_crop(lab, fixtures_dir, tiny_base, monkeypatch, capsys):
    """Extracted once, as published; the fast recipe makes its aligned embeddings from the same photos."""
    pack = ("--pack", fixtures_dir / "real_pack", "--recogniser", "None", "--device", "cpu")
    folders = ("--source-folder", lab / "faces", "--class-folder", lab / "class")
    assert run(extract_arcface_embeds, "--config", "configs/extract_sd21.py", *pack, *folders) == 0
    analyser = FaceAnalyser(fixtures_dir / "real_pack", device="cpu")
    recogniser = load_recogniser(analyser.models["recognition"])
    seen = {}

    class Spy(train_id_booth.Cohort):
        def __init__(self, config, objective, models, branch, photos, class_photos, negatives):
            super().__init__(config, objective, models, branch, photos, class_photos, negatives)
            seen[config.crop] = (photos, negatives)

    monkeypatch.setattr(train_id_booth, "Cohort", Spy)
    options = ["--base-model", tiny_base, "--resolution", 256, "--mixed-precision", "no"]
    options += ["--max-train-steps", 1, "--num-class-images", 3, "--validation-images", 0]
    options += ["--objectives", "ID-Booth", "--cohort-size", 2]
    for recipe, crop in (("train_sd21", "box"), ("train_sd21_fast", "aligned")):
        output = ("--output-folder", lab / recipe)
        assert (
            run(train_id_booth, "--config", f"configs/{recipe}.py", *pack, *folders, *options, *output) == 0
        )
        photos, negatives = seen[crop]
        for person in photos:
            expected = crops_of(analyser, recogniser, person.paths, crop)
            assert cosine_similarity(person.embeddings, expected).min() > 0.9999
            record = json.loads(
                (lab / recipe / "ID-Booth" / person.name / "training_config.json").read_text()
            )
            assert record["start_check"]["stored_cosine"] > 0.6
        expected = crops_of(analyser, recogniser, sorted((lab / "class/images").iterdir()), crop)
        assert cosine_similarity(negatives, expected).min() > 0.9999
        made_anew = "made anew (aligned crop" in capsys.readouterr().err
        assert made_anew == (crop == "aligned")


@pytest.mark.parametrize(
    "photo, least",
    # A face of a hundred pixels, as the astronaut's, is beyond what eight-fold latents keep.
    [("london/017/neutral.jpg", 0.9), ("london/009/smiling.jpg", 0.9), ("astronaut.png", 0.75)],
)
def test_taesd_shows_the_recogniser_the_face_of_a_real_photo(fixtures_dir, photo, least):
    """Real Stable Diffusion latents: encoded, noised, predicted back exactly, decoded, embedded."""
    from id_booth.training.photos import load_square

    image, _ = load_square(fixtures_dir / "images" / photo, 512)
    analyser = FaceAnalyser(fixtures_dir / "real_pack", device="cpu")
    recogniser = load_recogniser(analyser.models["recognition"])
    face = analyser.detect([image])[0][0]
    taesd = AutoencoderTiny.from_pretrained(fixtures_dir / "taesd", use_safetensors=True, dtype=torch.float32)
    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = taesd.encode(pixels).latents
    alphas = torch.linspace(0.999, 0.005, 1000)
    noise, t = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    x0 = predict_x0(add_noise(latents, noise, t, alphas), noise, t, alphas).requires_grad_()
    matrices = alignment_matrices(face.landmarks[None].astype(float))
    windows = face_windows(matrices, 64, 8, 4)
    config = SimpleNamespace(identity_decode="taesd", face_crop="aligned", saturated_pixels="clamp")
    embedding, found = IdentityBranch(config, taesd, 8, recogniser).embeddings(x0, matrices, windows)
    own = embed_crops(crop_face(image, face, "aligned")[None], recogniser)
    assert found.all() and cosine_similarity(embedding, own).item() > least
    embedding.sum().backward()
    assert torch.isfinite(x0.grad).all() and x0.grad.any()
