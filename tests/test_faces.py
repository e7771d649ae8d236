import numpy as np
import onnxruntime
import pytest
import torch
from insightface.app import FaceAnalysis
from insightface.utils import face_align

from arcface_files.faces import (
    ARCFACE_TEMPLATE,
    Face,
    FaceAnalyser,
    align,
    choose_face,
    similarity_transform,
    warp_aligned,
)
from tests.tiny_pack import LANDMARKS, face_photo, make_tiny_pack
from utils.errors import UserError
from utils.images import load_image

PORTRAITS = ("astronaut.png", "obama_official_portrait.jpg", "biden_official_portrait.jpg")


def face(x, y, width, height=None, score=0.9):
    box = np.array([x, y, x + width, y + (height or width)], np.float32)
    return Face(box, np.zeros((5, 2), np.float32), score)


def smooth_photo(height, width, seed=0):
    """A soft uint8 image without structure below ten pixels, like skin."""
    coarse = np.random.default_rng(seed).random((1, 3, height // 10 + 2, width // 10 + 2))
    fine = torch.nn.functional.interpolate(torch.tensor(coarse), (height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def tiny_pack(tmp_path_factory):
    return make_tiny_pack(tmp_path_factory.mktemp("packs") / "tiny")


def test_similarity_of_the_template_is_the_identity():
    np.testing.assert_allclose(similarity_transform(ARCFACE_TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    np.testing.assert_allclose(similarity_transform(ARCFACE_TEMPLATE, 224), [[2, 0, 0], [0, 2, 0]], atol=1e-9)


def test_similarity_by_hand():
    """Turned by 90 degrees (x, y -> -y, x), doubled and moved by (10, -4): the inverse brings it back."""
    x, y = ARCFACE_TEMPLATE.T.astype(np.float64)
    landmarks = np.stack([-2 * y + 10, 2 * x - 4], 1)
    np.testing.assert_allclose(similarity_transform(landmarks), [[0, 0.5, 2], [-0.5, 0, 5]], atol=1e-6)


def test_similarity_equals_insightface():
    rng = np.random.default_rng(0)
    for scale in (0.3, 1.0, 20.0):
        landmarks = (scale * (ARCFACE_TEMPLATE + rng.normal(0, 12, (5, 2)))).astype(np.float32)
        expected = face_align.estimate_norm(landmarks)
        np.testing.assert_allclose(similarity_transform(landmarks), expected, rtol=1e-6, atol=1e-5)


def test_similarity_of_coinciding_landmarks_is_refused():
    for bad in (np.ones((5, 2)), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="coincide"):
            similarity_transform(bad)


def test_align_equals_insightface_norm_crop():
    photo, landmarks = smooth_photo(200, 170), ARCFACE_TEMPLATE * 1.3 + [12, 20]
    difference = align(photo, landmarks).astype(int) - face_align.norm_crop(photo, landmarks)
    # insightface keeps the template in float32: a rounding of one grey value here and there
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.05


@pytest.mark.parametrize(
    ("height", "width", "scale", "move"),
    [
        (200, 170, 1.3, (12, 20)),
        (128, 128, 0.8, (20.3, 11.7)),
        (90, 300, 1.0, (200, -30)),
        (640, 480, 3.5, (40, 90)),
    ],
)
def test_torch_warp_agrees_with_the_numpy_one(height, width, scale, move):
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    landmarks = (ARCFACE_TEMPLATE - 56) @ turn * scale + 56 * scale + move
    photo = smooth_photo(height, width)
    aligned = align(photo, landmarks).astype(np.float64)
    tensor = torch.tensor(photo).permute(2, 0, 1)[None] / 255
    warped = warp_aligned(tensor, similarity_transform(landmarks)[None])[0].permute(1, 2, 0) * 255
    assert np.abs(warped.numpy() - aligned).mean() < 1.0
    signed = warp_aligned(tensor * 2 - 1, similarity_transform(landmarks)[None], border=-1.0)
    torch.testing.assert_close((signed[0].permute(1, 2, 0) + 1) * 127.5, warped, atol=1e-2, rtol=0)


def test_torch_warp_of_whole_pixels_is_exact():
    """Landmarks on the template moved by whole pixels: a crop, with zeros where the image ends."""
    image = torch.rand(1, 3, 130, 120, dtype=torch.float64)
    matrix = similarity_transform(ARCFACE_TEMPLATE + [20, 30])[None]
    warped = warp_aligned(image, matrix)
    torch.testing.assert_close(warped[..., :100, :100], image[..., 30:, 20:], atol=1e-6, rtol=0)
    assert warped[..., 100:, :].abs().max() == 0 and warped[..., :, 100:].abs().max() < 1e-4


def test_torch_warp_passes_gradients_and_keeps_the_dtype():
    image = torch.rand(2, 3, 40, 40, dtype=torch.float64, requires_grad=True)
    matrices = np.stack([similarity_transform(ARCFACE_TEMPLATE * s + 3) for s in (0.3, 0.25)])
    assert torch.autograd.gradcheck(
        lambda x: warp_aligned(x, matrices, size=8), image[:, :, ::4, ::4].detach().requires_grad_()
    )
    warp_aligned(image, matrices).sum().backward()
    assert (image.grad[0].abs().sum((0, 1)) > 0).any() and torch.isfinite(image.grad).all()
    half = warp_aligned(image.detach().to(torch.bfloat16), matrices)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), warp_aligned(image.detach(), matrices), atol=0.01, rtol=0)


def test_choose_face():
    small_central, large = face(45, 45, 10), face(0, 0, 30)
    faces = [small_central, large]
    assert choose_face(faces, (100, 100), "largest") is large
    assert choose_face(faces, (100, 100), "central") is small_central
    assert choose_face(faces, (100, 100), "refuse") is None
    assert choose_face([large], (100, 100), "refuse") is large
    assert choose_face([], (100, 100), "largest") is None
    # height and width are told apart: the centre of a 40 x 200 image is (99.5, 19.5)
    right = face(90, 10, 20)
    assert choose_face([face(10, 90, 20), right], (40, 200), "central") is right
    with pytest.raises(ValueError, match="unknown policy"):
        choose_face(faces, (100, 100), "biggest")


def test_detection_by_hand(tiny_pack):
    photos = [
        face_photo((16, 24)),
        face_photo(),
        face_photo((8, 8), (40, 40), blue=(255, 0)),
        face_photo((0, 8), size=(96, 40)),
    ]
    one, none, two, tall = FaceAnalyser(tiny_pack).detect(photos)
    assert [len(faces) for faces in (one, none, two, tall)] == [1, 0, 2, 1]
    np.testing.assert_allclose(one[0].box, [16, 24, 24.06, 32.06], atol=0.1)
    np.testing.assert_allclose(one[0].landmarks, LANDMARKS + [16, 24], atol=1e-4)
    assert one[0].score == pytest.approx(0.9922, abs=1e-3) and one[0].landmarks.dtype == np.float32
    np.testing.assert_allclose(two[0].box, [8, 8, 32, 32], atol=0.2)  # the largest first
    np.testing.assert_allclose(two[1].landmarks, LANDMARKS + [40, 40], atol=1e-4)
    np.testing.assert_allclose(tall[0].landmarks, LANDMARKS + [0, 8], atol=1e-4)


def test_padding_and_detector_size_keep_photo_coordinates(tiny_pack):
    photo = face_photo((16, 24))
    padded = FaceAnalyser(tiny_pack, pad=0.5).detect([photo])[0][0]
    np.testing.assert_allclose(padded.landmarks, LANDMARKS + [16, 24], atol=1e-4)
    np.testing.assert_allclose(padded.box[:2], [16, 24], atol=1e-4)
    doubled = FaceAnalyser(tiny_pack, det_size=128).detect([photo])[0]
    # at twice the size the red cell is 2 x 2 cells; interpolation may silence its border
    assert len(doubled) >= 1
    assert np.abs(doubled[0].landmarks - (LANDMARKS / 2 + [16, 24])).max() <= 4.01


def test_results_do_not_depend_on_batches(tiny_pack, tmp_path):
    one_by_one = make_tiny_pack(tmp_path / "single", batch=1)
    photos = [face_photo((8 * (i % 5), 8 * (i % 4)), blue=20 * i, seed=i) for i in range(10)]
    reference = FaceAnalyser(tiny_pack, batch_size=10).detect(photos)
    crops = np.stack(
        [align(photo, faces[0].landmarks) for photo, faces in zip(photos, reference, strict=True)]
    )
    embeddings = FaceAnalyser(tiny_pack, batch_size=10).embed(crops)
    assert embeddings.shape == (10, 32) and embeddings.dtype == np.float32
    for other in (FaceAnalyser(tiny_pack, batch_size=3), FaceAnalyser(one_by_one)):
        for mine, theirs in zip(other.detect(photos), reference, strict=True):
            np.testing.assert_allclose(mine[0].box, theirs[0].box, atol=1e-4)
        np.testing.assert_allclose(other.embed(crops), embeddings, rtol=1e-4, atol=1e-5)
    assert FaceAnalyser(tiny_pack).embed(crops[:0]).shape == (0, 32)


def test_threshold(tiny_pack):
    photo = face_photo((16, 24))
    photo[24:32, 16:24, 1] = 64  # green lowers the score to about 0.49
    assert len(FaceAnalyser(tiny_pack, threshold=0.45).detect([photo])[0]) == 1
    assert len(FaceAnalyser(tiny_pack, threshold=0.55).detect([photo])[0]) == 0


def test_missing_packs_say_what_to_put_where(tmp_path, tiny_pack, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="no such face pack.*buffalo_l under ~/.insightface/models"):
        FaceAnalyser("buffalo_l")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no .onnx file"):
        FaceAnalyser(tmp_path / "empty")
    half = tmp_path / "half"
    half.mkdir()
    (half / "det.onnx").write_bytes((tiny_pack / "det_tiny.onnx").read_bytes())
    with pytest.raises(UserError, match="no recognition network"):
        FaceAnalyser(half)
    (half / "rec.onnx").write_text("not a network")
    with pytest.raises(UserError, match="rec.onnx: not a readable ONNX file"):
        FaceAnalyser(half)
    with pytest.raises(UserError, match="det_size: 100"):
        FaceAnalyser(tiny_pack, det_size=100)


def test_pack_by_name_and_nested_folder(tmp_path, tiny_pack, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_tiny_pack(tmp_path / ".insightface" / "models" / "antelopev2" / "antelopev2")
    assert len(FaceAnalyser("antelopev2").detect([face_photo((8, 8))])[0]) == 1


def insightface_of(pack, det_size):
    onnxruntime.set_default_logger_severity(3)
    analysis = FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    analysis.prepare(ctx_id=-1, det_size=(det_size, det_size))
    return analysis


@pytest.mark.parametrize(
    ("name", "det_size"), [(PORTRAITS[0], 640), (PORTRAITS[1], 320), ("att_faces/s3/4.png", 320)]
)
def test_equal_to_insightface(fixtures_dir, name, det_size):
    pack, photo = fixtures_dir / "real_pack", load_image(fixtures_dir / "images" / name)
    expected = insightface_of(pack, det_size).get(photo[:, :, ::-1].copy())
    analyser = FaceAnalyser(pack, det_size=det_size)
    found = analyser.detect([photo])[0]
    assert len(found) == len(expected) == 1
    np.testing.assert_allclose(found[0].box, expected[0].bbox, atol=1e-2)
    np.testing.assert_allclose(found[0].landmarks, expected[0].kps, atol=1e-2)
    assert found[0].score == pytest.approx(expected[0].det_score, abs=1e-4)
    embedding = analyser.embed(align(photo, found[0].landmarks)[None])[0]
    np.testing.assert_allclose(embedding, expected[0].embedding, atol=2e-3 * np.abs(embedding).max())


def test_real_photos_at_their_own_size(fixtures_dir):
    """Tight AT&T faces and portraits: one face each, without any detector size given."""
    names = [
        *PORTRAITS,
        *(f"att_faces/s{person}/{number}.png" for person in (1, 7, 26, 35) for number in (1, 5, 9)),
    ]
    photos = [load_image(fixtures_dir / "images" / name) for name in names]
    assert [len(faces) for faces in FaceAnalyser(fixtures_dir / "real_pack").detect(photos)] == [1] * len(
        names
    )


def test_warps_agree_on_portraits(fixtures_dir):
    analyser = FaceAnalyser(fixtures_dir / "real_pack")
    for name in PORTRAITS:
        photo = load_image(fixtures_dir / "images" / name)
        landmarks = analyser.detect([photo])[0][0].landmarks
        tensor = torch.tensor(photo).permute(2, 0, 1)[None].float()
        warped = warp_aligned(tensor, similarity_transform(landmarks)[None])[0].permute(1, 2, 0).numpy()
        assert np.abs(warped - align(photo, landmarks)).mean() < 1.0
