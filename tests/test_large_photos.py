"""Large photos: memory is bounded wherever several are decoded, and what is found in them stays the same."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from arcface_files import extraction
from arcface_files.extraction import embed_images
from arcface_files.faces import MAX_PADDED, FaceAnalyser, reduced
from arcface_files.recogniser import load_recogniser
from evaluation import pose_networks
from evaluation.adherence import clip_scores, seen_in
from evaluation.encoders import PixelEncoder, encode_files
from evaluation.face_sets import FaceSet, find_faces
from evaluation.image_sets import image_set
from evaluation.pose_networks import face_pose, photo_crop
from fr_training.align_faces import main as align_faces
from id_booth.sampling.contact_sheet import load_thumbnail
from tests.memory import MEBIBYTE, peak_growth
from tests.tiny_pack import face_photo, make_tiny_pack
from utils.errors import UserError
from utils.identities import image_files
from utils.images import load_image

# Of 12 megapixels: 35 MiB decoded, 420 all together, and again in Pillow. Smaller ones the heap would keep.
COUNT, SIDE = 12, 3500
LIMIT = 300 * MEBIBYTE


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """As if they were of 60 megapixels: one at a time."""
    monkeypatch.setattr(extraction, "PIXELS_IN_FLIGHT", 10**7)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Large photos of a face of the tiny pack, one person's."""
    folder = tmp_path_factory.mktemp("large") / "set/ID_1/images"
    folder.mkdir(parents=True)
    small = face_photo((16, 24))
    for number in range(COUNT):
        large = cv2.resize(small, (SIDE, SIDE + number), interpolation=cv2.INTER_NEAREST)
        Image.fromarray(large).save(folder / f"{number}.jpg", quality=30)
    return folder


@pytest.fixture(scope="module")
def paths(photos):
    return image_files(photos)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_tiny_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def analyser(pack):
    return FaceAnalyser(pack, det_size=64, device="cpu")


def test_extraction(paths, analyser, tmp_path):
    recogniser = load_recogniser(analyser.models["recognition"])
    assert peak_growth(lambda: embed_images(paths, tmp_path, analyser, recogniser, workers=4)) < LIMIT


def test_alignment(photos, pack, tmp_path):
    argv = ["--config", "configs/align_mini.py", "--source", str(photos.parents[1]), "--pack", str(pack)]
    argv += ["--output", str(tmp_path / "crops"), "--labels", str(tmp_path / "labels.json"), "--pad", "0"]
    assert peak_growth(lambda: align_faces(argv)) < LIMIT


def test_faces_of_an_evaluation(paths, analyser):
    images = image_set("large", paths[0].parent, [(path, "ID_1") for path in paths])
    assert peak_growth(lambda: find_faces(images, analyser)) < LIMIT


def test_features_of_an_evaluation(paths):
    assert peak_growth(lambda: encode_files(PixelEncoder(), paths)) < LIMIT
    one_by_one = np.concatenate([PixelEncoder()([load_image(path)]) for path in paths])
    assert np.array_equal(encode_files(PixelEncoder(), paths), one_by_one)


class Watcher:
    """Stands for CLIP and for the attribute classifier; sees the brightness of each picture."""

    classes = {"pose": ("side", "frontal")}

    def __call__(self, images, prompts):
        assert all(
            image.shape[0] == SIDE + int(prompt.split()[0])
            for image, prompt in zip(images, prompts, strict=True)
        )
        return np.array([image.shape[0] for image in images], np.float32)

    def predict(self, images):
        return [{"pose": "frontal"} for _ in images]


def test_prompts_of_an_evaluation(paths):
    images = image_set("large", paths[0].parent, [(path, "ID_1") for path in paths])
    lines = [{"file_name": path.name, "prompt": f"{path.stem} portrait"} for path in paths]
    (images.folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for call in (clip_scores, seen_in):
        assert peak_growth(lambda call=call: call(images, Watcher())) < LIMIT
    assert clip_scores(images, Watcher(), 4)[0].tolist() == [SIDE + number for number in range(COUNT)]
    assert {one["pose"] for one in seen_in(images, Watcher())} == {"frontal"}


def test_crops_for_the_pose_network_are_small_at_once(paths, monkeypatch):
    monkeypatch.setattr(pose_networks, "load_sixdrepnet", lambda path: torch_identity())
    monkeypatch.setattr(pose_networks, "sixdrepnet_pose", lambda network, crops: np.zeros((len(crops), 3)))
    images = image_set("large", paths[0].parent, [(path, "ID_1") for path in paths])
    boxes = np.tile(np.float32([0, 0, SIDE, SIDE]), (COUNT, 1))
    zeros = np.zeros(COUNT, np.float32)
    faces = FaceSet(images, ["x"] * COUNT, np.arange(COUNT), np.zeros((COUNT, 5, 2)), boxes, zeros)
    assert peak_growth(lambda: face_pose(faces, "6drepnet", "weights")) < LIMIT


def torch_identity():
    import torch

    return torch.nn.Identity()


def test_contact_sheets(paths):
    assert peak_growth(lambda: [load_thumbnail(path, 128) for path in paths]) < LIMIT


# ------------------------------------------------------------------------------------------ a single photo


@pytest.mark.parametrize("size", [(50_000, 3), (3, 50_000), (10_100, 100), (101, 1)])
def test_strips_are_refused(tmp_path, size):
    """Scaled by its short side to 512 pixels, a photo of 3 x 50,000 would take 13 GB."""
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: .* no shape of a photo"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(10_000, 100), (1, 100), (300, 20)])
def test_panoramas_are_read(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (*size[::-1], 3)


def test_a_margin_around_a_large_photo_takes_no_multiple_of_it(pack, monkeypatch):
    """Half of each side added makes four times the pixels: a very large photo is shrunk before."""
    photo = cv2.resize(face_photo((16, 24)), (640, 640), interpolation=cv2.INTER_NEAREST)
    analyser = FaceAnalyser(pack, det_size=128, pad=0.5, device="cpu")
    (whole,) = analyser.detect([photo])[0]
    monkeypatch.setattr("arcface_files.faces.MAX_PADDED", 320 * 320 * 4)
    (shrunk,) = analyser.detect([photo])[0]
    np.testing.assert_allclose(shrunk.box, whole.box, atol=12)
    np.testing.assert_allclose(shrunk.landmarks, whole.landmarks, atol=12)


def test_photos_within_the_limit_are_not_touched():
    photo = np.zeros((100, 200, 3), np.uint8)
    assert reduced(photo, 20_000)[0] is photo and MAX_PADDED == 200_000_000
    small, scale = reduced(photo, 5_000)
    assert small.shape == (50, 100, 3) and scale == 0.5


@pytest.mark.parametrize("box", [(5, 5, 25, 30), (-20, -10, 15, 9), (30, 30, 90, 95), (0, 0, 60, 50)])
def test_crops_are_black_outside_the_photo(box):
    image = np.random.default_rng(0).integers(1, 255, (50, 60, 3), np.uint8)
    padded = np.pad(image, ((200, 200), (200, 200), (0, 0)))
    half = round(1.4 * max(box[2] - box[0], box[3] - box[1]) / 2)
    x, y = np.clip(round((box[0] + box[2]) / 2), 0, 60), np.clip(round((box[1] + box[3]) / 2), 0, 50)
    expected = padded[200 + y - half : 200 + y + half, 200 + x - half : 200 + x + half]
    assert np.array_equal(photo_crop(image, np.float32(box)), expected)


def test_a_box_beyond_all_measure_makes_no_crop_beyond_the_photo():
    image = np.ones((50, 60, 3), np.uint8)
    assert photo_crop(image, np.float32([-1e6, -1e6, 1e6, 1e6])).shape == (120, 120, 3)
