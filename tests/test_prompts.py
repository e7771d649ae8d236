"""The published prompt grammar, its draws, and the attributes."""

from collections import Counter

import pytest

from id_booth.prompts import (
    BACKGROUNDS,
    Attributes,
    load_attributes,
    portrait_prompt,
    prompts_for_identity,
)
from utils.errors import UserError

WOMAN = Attributes("female", "old")


def backgrounds(prompts):
    return [prompt.background for prompt in prompts]


def test_sentences_of_the_published_grammar():
    assert portrait_prompt("portrait", "", "male", "beach") == (
        "face portrait photo of male sks person, beach background"
    )
    assert portrait_prompt("side-portrait", "middle-aged", "female", "night club") == (
        "face side-portrait photo of middle-aged female sks person, night club background"
    )
    assert portrait_prompt("portrait", "", "", "") == "face portrait photo of sks person"


def test_the_21_set_is_two_rounds_of_backgrounds_and_one_without():
    prompts = prompts_for_identity("ID_1", WOMAN, "21")
    assert Counter(backgrounds(prompts)) == Counter(BACKGROUNDS * 2 + ("",))
    assert [prompt.index for prompt in prompts] == list(range(21))
    assert all("female sks person" in prompt.text for prompt in prompts)


def test_the_100_set_is_ten_rounds_and_none_without():
    assert Counter(backgrounds(prompts_for_identity("ID_1", WOMAN, "100"))) == Counter(BACKGROUNDS * 10)


def test_first_ten_of_the_100_set_show_all_backgrounds():
    assert set(backgrounds(prompts_for_identity("ID_3", WOMAN, "100"))[:10]) == set(BACKGROUNDS)


def test_age_background_set_has_every_pair_once():
    prompts = prompts_for_identity("ID_1", WOMAN, "age-background-44")
    assert len({(prompt.age, prompt.background) for prompt in prompts}) == len(prompts) == 44


def test_no_dangling_comma_without_background():
    for prompt in prompts_for_identity("ID_1", WOMAN, "21"):
        assert prompt.text.endswith(" background" if prompt.background else "sks person")


def test_half_of_the_poses_are_side_portraits():
    prompts = prompts_for_identity("ID_1", WOMAN, "1000")
    side = sum(prompt.pose == "side-portrait" for prompt in prompts)
    # Binomial(1000, 1/2): six standard deviations are 95.
    assert abs(side - 500) < 95
    assert all(("side-portrait" in prompt.text) == (prompt.pose == "side-portrait") for prompt in prompts)


def test_draws_depend_on_identity_and_seed_and_repeat():
    first, again = (prompts_for_identity("ID_1", WOMAN, "21", seed=5) for _ in range(2))
    assert first == again
    assert backgrounds(prompts_for_identity("ID_2", WOMAN, "21", seed=5)) != backgrounds(first)
    assert backgrounds(prompts_for_identity("ID_1", WOMAN, "21", seed=6)) != backgrounds(first)


def test_leaving_one_aspect_out_keeps_the_others():
    full = prompts_for_identity("ID_1", WOMAN, "21")
    plain = prompts_for_identity("ID_1", None, "21", use_gender=False, use_background=False)
    assert [prompt.pose for prompt in full] == [prompt.pose for prompt in plain]
    assert {prompt.text for prompt in plain} == {
        "face portrait photo of sks person",
        "face side-portrait photo of sks person",
    }


def test_age_of_the_person_or_varied():
    own = prompts_for_identity("ID_1", WOMAN, "21", use_age="attribute")
    assert all("photo of old female sks person" in prompt.text for prompt in own)
    varied = prompts_for_identity("ID_1", WOMAN, "100", use_age="varied")
    assert {prompt.age for prompt in varied} == {"", "young", "middle-aged", "old"}
    assert all("  " not in prompt.text for prompt in varied)


@pytest.mark.parametrize("attributes", [None, Attributes(None, "old")])
def test_missing_gender_names_identity_and_way_out(attributes):
    with pytest.raises(UserError, match=r"ID_9: gender is not known; add it to attributes\.csv"):
        prompts_for_identity("ID_9", attributes, "21")


def test_free_prompts_from_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("# two\n{gender} {subject} on a boat\n\nphoto of {age} sks person\n")
    prompts = prompts_for_identity("ID_1", WOMAN, str(tmp_path / "p.txt"), use_gender=False)
    assert [p.text for p in prompts] == ["female sks person on a boat", "photo of old sks person"]
    with pytest.raises(UserError, match="ID_2: age is not known"):
        prompts_for_identity("ID_2", Attributes("male"), str(tmp_path / "p.txt"), use_gender=False)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", b"a {name} person\n", "no placeholder {name}"),
        ("p.txt", b"\xff\xfe\x00", "not readable as text"),
        ("p.txt", b"# nothing\n", "holds no prompts"),
        ("p.json", b'{"a": 1}', "holds no prompts"),
        ("p.json", b"[1, 2", "not readable as JSON"),
    ],
)
def test_broken_prompt_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prompts_for_identity("ID_1", WOMAN, str(tmp_path / name))


@pytest.mark.parametrize("prompt_set", ["0", "-3", "twenty", "2.5", ""])
def test_unknown_prompt_set(prompt_set):
    with pytest.raises(UserError, match="prompt_set"):
        prompts_for_identity("ID_1", WOMAN, prompt_set)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "identity,gender,age\nID_1,M,29\nID_2,Female,\n"),
        ("a.csv", "\ufeffIdentity;Gender;Age\nID_1;male;young\nID_2;f;\n"),
        ("a.json", '{"ID_1": {"gender": "M", "age": 29}, "ID_2": {"gender": "F"}}'),
        ("a.json", '[{"identity": "ID_1", "gender": "m", "age": 9}, {"identity": "ID_2", "gender": "f"}]'),
    ],
)
def test_attribute_files(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_attributes(tmp_path / name) == {
        "ID_1": Attributes("male", "young"),
        "ID_2": Attributes("female", None),
    }


def test_published_gender_dictionary(tmp_path):
    (tmp_path / "g.json").write_text('{"ID_1": "M", "ID_2": "F"}')
    assert load_attributes(tmp_path / "g.json")["ID_2"] == Attributes("female", None)


def test_years_become_words(tmp_path):
    (tmp_path / "a.csv").write_text("identity,age\na,29\nb,30\nc,55\nd,56\n")
    ages = [person.age for person in load_attributes(tmp_path / "a.csv").values()]
    assert ages == ["young", "middle-aged", "middle-aged", "old"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("name,gender\nID_1,M\n", "no column 'identity'"),
        ("identity,gender\nID_1,X\n", "gender of ID_1 is 'X'"),
        ("identity,gender\nID_1,M\nID_1,F\n", "ID_1 stands there twice"),
        ("identity,gender\n,M\n", "a row without identity"),
        ("identity,age\nID_1,ancient\n", "age of ID_1 is 'ancient'"),
        ("", "no column 'identity'"),
    ],
)
def test_broken_attribute_files(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        load_attributes(tmp_path / "a.csv")
