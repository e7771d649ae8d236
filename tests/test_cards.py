"""The data card: what it says of which files, and what it takes from them as text."""

import ast
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from configs.inference_config import InferenceConfig
from id_booth.sampling.data_card import write_data_card
from id_booth.sampling.provenance import FIELDS, finish_metadata, make_record, png_chunks
from tests.test_consent import give
from utils.files import check_folder_name
from utils.images import save_png
from utils.text_tables import markdown_text


def add_sample(folder, method, name, number=0, **changes):
    """A sample with its record, black."""
    values = {field: "" for field in FIELDS if field != "digital_source_type"}
    values |= {
        "file_name": f"{name}/{number:03d}.png",
        "identity": name,
        "method": method,
        "steps": 30,
        "prompt": f"a <script>{name}</script>",
        "base_model": "org/stable-diffusion-2-1",
        "guidance": 5.0,
        "scheduler": "ddpm",
    }
    record = make_record(**values) | changes
    save_png(folder / method / values["file_name"], np.zeros((8, 8, 3), np.uint8), png_chunks(record))
    return folder / method / values["file_name"]


@pytest.fixture
def data_set(tmp_path):
    """A set of two methods, two people, one with consent."""
    for method in ("DreamBooth", "ID-Booth"):
        for name in ("ID_2", "ID_10"):
            add_sample(tmp_path / "set", method, name)
        finish_metadata(tmp_path / "set" / method)
    give(tmp_path / "faces", "ID_2")
    card(tmp_path / "set")
    return tmp_path / "set"


def card(folder):
    """Write the data card anew; its text."""
    write_data_card(InferenceConfig(source_folder=str(folder.parent / "faces")), folder)
    return (folder / "README.md").read_text()


def test_data_card_states_people_consent_prompts_models_and_use(data_set):
    text = (data_set / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "openrail++"
    assert [c["config_name"] for c in header["configs"]] == ["DreamBooth", "ID-Booth"]
    assert (
        "generated faces of 2 identities" in text and "**Every image in this data set is generated**" in text
    )
    assert "1 of 2 identities have a consent file; the earliest ends on 2099-12-31" in text
    assert "Of 1 no file allows to publish: do not pass on their images" in text
    assert "| ID\\_10 | no consent file |" in text and "org/stable-diffusion-2-1" in text
    assert "| ID\\_2 | train, generate, publish: research on &lt;b&gt;faces" in text
    assert "ddpm, 30 steps, guidance 5.0" in text and "Intended use" in text
    assert "form 17" not in text  # who consented stays with the photos
    assert "<script>" not in text and "<b>" not in text
    assert str(data_set.parent) not in text


def test_data_card_depends_on_the_files_alone(data_set):
    before = (data_set / "README.md").read_bytes()
    (data_set / "ID-Booth/metadata.jsonl").unlink()
    path = data_set / "DreamBooth/metadata.jsonl"
    path.write_text(path.read_text().replace("ID_2", "Forged"))
    card(data_set)
    assert (data_set / "README.md").read_bytes() == before


def photo(path):
    save_png(path, np.full((8, 8, 3), 9, np.uint8))


def linked_photo(path):
    photo(path.parents[3] / "faces/ID_2/images/a.png")
    path.symlink_to(path.parents[3] / "faces/ID_2/images/a.png")


def linked_folder(path):
    photo(path.parents[3] / "faces/ID_2/images/a.png")
    path.symlink_to(path.parents[3] / "faces/ID_2/images")


def torn_sample(path):
    add_sample(path.parents[2], path.parents[1].name, path.parent.name, 9)
    (path.parent / "009.png").rename(path)
    path.write_bytes(path.read_bytes()[:-20])


STRANGERS = [
    ("ID-Booth/ID_2/001.png", photo),
    ("ID-Booth/ID_2/a.jpg", lambda path: Image.new("RGB", (8, 8)).save(path)),
    ("ID-Booth/a.png", photo),
    ("contact_sheets/ID_2.jpg", lambda path: Image.new("RGB", (8, 8)).save(path)),
    ("ID-Booth/ID_2/deeper/001.png", photo),
    (".hidden/ID_2/001.png", photo),
    ("ID-Booth/ID_2/.001.png", photo),
    ("ID-Booth/ID_2/001.png", linked_photo),
    ("ID-Booth/ID_2/more", linked_folder),
    ("ID-Booth/ID_2/001.png", torn_sample),
    ("ID-Booth/ID_2/photos.zip", lambda path: path.write_bytes(b"PK")),
    ("ID-Booth/ID_2/metadata.jsonl", lambda path: path.write_text("{}")),
    ("faces.json", lambda path: path.write_text("{}")),
]


@pytest.mark.parametrize("name, make", STRANGERS, ids=[f"{n}-{m.__name__}" for n, m in STRANGERS])
def test_the_card_speaks_of_generated_images_alone(data_set, capsys, name, make):
    (data_set / name).parent.mkdir(parents=True, exist_ok=True)
    make(data_set / name)
    text = card(data_set)
    assert "Every image in this data set is generated" not in text
    assert "Do not pass this folder on as it is: 1 of its files carry no record" in text
    assert f"about them: {markdown_text(name)}." in text and "The 4 others are generated" in text
    assert f"(first: {name})" in capsys.readouterr().err
    (data_set / name).unlink()
    assert "Every image in this data set is generated" in card(data_set)


def test_our_own_notes_are_no_strangers(data_set):
    names = ("run.json", "summary.txt", "summary-0-of-3.json", ".batch/x.json", ".DS_Store")
    for name in (*names, "ID-Booth/.metadata.jsonl.lock", "ID-Booth/ID_2/._000.png"):
        (data_set / name).parent.mkdir(exist_ok=True)
        (data_set / name).write_text("x")
    assert "Every image in this data set is generated" in card(data_set)


def test_the_card_names_the_person_of_the_record(data_set):
    """A sample of ID_10 in the folder of ID_2 is ID_10's, and under ID_10's consent."""
    add_sample(data_set, "ID-Booth", "ID_2", 1, identity="ID_11")
    text = card(data_set)
    assert "faces of 3 identities" in text and "| ID\\_11 | no consent file |" in text


def test_withdrawn_consent_and_consent_to_less(data_set):
    give(data_set.parent / "faces", "ID_10", purpose=["train", "generate"], text=None)
    text = card(data_set)
    assert "| ID\\_10 | train, generate | 2099-12-31 |" in text and "Of 1 no file allows to publish" in text
    give(data_set.parent / "faces", "ID_10", withdrawn=True)
    text = card(data_set)
    assert "| ID\\_10 | **consent withdrawn: delete these images** |" in text
    assert "1 of 2 identities have a consent file; the earliest ends on 2099-12-31" in text
    for name in ("ID_2", "ID_10"):
        give(data_set.parent / "faces", name)
    assert "no file allows to publish" not in card(data_set)


def test_names_in_records_lead_to_no_other_folder(data_set, monkeypatch):
    opened = []

    def remember(root, name):
        check_folder_name(name)
        opened.append(name)

    monkeypatch.setattr("id_booth.sampling.data_card.identity_at", remember)
    monkeypatch.setattr("id_booth.sampling.data_card.read_consent", lambda *_: None)
    add_sample(data_set, "ID-Booth", "ID_2", identity="../../outside")
    card(data_set)
    assert set(opened) == {"ID_2", "ID_10"}


EVIL = "x` <img src=//evil.example/p.png> `\n\n<script>alert(1)</script>\n# H [c](http://evil.example)"


def test_records_are_text_in_the_card(data_set):
    changes = {field: EVIL for field in ("prompt", "negative_prompt", "base_model", "scheduler", "identity")}
    add_sample(data_set, "ID-Booth", "ID_2", **{**changes, EVIL: 1})
    renamed = data_set.with_name('se"); import os  # <b>')
    data_set.rename(renamed)
    text = card(renamed)
    example = ast.parse(text.split("```python\n")[1].split("```")[0])
    assert {node.module for node in ast.walk(example) if isinstance(node, ast.ImportFrom)} == {"datasets"}
    assert not [node for node in ast.walk(example) if isinstance(node, ast.Import)]
    assert "data_dir='se\"); import os  # <b>/ID-Booth'" in text
    prose = text.split("```python")[0] + text.split("```")[2]
    assert "<img" not in prose and "<script>" not in prose and "<b>" not in prose
    assert not re.search(r"https?://evil", prose) and "\n# H" not in prose
    assert len(re.findall(r"(?<!\\)\]\(", prose)) == 1  # the paper


def test_cards_name_no_place_of_the_machine(data_set):
    add_sample(data_set, "ID-Booth", "ID_2", base_model="/home/bob/models/base", scheduler="ddpm /srv/x/y")
    give(data_set.parent / "faces", "ID_2", text="as signed in /home/bob/forms/17.pdf")
    text = card(data_set)
    assert "/home/bob" not in text and "/srv" not in text and "as signed in 17.pdf" in text


def test_the_datasets_library_reads_a_method(data_set):
    datasets = pytest.importorskip("datasets")
    images = datasets.load_dataset("imagefolder", data_dir=str(data_set / "ID-Booth"), split="train")
    assert len(images) == 2 and {"image", "prompt", "seed", "identity"} <= set(images.column_names)
