"""Consent: what is one, until when, for what, whose; and that LoRAs stay with the person they are of."""

import datetime
import json
import shutil

import pytest

from arcface_files.people import identity_at
from id_booth.consent import check_consent, consent_file, known_consent, read_consent
from id_booth.diffusion.lora_files import check_person, person_of
from tests.tiny_base import make_tiny_lora
from utils.errors import UserError
from utils.files import atomic_write_json
from utils.progress import log_once

GIVEN = {
    "who": "form 17",
    "purpose": ["train", "generate", "publish"],
    "text": "research on <b>faces</b> | biometrics",
    "until": "2099-12-31",
}


def give(root, name, **changes):
    """Write a consent.json; a change to None leaves the field out."""
    identity = identity_at(root, name)
    identity.images_dir.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in {**GIVEN, **changes}.items() if value is not None}
    atomic_write_json(consent_file(identity), content)
    return identity


def test_consent_in_both_nestings(tmp_path):
    found = check_consent(give(tmp_path / "a", "ID_1"), "publish")
    assert found.public() == {
        "purpose": ["train", "generate", "publish"],
        "text": GIVEN["text"],
        "until": "2099-12-31",
        "sha256": found.digest,
    }
    (tmp_path / "b/images/ID_1").mkdir(parents=True)
    assert check_consent(give(tmp_path / "b", "ID_1"), "train") == found
    assert (tmp_path / "b/consent/ID_1.json").is_file()


def test_the_hash_is_of_what_may_be_published_and_of_the_person(tmp_path):
    first = read_consent(give(tmp_path, "ID_1")).digest
    assert read_consent(give(tmp_path, "ID_1", who="somebody else's form")).digest == first
    others = [read_consent(give(tmp_path, "ID_2")), read_consent(give(tmp_path, "ID_1", until="2098-12-31"))]
    assert len({first, *(other.digest for other in others)}) == 3


def test_consent_holds_to_the_end_of_its_last_day_in_utc(tmp_path, monkeypatch):
    identity = give(tmp_path, "ID_1", until="2026-05-31")
    assert check_consent(identity, "train", datetime.date(2026, 5, 31))
    with pytest.raises(UserError, match="consent ended on 2026-05-31; renew it or leave ID_1 out"):
        check_consent(identity, "train", datetime.date(2026, 6, 1))
    asked = []

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            asked.append(tz)
            return super().now(tz)

    monkeypatch.setattr("id_booth.consent.datetime.datetime", Clock)
    with pytest.raises(UserError, match="ended"):
        check_consent(give(tmp_path, "ID_1", until="2020-05-31"), "train")
    assert asked == [datetime.UTC]


@pytest.mark.parametrize(
    "purpose, allowed",
    [
        (["train", "generate", "publish"], {"train", "generate", "publish"}),
        (["generate", "train", "train"], {"train", "generate"}),
        (["publish"], {"publish"}),
        ([], set()),
        ("research on faces", {"train", "generate"}),
        ("publish", {"train", "generate"}),
    ],
)
def test_what_a_purpose_allows(tmp_path, purpose, allowed):
    identity = give(tmp_path, "ID_1", purpose=purpose)
    for name in ("train", "generate", "publish"):
        if name in allowed:
            assert name in check_consent(identity, name).purpose
        else:
            with pytest.raises(UserError, match=f"purpose allows .*, not {name}; ask ID_1"):
                check_consent(identity, name)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "not found, and consent is required"),
        ([], "not a consent"),
        ({}, "who is missing"),
        ({**GIVEN, "who": " "}, "who is missing or empty"),
        ({**GIVEN, "purpose": " "}, "purpose is missing or empty"),
        ({**GIVEN, "purpose": ["train", "sell"]}, "purpose is .*out of train, generate, publish"),
        ({**GIVEN, "purpose": [["train"]]}, "purpose is"),
        ({**GIVEN, "purpose": {"train": True}}, "purpose is"),
        ({**GIVEN, "text": 5}, "text is missing or empty"),
        ({**GIVEN, "until": "soon"}, "not a date such as"),
        ({**GIVEN, "until": 2030}, "not a date"),
        ({**GIVEN, "until": None}, "not a date"),
        ({**GIVEN, "until": "20301231"}, "not a date"),
        ({**GIVEN, "until": "2030-W01"}, "not a date"),
        ({**GIVEN, "until": " 2030-12-31"}, "not a date"),
        ({**GIVEN, "until": "2030-12-31\n"}, "not a date"),
        ({**GIVEN, "until": "2030-12-31T00:00"}, "not a date"),
        ({**GIVEN, "until": "2030-02-30"}, "not a date"),
        ({**GIVEN, "until": "２０３０-12-31"}, "not a date"),
        ("{", "not a consent"),
    ],
)
def test_what_is_no_consent(tmp_path, content, message):
    identity = give(tmp_path, "ID_1")
    if content is None:
        consent_file(identity).unlink()
    else:
        atomic_write_json(consent_file(identity), content)
    with pytest.raises(UserError, match=message) as caught:
        check_consent(identity, "train")
    assert "\n" not in str(caught.value)
    assert known_consent(identity, False, "train") is None


@pytest.mark.parametrize("withdrawn", [True, "2026-01-01", "2999-01-01", "yes", 1, {}])
def test_withdrawn_is_withdrawn_required_or_not(tmp_path, withdrawn):
    identity = give(tmp_path, "ID_1", withdrawn=withdrawn)
    for required in (True, False):
        with pytest.raises(UserError, match="consent was withdrawn; leave ID_1 out"):
            known_consent(identity, required, "train")
    atomic_write_json(consent_file(identity), {"withdrawn": withdrawn})
    with pytest.raises(UserError, match="withdrawn"):
        known_consent(identity, False, "generate")


@pytest.mark.parametrize("withdrawn", [None, False])
def test_not_withdrawn(tmp_path, withdrawn):
    identity = give(tmp_path, "ID_1")
    atomic_write_json(consent_file(identity), {**GIVEN, "withdrawn": withdrawn})
    assert check_consent(identity, "publish")


def test_a_link_to_somebody_elses_consent_is_refused(tmp_path):
    first, second = give(tmp_path, "ID_1"), give(tmp_path, "ID_2")
    for target in (consent_file(first), tmp_path / "nowhere"):
        consent_file(second).unlink()
        consent_file(second).symlink_to(target)
        with pytest.raises(UserError, match="ID_2/consent.json: is a link"):
            check_consent(second, "train")
    (tmp_path / "b/images/ID_2").mkdir(parents=True)
    identity = give(tmp_path / "b", "ID_2")
    consent_file(identity).unlink()
    consent_file(identity).symlink_to(consent_file(first))
    with pytest.raises(UserError, match="consent/ID_2.json: is a link"):
        check_consent(identity, "train")


@pytest.mark.parametrize("name", ["..", "A/../B", "/etc", "", ".hidden", "a\x1b[31m", "a\nb"])
def test_a_name_leads_to_no_other_folder(tmp_path, name):
    with pytest.raises(UserError, match="not usable as a folder name"):
        identity_at(tmp_path, name)


def test_going_on_without_a_valid_consent_is_said_once(tmp_path, capsys):
    log_once.cache_clear()
    for _ in range(2):
        assert known_consent(give(tmp_path, "ID_1", until="2020-01-01"), False, "train").until == "2020-01-01"
        assert known_consent(give(tmp_path, "ID_2", purpose=["train"]), False, "generate")
        assert known_consent(give(tmp_path, "ID_3", until="x"), False, "train") is None
        assert known_consent(identity_at(tmp_path, "ID_4"), False, "train") is None
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 3 and all("require_consent is off" in line for line in printed)
    assert "ended on 2020-01-01" in printed[0] and "not generate" in printed[1] and "not a date" in printed[2]


# --------------------------------------------------------------------------------------- whose LoRA it is


def named_lora(folder, base, person):
    """A LoRA whose file names its person, as training writes it; None names nobody."""
    from safetensors.torch import load_file, save_file

    file = make_tiny_lora(folder, base) / "pytorch_lora_weights.safetensors"
    save_file(load_file(file), file, metadata={"identity": person} if person else {"format": "pt"})
    return folder


def test_a_lora_names_its_person_in_its_file_first_and_in_the_record_second(tmp_path, tiny_base):
    folder = named_lora(tmp_path / "ID_1/checkpoint-1-2", tiny_base, "Žiga")
    assert person_of(folder) == "Žiga"
    (folder.parent / "training_config.json").write_text(json.dumps({"identity": "ID_1"}))
    with pytest.raises(UserError, match="a LoRA of 'Žiga', in the folder of 'ID_1'"):
        check_person(folder, "ID_1")
    named_lora(folder, tiny_base, None)
    assert person_of(folder) == "ID_1"
    check_person(folder, "ID_1")
    with pytest.raises(UserError, match="a LoRA of 'ID_1', in the folder of 'ID_2'"):
        check_person(folder, "ID_2")
    (folder.parent / "training_config.json").unlink()
    assert person_of(folder) is None
    check_person(folder, "anybody")


def test_a_copied_folder_is_found_out(tmp_path, tiny_base):
    folder = named_lora(tmp_path / "ID_2/checkpoint-1-2", tiny_base, None)
    (folder / "training_config.json").write_text(json.dumps({"identity": "ID_2"}))
    shutil.copytree(tmp_path / "ID_2", tmp_path / "ID_1")
    with pytest.raises(UserError, match="a LoRA of 'ID_2'"):
        check_person(tmp_path / "ID_1/checkpoint-1-2", "ID_1")
