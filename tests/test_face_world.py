"""The miniature world: determinism, ground truth that fits the pixels, truthful views and captions."""

from dataclasses import asdict, fields

import numpy as np
import pytest

from mini.build.captions import caption, hair_words, names, skin_word
from mini.face_world import render, render_background, sample_identity, sample_view
from mini.world.backgrounds import BACKGROUNDS, STUDIO
from mini.world.head_geometry import rotation
from mini.world.identity import Identity
from utils.errors import UserError


def test_same_seed_same_person_view_and_pixels():
    first = render(sample_identity(7), sample_view(11, "wild"))
    second = render(sample_identity(7), sample_view(11, "wild"))
    assert sample_identity(7) == sample_identity(7) != sample_identity(8)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.landmarks, second.landmarks)


def test_identity_is_plain_and_frozen():
    person = sample_identity(3)
    assert {type(value) for value in asdict(person).values()} <= {int, float, str}
    with pytest.raises(AttributeError):
        person.gender = "male"
    assert {field.name for field in fields(Identity)} >= {"gender", "age", "beard", "glasses"}


@pytest.mark.parametrize("size", [64, 128])
def test_picture_and_ground_truth_have_the_promised_form(size):
    picture = render(sample_identity(1), sample_view(2), size=size)
    assert picture.image.shape == (size, size, 3) and picture.image.dtype == np.uint8
    assert picture.landmarks.shape == (5, 2) and picture.landmarks.dtype == np.float32
    assert picture.box.shape == (4,)


@pytest.mark.parametrize("seed", range(6))
def test_landmarks_are_ordered_and_inside_the_box(seed):
    view = sample_view(seed, side=False, roll=0.0)
    picture = render(sample_identity(seed), view)
    left, right, nose, mouth_left, mouth_right = picture.landmarks
    assert left[0] < nose[0] < right[0] and mouth_left[0] < mouth_right[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
    x1, y1, x2, y2 = picture.box
    assert (picture.landmarks >= [x1, y1]).all() and (picture.landmarks <= [x2, y2]).all()
    assert 0 <= x1 < x2 < 128 and 0 <= y1 < y2 < 128


def _landmarks(**pose):
    pose = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, **pose}
    return render(sample_identity(5), sample_view(1, "lab", **pose)).landmarks


def test_pose_signs_follow_the_convention():
    def lead(points):
        return points[2] - points[:2].mean(0)

    rest = lead(_landmarks())
    assert lead(_landmarks(yaw=30.0))[0] < rest[0] - 3
    assert lead(_landmarks(yaw=-30.0))[0] > rest[0] + 3
    assert lead(_landmarks(pitch=20.0))[1] < rest[1] - 1
    rolled = _landmarks(roll=15.0)
    slope = rolled[1] - rolled[0]
    assert np.degrees(np.arctan2(slope[1], slope[0])) == pytest.approx(15, abs=0.5)


def test_rotation_by_hand():
    nose = np.float32([0, 0, 1])
    assert rotation(90, 0, 0) @ nose == pytest.approx([-1, 0, 0], abs=1e-6)
    assert rotation(0, 90, 0) @ nose == pytest.approx([0, -1, 0], abs=1e-6)
    assert rotation(0, 0, 90) @ np.float32([0, -1, 0]) == pytest.approx([1, 0, 0], abs=1e-6)


def test_mirrored_yaw_turns_the_landmarks_around():
    left, right = _landmarks(yaw=25.0), _landmarks(yaw=-25.0)
    assert np.ptp(left[:2, 0]) == pytest.approx(np.ptp(right[:2, 0]), rel=0.05)


def test_the_eye_landmark_lies_on_a_dark_eye():
    for seed in (2, 9, 21):
        picture = render(
            sample_identity(seed), sample_view(seed, "lab", yaw=0.0, eye_open=1.0, sensor_noise=0.0)
        )
        x, y = picture.landmarks[0].round().astype(int)
        eye = picture.image[y - 2 : y + 3, x - 2 : x + 3].mean(-1).min()
        cheek = picture.image[y + 12 : y + 15, x - 1 : x + 2].mean()
        assert eye < 0.75 * cheek


def test_lab_is_constrained_and_wild_is_not():
    lab = [sample_view(seed, "lab") for seed in range(60)]
    wild = [sample_view(seed, "wild") for seed in range(200)]
    assert {view.background for view in lab} == {STUDIO}
    assert len({(view.cloth_r, view.clothing) for view in lab}) == 1
    assert max(abs(view.yaw) for view in lab) < 48
    assert {view.background for view in wild} == set(BACKGROUNDS)
    assert len({view.clothing for view in wild}) > 3
    turned = np.mean([abs(view.yaw) >= 25 for view in wild])
    assert 0.35 < turned < 0.65


def test_view_overrides():
    view = sample_view(4, "wild", side=True, background="beach", pitch=3.0)
    assert abs(view.yaw) >= 25 and view.background == "beach" and view.pitch == 3.0
    assert all(
        abs(sample_view(seed, setting, side=False).yaw) <= 20
        for seed in range(20)
        for setting in ("lab", "wild")
    )
    assert all(abs(sample_view(seed, "lab", side=True).yaw) >= 25 for seed in range(20))


@pytest.mark.parametrize("wrong", [{"setting": "moon"}, {"background": "moon"}, {"yew": 3.0}])
def test_wrong_views_are_refused(wrong):
    with pytest.raises(UserError):
        sample_view(1, **wrong)


@pytest.mark.parametrize("name", [*BACKGROUNDS, STUDIO])
def test_every_place_is_drawn_from_its_seed(name):
    first, again, other = (render_background(name, seed) for seed in (1, 1, 2))
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.std() > 5


def test_unknown_place_is_refused():
    with pytest.raises(UserError, match="moon"):
        render_background("moon", 1)


def test_people_differ_more_than_photos_of_one_person():
    def face(person, view):
        picture = render(sample_identity(person), sample_view(view, "lab", yaw=0.0, pitch=0.0, roll=0.0))
        return picture.image[30:100, 35:95].astype(np.float64)

    same = np.abs(face(1, 1) - face(1, 2)).mean()
    different = [np.abs(face(1, 1) - face(other, 1)).mean() for other in (2, 3, 4)]
    assert same < min(different)


def test_captions_tell_the_truth_and_vary():
    rng = np.random.default_rng(0)
    attributes = dict(
        gender="female",
        age="old",
        background="night club",
        yaw=40.0,
        pose="side-portrait",
        beard="none",
        glasses="round",
        hair="bun of red hair",
        skin="tan",
        expression="smile",
    )
    lines = [caption(attributes, rng) for _ in range(1000)]
    assert "face side-portrait photo of old female person, night club background" in lines
    assert "photo of a person" in lines
    assert "face side-portrait photo of old female person with glasses, night club background" in lines
    plain = "face side-portrait photo of a old female person night club background"
    looks = "smiling with bun of red hair and tan skin and glasses"
    assert set(" ".join(lines).replace(",", "").split()) == set(f"{plain} {looks}".split())
    named = [caption({**attributes, "name": "baba"}, rng) for _ in range(1000)]
    assert 0.6 < np.mean(["baba person" in line for line in named]) < 0.8
    assert "photo of baba person" in named and "photo of a person" in named


def test_the_words_for_looks_follow_the_numbers():
    people = [sample_identity(seed) for seed in range(200)]
    for person in people:
        words = hair_words(person)
        assert (words == "bald head") == (person.hair_style == "bald")
        if person.hair_style != "bald":
            red, _, blue = person.hair
            assert ("blond" in words or "red" in words or "brown" in words) <= (red > blue)
            assert ("grey" in words) <= (person.years > 34)
    dark, tan, pale = (
        [person.skin.mean() for person in people if skin_word(person) == word]
        for word in ("dark", "tan", "pale")
    )
    assert max(dark) < min(tan) and max(tan) < min(pale)
    assert len(set(names(1000))) == 1000


@pytest.mark.parametrize(("yaw", "word"), [(0.0, " portrait "), (22.0, None), (-30.0, " side-portrait ")])
def test_the_pose_word_depends_on_the_yaw(yaw, word):
    rng = np.random.default_rng(1)
    attributes = render(sample_identity(1), sample_view(1, yaw=yaw), size=32).attributes
    text = " ".join(caption(attributes, rng) for _ in range(60))
    assert (word in text) if word else ("portrait" not in text)
