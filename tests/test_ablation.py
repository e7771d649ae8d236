"""The ablation in one command, on LoRAs and a base model of random weights; and the names of its sets."""

import signal

import numpy as np
import pytest

import inference_id_booth
from configs.ablation_config import AblationConfig
from configs.evaluation_config import EvaluationConfig
from configs.inference_config import InferenceConfig
from configs.train_config import TrainConfig
from evaluation import ablation, evaluate
from id_booth.sampling.settings import data_set_name
from tests.evaluation_world import ColourAnalyser
from tests.tiny_base import make_tiny_lora
from utils.config import load_config
from utils.errors import UserError
from utils.files import read_json
from utils.images import save_png
from utils.run_record import PROJECT_ROOT


def test_the_name_of_a_set_says_what_its_negative_prompt_is():
    named = lambda **changes: data_set_name(InferenceConfig(**changes))  # noqa: E731
    assert named() == "FacePortrait_Photo_21_Gender_Pose_Background"
    assert named(negative_prompt="") == "FacePortrait_Photo_21_Gender_Pose_Background_NoNegative"
    others = {named(negative_prompt=text) for text in ("cartoon", "drawing")}
    assert len(others) == 2 and all("_Background_Negative-" in name for name in others)
    assert named(negative_prompt="", set_name="mine") == "mine"


@pytest.mark.parametrize("name, images", [("ablation_sd21", 100), ("ablation_mini", 10)])
def test_every_row_of_a_config_has_a_set_of_its_own(name, images, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT_ROOT)
    config = load_config(f"configs/{name}.py", (), AblationConfig)
    rows = ablation.plan_rows(config)
    sets = [ablation.set_of(config, row) for row in rows]
    assert len(rows) == len(set(sets)) == 8 and {row.images for row in rows} == {images, 21}
    assert [row.name for row in rows[-2:]] == ["no-prior", "21"] and sets[-2].name.endswith("_NoPrior")
    assert ablation.main(["--config", f"configs/{name}.py", "--dry-run"]) == 0
    assert "trains DreamBooth into" in "".join(capsys.readouterr())


def test_training_without_prior_preservation_is_possible_for_every_objective(monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    for objective in ("DreamBooth", "ID-Booth"):
        config = AblationConfig(no_prior_objective=objective)
        training = load_config("configs/train_sd21.py", ablation.training_options(config), TrainConfig)
        assert not training.with_prior_preservation and training.objectives == (objective,)
        assert training.output_folder == config.no_prior_folder
        # Negatives are needed all the same: the class images' embeddings.
        assert training.negatives_folder == ("CLASS_IMAGES" if objective == "ID-Booth" else None)


@pytest.fixture
def world(tmp_path, tiny_base, monkeypatch):
    """LoRAs of two people, their photos; the scripts run in this process, training is played."""
    for number, name in enumerate(("ID_1", "ID_2")):
        make_tiny_lora(tmp_path / "loras/ID-Booth" / name / "checkpoint-1-6", tiny_base, seed=number)
        for photo in range(2):
            picture = np.full((64, 64, 3), (200 - 9 * photo, 90 * number, 10), np.uint8)
            save_png(tmp_path / "faces" / name / "images" / f"{photo}.png", picture)
    (tmp_path / "faces/attributes.csv").write_text("identity,gender\nID_1,M\nID_2,F\n")
    inference = InferenceConfig(
        lora_folder=str(tmp_path / "loras"),
        source_folder=str(tmp_path / "faces"),
        output_folder=str(tmp_path / "samples"),
        base_model=str(tiny_base),
        resolution=64,
        steps=1,
        precision="fp32",
        contact_sheets=False,
    )
    evaluation = EvaluationConfig(
        real_folder=str(tmp_path / "faces"),
        pack="loss",
        encoders=("pixels",),
        replicates=20,
        verification_replicates=20,
        nearest_neighbours=1,
    )
    options = dict(images=2, counts=(3,), rows=("base", "base-no-negative", "no-prior", "3"))
    options |= dict(no_prior_folder=str(tmp_path / "no prior"), output_folder=str(tmp_path / "out"))
    for kind, of in (("inference_config", inference), ("evaluation_config", evaluation)):
        options[kind] = str(tmp_path / f"{kind}.py")
        (tmp_path / f"{kind}.py").write_text(
            f"from {type(of).__module__} import {type(of).__name__}\nconfig = {of!r}\n"
        )
    config = AblationConfig(**options, train_config=str(PROJECT_ROOT / "configs/train_mini.py"))
    (tmp_path / "ablation.py").write_text(
        f"from configs.ablation_config import AblationConfig\nconfig = {config!r}\n"
    )
    monkeypatch.setattr(
        "evaluation.comparison.FaceAnalyser", lambda pack, **_: ColourAnalyser(tmp_path, pack)
    )
    calls = []

    def run_python(*arguments):
        calls.append(arguments)
        words = [str(word) for word in arguments]
        if "train_id_booth.py" in words:
            for name in ("ID_1", "ID_2"):
                folder = tmp_path / "no prior/DreamBooth" / name / "checkpoint-1-6"
                make_tiny_lora(folder, tiny_base, seed=9)
        elif "inference_id_booth.py" in words:
            inference_id_booth.main(words[1:])
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        else:
            evaluate.main(words[2:])

    monkeypatch.setattr(ablation, "run_python", run_python)
    return tmp_path, calls


def test_rows_are_sampled_evaluated_and_put_into_one_table(world):
    folder, calls = world
    assert ablation.main(["--config", str(folder / "ablation.py")]) == 0
    scripts = [call[0] if call[0] != "-m" else call[1] for call in calls]
    both = ["inference_id_booth.py", "evaluation.evaluate"]
    assert scripts == [*both, *both, "train_id_booth.py", *both, *both]
    table = read_json(folder / "out/ablation.json")
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows)[0] == "real photos" and len(rows) == 5
    base, longer = rows["base prompt"], rows["whole prompt, 3 images"]
    assert base["faces/images"] == 4 and longer["faces/images"] == 6
    own = read_json(folder / "out/base/results.json")
    similarity = next(t for t in own["tables"] if t["name"] == "identity_recogniser_similarity")
    assert base["identity_similarity/similarity"] == similarity["rows"][1]["similarity"]
    prompts = (folder / "samples/FacePortrait_Photo_2_NoNegative/ID-Booth/metadata.jsonl").read_text()
    assert '"negative_prompt": ""' in prompts and "background" not in prompts.split('"prompt": "')[1][:60]
    assert (folder / "samples/FacePortrait_Photo_2_Gender_Pose_Background_NoPrior/DreamBooth").is_dir()
    # The same command again evaluates nothing; a new sample is evaluated anew.
    calls.clear()
    ablation.main(["--config", str(folder / "ablation.py"), "--rows", "base"])
    assert [call[0] for call in calls] == ["inference_id_booth.py"]
    assert len(read_json(folder / "out/ablation.json")["rows"]) == 2


def test_refusals(world):
    folder, _ = world
    with pytest.raises(UserError, match="rows: no 'age'; there are base, background"):
        ablation.main(["--config", str(folder / "ablation.py"), "--rows", "age"])
    config = load_config(folder / "ablation.py", (), AblationConfig)
    with pytest.raises(UserError, match="no row is evaluated yet"):
        ablation.ablation_section(config)
