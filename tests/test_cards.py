"""The data card, the model card and the upload (never a real one)."""

import json

import numpy as np
import pytest
import yaml

from configs.inference_config import InferenceConfig
from configs.train_config import TrainConfig
from id_booth.sampling.data_card import write_data_card
from id_booth.sampling.provenance import FIELDS, finish_metadata, make_record, png_chunks
from id_booth.training import model_card as hub
from tests.test_consent import give
from utils.errors import UserError
from utils.files import atomic_write_json, check_folder_name
from utils.images import save_png


@pytest.fixture
def data_set(tmp_path):
    """A set of two methods, two people, one with consent."""
    for method in ("DreamBooth", "ID-Booth"):
        for name in ("ID_2", "ID_10"):
            values = {field: "" for field in FIELDS if field != "digital_source_type"}
            values |= {
                "file_name": f"{name}/000.png",
                "identity": name,
                "method": method,
                "steps": 30,
                "prompt": f"a <script>{name}</script>",
                "base_model": "org/stable-diffusion-2-1",
                "guidance": 5.0,
                "scheduler": "ddpm",
            }
            record = make_record(**values)
            save_png(
                tmp_path / "set" / method / values["file_name"],
                np.zeros((8, 8, 3), np.uint8),
                png_chunks(record),
            )
        finish_metadata(tmp_path / "set" / method)
    give(tmp_path / "faces", "ID_2")
    write_data_card(InferenceConfig(source_folder=str(tmp_path / "faces")), tmp_path / "set")
    return tmp_path / "set"


def test_data_card_states_people_consent_prompts_models_and_use(data_set):
    text = (data_set / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "openrail++"
    assert [c["config_name"] for c in header["configs"]] == ["DreamBooth", "ID-Booth"]
    assert "generated faces of 2 identities" in text
    assert "1 of 2 identities have a consent file; the earliest ends on 2099-12-31" in text
    assert "| ID\\_10 | no consent file |" in text and "org/stable-diffusion-2-1" in text
    assert "ddpm, 30 steps, guidance 5.0" in text and "Intended use" in text
    assert "form 17" not in text  # who consented stays with the photos
    assert "<script>" not in text and "<b>" not in text
    assert str(data_set.parent) not in text


def test_data_card_depends_on_images_alone(data_set):
    before = (data_set / "README.md").read_bytes()
    write_data_card(InferenceConfig(source_folder=str(data_set.parent / "faces")), data_set)
    assert (data_set / "README.md").read_bytes() == before


def test_names_in_metadata_lead_to_no_other_folder(data_set, monkeypatch):
    opened = []

    def remember(root, name):
        check_folder_name(name)
        opened.append(name)

    monkeypatch.setattr("id_booth.sampling.data_card.identity_at", remember)
    monkeypatch.setattr("id_booth.sampling.data_card.read_consent", lambda *_: None)
    path = data_set / "ID-Booth/metadata.jsonl"
    path.write_text(path.read_text().replace('"identity": "ID_2"', '"identity": "../../outside"'))
    write_data_card(InferenceConfig(source_folder="faces"), data_set)
    assert set(opened) == {"ID_2", "ID_10"}


def test_the_datasets_library_reads_a_method(data_set):
    datasets = pytest.importorskip("datasets")
    images = datasets.load_dataset("imagefolder", data_dir=str(data_set / "ID-Booth"), split="train")
    assert len(images) == 2 and {"image", "prompt", "seed", "identity"} <= set(images.column_names)


# ------------------------------------------------------------------------------------------------ the hub


class FakeApi:
    """Stands for huggingface_hub.HfApi: remembers, and fails for one person."""

    calls = []

    def create_repo(self, repo, private, exist_ok):
        if "ID_3" in repo:
            raise ConnectionError("no network")
        FakeApi.calls.append(("create", repo, private))

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        FakeApi.calls.append(("folder", repo_id, folder_path.name, tuple(allow_patterns)))

    def upload_file(self, repo_id, path_or_fileobj, path_in_repo):
        FakeApi.calls.append(("file", repo_id, path_in_repo, path_or_fileobj.decode()))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Three people's LoRAs; ID_2 withdrew, ID_3 meets a broken network."""
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    record = {
        "base_model": "org/stable-diffusion-2-1-base",
        "objective": "ID-Booth",
        "seed": 0,
        "instance_prompt": "photo of sks person",
        "config": {"lora_rank": 4},
    }
    for name in ("ID_1", "ID_2", "ID_3"):
        give(tmp_path / "faces", name, **({"until": "2020-01-01"} if name == "ID_2" else {}))
        folder = tmp_path / "out/ID-Booth" / name / "checkpoint-1-2"
        atomic_write_json(folder / "training_config.json", {**record, "identity": name})
        (folder / "secret.txt").write_text("not for the hub")
    return TrainConfig(
        source_folder=str(tmp_path / "faces"),
        output_folder=str(tmp_path / "out"),
        hub_namespace="me",
        push_to_hub=True,
        require_consent=True,
    )


def rows():
    return [
        {
            "identity": f"ID_{i}",
            "objective": "ID-Booth",
            "status": "done",
            "detail": "checkpoint-1-2",
            "minutes": "",
        }
        for i in (1, 2, 3)
    ]


def test_upload_is_private_with_a_card_and_only_with_consent(trained):
    problems = hub.push_trained(trained, rows())
    assert [problem["identity"] for problem in problems] == ["ID_2", "ID_3"]
    assert "consent ended" in problems[0]["detail"] and "no network" in problems[1]["detail"]
    assert {call[1] for call in FakeApi.calls} == {"me/ID-Booth-ID_1"}
    assert ("create", "me/ID-Booth-ID_1", True) in FakeApi.calls
    assert FakeApi.calls[1][2:] == (
        "checkpoint-1-2",
        ("pytorch_lora_weights.safetensors", "training_config.json"),
    )
    card = FakeApi.calls[2][3]
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == "org/stable-diffusion-2-1-base" and header["license"] == "openrail++"
    assert "until 2099-12-31" in card and "form 17" not in card and "<b>" not in card
    assert json.loads(card.split("```json")[1].split("```")[0])["config"] == {"lora_rank": 4}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ID_1", "me/ID-Booth-ID_1"),
        ("../../x", "me/ID-Booth-x"),
        ("ü ß", "me/ID-Booth"),
        ("a" * 200, None),
    ],
)
def test_repository_names(name, expected):
    repo = hub.repository_name("me", "ID-Booth", name)
    assert expected is None or repo == expected
    assert len(repo) <= 99 and ".." not in repo and "--" not in repo


def test_upload_needs_a_namespace_and_consent():
    with pytest.raises(UserError, match="push_to_hub: needs hub_namespace"):
        TrainConfig(push_to_hub=True, hub_namespace="me").check()
