"""mini.check: verdicts, kept chunks, refusals, the model card, and figures on small stand-ins."""

import json

import numpy as np
import pytest

from arcface_files.faces import Face
from mini.build.attribute_classifier import ensure_classifier
from mini.build.model_card import figure_table, publish_figures, write_model_card
from mini.check import base as check_base
from mini.check import finetune as check_finetune
from mini.check import pack as check_pack
from mini.check import parts as check
from mini.check import renderer as check_renderer
from mini.check.figures import CheckConfig, Figure
from mini.chunks import chunked
from mini.face_world import render, sample_identity, sample_view
from mini.paths import WEIGHTS
from utils.errors import UserError
from utils.images import load_image, save_png


@pytest.mark.parametrize(
    ("value", "bounds", "verdict"),
    [
        (0.99, dict(at_least=0.99), "pass"),
        (0.98, dict(at_least=0.99), "FAIL"),
        (4.0, dict(at_most=4), "pass"),
        (4.1, dict(at_most=4), "FAIL"),
        (3.0, dict(at_least=1, at_most=2), "FAIL"),
        (float("nan"), dict(at_least=0), "FAIL"),
        (7.0, {}, "reported"),
        (None, dict(at_least=1), "not measured"),
    ],
)
def test_verdicts(value, bounds, verdict):
    assert Figure("x", value, "1", **bounds).verdict == verdict


def test_records_are_json_and_words():
    record = Figure("speed", float("nan"), "10", at_least=40, unit=" %").record("renderer")
    assert json.loads(json.dumps(record, allow_nan=False))["value"] is None
    assert record["demand"] == "at least 40 %" and record["part"] == "renderer"
    assert Figure("x", 12.3456, "1", unit=" MB").shown == "12.35 MB"


def test_chunks_are_kept_and_only_the_missing_made(tmp_path):
    made = []

    def make(numbers):
        made.extend(numbers)
        return {"square": np.array([n * n for n in numbers])}

    first = chunked(tmp_path, "squares", 7, make, size=3)["square"]
    assert first.tolist() == [n * n for n in range(7)] and made == list(range(7))
    (tmp_path / "squares_00003_3.npz").unlink()
    again = chunked(tmp_path, "squares", 7, make, size=3)["square"]
    assert again.tolist() == first.tolist() and made[7:] == [3, 4, 5]


@pytest.mark.parametrize("wrong", [dict(only="renderers"), dict(only=" "), dict(scale=0.0), dict(seed=-1)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError):
        CheckConfig(**wrong).parts()


def test_parts_come_in_order_and_scale_shrinks_samples():
    config = CheckConfig(only="finetune, renderer", scale=0.1)
    assert config.parts() == ["renderer", "finetune"]
    assert (config.count(2000), config.count(20), config.count(20, 2)) == (200, 20, 2)
    starts = {CheckConfig(seed=s).first_person(part) for s in (0, 1) for part in check.CHECKS}
    assert len(starts) == 10 and min(starts) >= 1_000_000


def test_a_folder_of_kept_work_follows_content_and_seed(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = CheckConfig(build_dir=tmp_path).kept("base", file)
    assert first == CheckConfig(build_dir=tmp_path, scale=0.5).kept("base", file)
    assert first != CheckConfig(build_dir=tmp_path, seed=1).kept("base", file)
    file.write_bytes(b"two")
    assert first != CheckConfig(build_dir=tmp_path).kept("base", file)


class TruthfulDetector:
    """Answers with a picture's true landmarks, moved; mirrored pictures get mirrored ones."""

    def __init__(self, picture, shift):
        self.picture, self.shift = picture, shift

    def detect(self, images):
        points = self.picture.landmarks
        if not np.array_equal(images[0], self.picture.image):
            points = np.float32([127, 0]) - points[[1, 0, 2, 4, 3]] * np.float32([1, -1])
        return [[Face(self.picture.box, points + np.float32(self.shift), 0.9)]]


def test_yunet_row_averages_sizes_and_mirror():
    picture = render(sample_identity(3), sample_view(3, side=False))
    eyes = np.linalg.norm(picture.landmarks[0] - picture.landmarks[1])
    # A shift to the right is one to the left in the mirror: the mean answer is exact, a single one is not.
    row = check_renderer.yunet_row([TruthfulDetector(picture, (2, 0))] * 4, picture)
    assert row == pytest.approx((1, 2 / eyes, 0), rel=1e-4, abs=1e-5)
    row = check_renderer.yunet_row([TruthfulDetector(picture, (0, 3))] * 4, picture)
    assert row == pytest.approx((1, 3 / eyes, 3 / eyes), rel=1e-4)


def test_views_stay_within_the_limit():
    views = [check_renderer.view_within(30, "test", number) for number in range(40)]
    assert max(abs(view.yaw) for view in views) <= 30
    assert len({view.seed for view in views}) == 40


def test_without_real_networks_figures_are_not_measured(tmp_path):
    config = CheckConfig(build_dir=tmp_path, real=None)
    figures = check_renderer.detection_figures(config, tmp_path)
    figures.append(check_renderer.recognition_figure(config, tmp_path))
    assert {figure.verdict for figure in figures} == {"not measured"}
    assert all("ID_BOOTH_FIXTURES" in figure.note for figure in figures)


def test_equal_error_of_separable_people_is_zero_and_missing_faces_are_counted():
    rows = np.eye(3, dtype=np.float32)[:, None].repeat(4, 1)
    rows[0, 0] = np.nan
    assert check_pack.equal_error(rows) == (0.0, 1)
    with pytest.raises(UserError, match="fewer than two"):
        check_pack.equal_error(np.full((3, 4, 3), np.nan))


def test_prompts_are_the_grammar_for_both_genders_with_ages():
    prompts = [prompt.text for prompt in check_base.grammar_prompts(100, 0, "sks person")]
    assert len(prompts) == 100 and len(set(prompts)) > 60
    text = " ".join(prompts)
    assert all(word in text for word in ("female sks person", " male sks person", "side-portrait", "old "))
    assert prompts == [prompt.text for prompt in check_base.grammar_prompts(100, 0, "sks person")]
    assert not any("sks" in prompt.text for prompt in check_base.grammar_prompts(100, 0, "person"))


class Seer:
    """A classifier that always sees a man at the beach."""

    def predict(self, images):
        return [dict(gender="male", background="beach", age="old", pose="side")] * len(images)


def test_prompt_agreement_counts_only_what_a_prompt_says():
    prompts = ["face portrait photo of male sks person"]
    prompts.append("face portrait photo of female sks person, beach background")
    figures = check_base.prompt_figures(Seer(), np.zeros((2, 8, 8, 3), np.uint8), prompts)
    values = {figure.name.split()[2]: (figure.value, figure.sample) for figure in figures}
    assert values["background"] == (100.0, "1 samples") and values["gender"] == (50.0, "2 samples")
    assert values["pose"][0] == 0.0


@pytest.mark.parametrize(
    ("dreambooth", "idbooth", "verdict"),
    [(30, 8, "pass"), (30, 8.5, "FAIL"), (8, 5, "pass"), (8, 5.5, "FAIL"), (11, 5.6, "FAIL")],
)
def test_the_demand_on_the_error_rate_is_8_percent_and_follows_dreambooths(dreambooth, idbooth, verdict):
    errors = {"mini": {"DreamBooth": dreambooth, "PortraitBooth": 20, "ID-Booth": idbooth}}
    figures = check_finetune.error_figures(errors, "20 people")
    assert [figure.verdict for figure in figures] == ["reported", "reported", verdict]


def test_vendi_takes_equally_many_images_of_each_person():
    labels = np.repeat(["a", "b"], 4)
    alike, varied = np.ones((8, 4), np.float32), np.tile(np.eye(4, dtype=np.float32), (2, 1))
    few = (varied[:2], labels[:2])
    scores = check_finetune.vendi({"alike": (alike, labels), "varied": (varied, labels), "few": few})
    assert scores["alike"] == pytest.approx(1) and scores["varied"] == pytest.approx(2)


def test_coded_renders_are_nearly_the_renders_and_are_kept(tmp_path):
    picture = render(sample_identity(7), sample_view(7, "wild"), 128).image
    save_png(tmp_path / "renders/ID_1/000.png", picture)
    check_finetune.write_coded(tmp_path, WEIGHTS / "base")
    path = tmp_path / "coded renders/ID_1/000.png"
    error = np.abs(load_image(path).astype(int) - picture).mean()
    assert 1 < error < 20
    written = path.stat().st_mtime_ns
    check_finetune.write_coded(tmp_path, WEIGHTS / "base")
    assert path.stat().st_mtime_ns == written


def test_the_bundles_classifier_goes_first_then_the_builds(tmp_path):
    shipped, made = tmp_path / "weights/attributes.onnx", tmp_path / "build/attributes.onnx"
    with pytest.raises(UserError, match="pictures are missing"):
        ensure_classifier(shipped.parent, made.parent)
    for path in (made, shipped):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert ensure_classifier(shipped.parent, made.parent) == path


def test_figures_reach_the_model_card_and_stay_there(tmp_path):
    write_model_card(tmp_path, 100, 2000)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\n## History\nOnce upon a time.\n")
    records = [Figure("speed", 41.0, "200 pictures, |yaw| <= 45", at_least=40).record("renderer")]
    publish_figures(tmp_path, records)
    text = card.read_text()
    # A bar would begin a column.
    assert r"| speed | at least 40 | 41 | 200 pictures, \|yaw\| <= 45 | pass |" in text
    assert "Once upon a time." in text
    assert "Not measured" not in text
    write_model_card(tmp_path, 200, 2000)
    assert figure_table(records) in card.read_text()
    with pytest.raises(UserError, match="model card"):
        publish_figures(tmp_path / "elsewhere", records)


def test_a_missed_demand_is_the_exit_code(tmp_path, monkeypatch, capsys):
    figures = [Figure("good", 2.0, "1", at_least=1), Figure("bad", 0.0, "1", at_least=1)]
    monkeypatch.setitem(check.CHECKS, "renderer", lambda config: figures)
    monkeypatch.setattr("sys.argv", ["check", "--only", "renderer", "--build-dir", str(tmp_path)])
    assert check.main() == 1
    printed = capsys.readouterr().err
    assert "1 figures miss their demand: bad" in printed and "good" in printed
    kept = json.loads((tmp_path / "check/figures.json").read_text())["figures"]
    assert [one["verdict"] for one in kept] == ["pass", "FAIL"]
    figures.pop()
    assert check.main() == 0
