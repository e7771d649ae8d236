"""LoRAs to a hub that is not there: what is sent, where, and what is refused before anything is sent."""

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file

from configs.train_config import TrainConfig
from id_booth.training import model_card as hub
from tests.test_consent import give
from tests.tiny_base import make_tiny_lora
from utils.errors import UserError
from utils.files import atomic_write_json

LORA = "pytorch_lora_weights.safetensors"
SENT = {LORA, "training_config.json", "README.md"}
SECRET = "hf_" + "s" * 34


class NotThere(errors.RepositoryNotFoundError):
    """As the library raises it, without an answer of a server."""

    def __init__(self, repo):
        Exception.__init__(self, f"no {repo}")


class Hub:
    """Stands for huggingface_hub.HfApi: repositories in memory, with all that was sent."""

    def __init__(self, folder):
        self.folder, self.repositories, self.calls, self.down = folder, {}, [], set()

    def add(self, repo, private, **files):
        self.repositories[repo] = {"private": private, "files": {name: data for name, data in files.items()}}

    def reach(self, repo):
        validate_repo_id(repo)
        if any(word in repo for word in self.down):
            raise ConnectionError("no network")
        if repo not in self.repositories:
            raise NotThere(repo)
        return self.repositories[repo]

    def repo_info(self, repo_id):
        self.calls.append(("look", repo_id))
        found = self.reach(repo_id)
        siblings = [SimpleNamespace(rfilename=name) for name in found["files"]]
        return SimpleNamespace(private=found["private"], siblings=siblings)

    def hf_hub_download(self, repo_id, filename):
        path = self.folder / "downloaded"
        path.write_bytes(self.reach(repo_id)["files"][filename])
        return str(path)

    def create_repo(self, repo_id, private, exist_ok):
        assert repo_id not in self.repositories or exist_ok
        self.calls.append(("create", repo_id))
        self.add(repo_id, private, **{".gitattributes": b""})

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        self.calls.append(("upload", repo_id))
        names = sorted(path.name for path in folder_path.iterdir())
        assert set(allow_patterns) == set(names) == SENT and commit_message == "checkpoint-1-2"
        self.reach(repo_id)["files"] |= {name: (folder_path / name).read_bytes() for name in names}

    def sent(self):
        """{repository: {file name: bytes}} of what was uploaded."""
        uploaded = {repo for what, repo in self.calls if what == "upload"}
        return {repo: self.repositories[repo]["files"] for repo in uploaded}


@pytest.fixture
def api(monkeypatch, tmp_path):
    fake = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


NAMES = ("ID_1", "Žiga", "Šiga", "李")


@pytest.fixture
def trained(tmp_path, tiny_base):
    """LoRAs of some people who all consented to publishing."""
    for name in NAMES:
        give(tmp_path / "faces", name)
        add_lora(tmp_path / "out/ID-Booth" / name / "checkpoint-1-2", tiny_base, name)
    return TrainConfig(
        source_folder=str(tmp_path / "faces"),
        output_folder=str(tmp_path / "out"),
        hub_namespace="me",
        push_to_hub=True,
        require_consent=True,
    )


def add_lora(folder, base, name):
    """A checkpoint as training leaves it, with a file that is none of the hub's business."""
    record = {
        "base_model": "org/stable-diffusion-2-1-base",
        "objective": "ID-Booth",
        "identity": name,
        "seed": 0,
        "instance_prompt": 'photo of "sks" person',
        "config": {"lora_rank": 4, "pack": "/home/bob/lab/pack"},
        "command": f"train.py --source-folder /home/bob/lab --hub-token {SECRET}",
    }
    make_tiny_lora(folder, base)
    save_file(load_file(folder / LORA), folder / LORA, metadata={"identity": name})
    for place in (folder, folder.parent):
        atomic_write_json(place / "training_config.json", record)
    (folder / "secret.txt").write_text("not for the hub")


def rows(*names):
    return [
        {
            "identity": name,
            "objective": "ID-Booth",
            "status": "done",
            "detail": "checkpoint-1-2",
            "minutes": "",
        }
        for name in names
    ]


def repo(name):
    return hub.repository_name("me", "ID-Booth", name)


def test_each_person_gets_a_private_repository_with_a_card(trained, api):
    assert hub.push_trained(trained, rows(*NAMES)) == []
    assert set(api.sent()) == {repo(name) for name in NAMES} and len(api.sent()) == len(NAMES)
    assert all(found["private"] is True for found in api.repositories.values())
    whats = [what for what, _ in api.calls]
    assert whats.index("create") > max(i for i, what in enumerate(whats) if what == "look")
    for name in NAMES:
        files = api.sent()[repo(name)]
        assert (
            set(files) == {*SENT, ".gitattributes"}
            and json.loads(files["training_config.json"])["identity"] == name
        )
        card = files["README.md"].decode()
        header = yaml.safe_load(card.split("---")[1])
        assert header["base_model"] == "org/stable-diffusion-2-1-base" and header["license"] == "openrail++"
        assert header["instance_prompt"] == 'photo of "sks" person'
        assert "train, generate, publish: research on &lt;b&gt;faces" in card and "until 2099-12-31" in card
        compile(card.split("```python")[1].split("```")[0], "card", "exec")
        assert json.loads(card.split("```json")[1].split("```")[0])["config"]["lora_rank"] == 4


def test_nothing_of_the_machine_or_of_who_consented_is_sent(trained, api):
    hub.push_trained(trained, rows(*NAMES))
    sent = b"".join(data for files in api.sent().values() for data in files.values())
    for word in ("form 17", "/home/", "bob", SECRET, "not for the hub", trained.output_folder, "<b>"):
        assert word.encode() not in sent, word


def test_the_second_upload_goes_to_the_same_repositories(trained, api):
    hub.push_trained(trained, rows(*NAMES))
    assert hub.push_trained(trained, rows(*NAMES)) == []
    assert [what for what, _ in api.calls].count("create") == len(NAMES)


LETTERS = [
    "ID_1",
    "ID_1/",
    "id_1",
    "Žiga",
    "Šiga",
    "Ziga",
    "李",
    "王",
    "Ana K",
    "Ana-K",
    "../../x",
    "ü ß",
    "-.-",
    "",
]


def test_no_two_people_share_a_name():
    long = ["x" * 120 + end for end in "AB"]
    names = [repo(name) for name in LETTERS + long]
    names += [hub.repository_name("me", "ID-Booth-a", "b"), hub.repository_name("me", "ID-Booth", "a-b")]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        validate_repo_id(name)
    assert repo("ID_1").startswith("me/ID-Booth-ID_1-") and repo("Žiga").startswith("me/ID-Booth-Ziga-")
    assert repo("ID_1") == repo("ID_1")


def test_two_loras_of_one_name_are_both_refused(trained, api, monkeypatch):
    monkeypatch.setattr(hub, "digest", lambda objective, identity: "0" * 64)
    problems = hub.push_trained(trained, rows("ID_1", "Žiga", "Ziga"))
    assert [problem["identity"] for problem in problems] == ["Žiga", "Ziga"]
    assert "would be the repository of two LoRAs" in problems[0]["detail"]
    assert list(api.sent()) == [repo("ID_1")]


OURS = hub.card_mark("ID-Booth", "ID_1").encode()
THERE = [
    ("public", False, {"README.md": OURS}, "is public, and hub_public is off"),
    ("public and empty", False, {".gitattributes": b""}, "is public, and hub_public is off"),
    ("of unknown privacy", None, {"README.md": OURS}, "is public, and hub_public is off"),
    ("somebody else's", True, {"README.md": b"# my model"}, "is not of this LoRA"),
    ("without a card", True, {"model.safetensors": b""}, "is not of this LoRA"),
    (
        "of another person",
        True,
        {"README.md": hub.card_mark("ID-Booth", "x").encode()},
        "is not of this LoRA",
    ),
]


@pytest.mark.parametrize("what, private, files, message", THERE, ids=[case[0] for case in THERE])
def test_repositories_that_nothing_goes_into(trained, api, what, private, files, message):
    api.add(repo("ID_1"), private, **files)
    problems = hub.push_trained(trained, rows("ID_1", "Žiga"))
    assert [problem["identity"] for problem in problems] == ["ID_1"] and message in problems[0]["detail"]
    assert list(api.sent()) == [repo("Žiga")] and api.repositories[repo("ID_1")]["files"] == files


@pytest.mark.parametrize(
    "private, files, public",
    [
        (True, {"README.md": OURS}, False),
        (True, {".gitattributes": b""}, False),
        (False, {"README.md": OURS}, True),
    ],
)
def test_repositories_that_are_ours(trained, api, private, files, public):
    api.add(repo("ID_1"), private, **files)
    trained.hub_public = public
    assert hub.push_trained(trained, rows("ID_1")) == []
    assert set(api.sent()[repo("ID_1")]) >= SENT and ("create", repo("ID_1")) not in api.calls


def link_weights(folder):
    target = folder.parent / "elsewhere.safetensors"
    (folder / LORA).rename(target)
    (folder / LORA).symlink_to(target)


def link_record(folder):
    (folder / "training_config.json").unlink()
    (folder / "training_config.json").symlink_to(folder.parent / "training_config.json")


def link_checkpoint(folder):
    folder.rename(folder.parent / "real")
    folder.symlink_to(folder.parent / "real")


def link_identity(folder):
    folder.parent.rename(folder.parents[1] / "real")
    folder.parent.symlink_to(folder.parents[1] / "real")


@pytest.mark.parametrize("link", [link_weights, link_record, link_checkpoint, link_identity])
def test_nothing_is_uploaded_through_links(trained, api, tmp_path, link):
    link(tmp_path / "out/ID-Booth/ID_1/checkpoint-1-2")
    (problem,) = hub.push_trained(trained, rows("ID_1"))
    assert "is a link, and nothing is uploaded through links" in problem["detail"] and not api.sent()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"until": "2020-01-01"}, "consent ended on 2020-01-01"),
        ({"purpose": ["train", "generate"]}, "purpose allows train and generate, not publish"),
        ({"purpose": "publication"}, "purpose allows train and generate, not publish"),
        ({"withdrawn": True}, "consent was withdrawn"),
    ],
)
def test_no_upload_without_consent_to_publish(trained, api, tmp_path, changes, message):
    give(tmp_path / "faces", "ID_1", **changes)
    (problem,) = hub.push_trained(trained, rows("ID_1"))
    assert message in problem["detail"] and problem["status"] == "failed" and not api.calls


def test_a_lora_of_somebody_else_in_the_folder_is_not_uploaded(trained, api, tmp_path):
    """ID_2, who did not consent, under the name of ID_1, who did."""
    shutil.rmtree(tmp_path / "out/ID-Booth/ID_1")
    shutil.copytree(tmp_path / "out/ID-Booth/Žiga", tmp_path / "out/ID-Booth/ID_1")
    (problem,) = hub.push_trained(trained, rows("ID_1"))
    assert "is a LoRA of 'Žiga', in the folder of 'ID_1'" in problem["detail"] and not api.calls
    file = tmp_path / "out/ID-Booth/ID_1/checkpoint-1-2" / LORA
    save_file(load_file(file), file, metadata={"identity": "ID_1"})
    (problem,) = hub.push_trained(trained, rows("ID_1"))
    assert "is of another training" in problem["detail"] and not api.calls


def test_a_broken_network_stops_one_upload(trained, api):
    api.down = {"Ziga"}
    (problem,) = hub.push_trained(trained, rows(*NAMES))
    assert problem["identity"] == "Žiga" and "ConnectionError: no network" in problem["detail"]
    assert len(api.sent()) == len(NAMES) - 1


EVIL = "x` <img src=//evil.example/p.png> ```\n# H [c](http://evil.example) \"'"


def test_records_are_text_in_the_card():
    record = {
        "base_model": EVIL,
        "objective": "ID-Booth",
        "identity": EVIL,
        "instance_prompt": EVIL + '")\nimport os',
        "config": {"note": EVIL},
    }
    consent = SimpleNamespace(purpose=("publish",), text=EVIL, until="2099-12-31")
    card = hub.model_card(record, "me/x", consent)
    python = card.split("```python\n")[1].split("\n```\n")[0]
    compile(python, "card", "exec")
    assert len(python.splitlines()) == 6 and "\nimport os" not in python
    assert yaml.safe_load(card.split("---")[1])["instance_prompt"].startswith("x` <img")
    prose = (
        card.split("---", 2)[2].split("```python")[0] + card.split("## Consent")[1].split("## Training")[0]
    )
    assert "<img" not in prose and "http://evil" not in prose and "\n# H" not in prose


def test_upload_needs_a_namespace_and_consent():
    with pytest.raises(UserError, match="push_to_hub: needs hub_namespace"):
        TrainConfig(push_to_hub=True, hub_namespace="me").check()
