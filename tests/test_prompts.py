"""The published prompt grammar, its draws, and the attributes."""

import os
import unicodedata
from collections import Counter

import pytest

from id_booth.prompts import (
    BACKGROUNDS,
    Attributes,
    find_attributes_file,
    load_attributes,
    portrait_prompt,
    prompts_for_identity,
    read_prompt_file,
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
        ("p.json", b"[" * 100_000, "not readable as JSON"),
        ("p.json", b"[[]]", "holds no prompts"),
        ("p.json", b'["\\ud800"]', "characters that are no text"),
        ("p.json", b'["a\\u0000b"]', "characters that are no text"),
        ("p.txt", b"a\0b", "characters that are no text"),
    ],
)
def test_broken_prompt_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prompts_for_identity("ID_1", WOMAN, str(tmp_path / name))


@pytest.mark.parametrize(
    "prompt_set", ["0", "-3", "twenty", "2.5", "", "00", "²", "1²", "٣", "9" * 5000, "\0"]
)
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
    "content", ["name,gender\nID_1,M\n", "", "nonsense", "\0\0", "id\0entity,age\na,9\n", "\n" * 99]
)
def test_a_table_without_identities_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=r"a\.csv: no column 'identity'") as caught:
        load_attributes(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


HEAD, LONG = "identity,gender,age\nID_0,F,40\n", "x" * 200_000
BAD_ROWS = {
    "another gender": ("ID_1,X,", "ID_1: gender 'X', not male"),
    "another age": ("ID_1,M,ancient", "ID_1: age 'ancient', not young"),
    "age in other digits": ("ID_1,M,²٣", "ID_1: age"),
    "endless age": ("ID_1,M," + "9" * 5000, "ID_1: age '999"),
    "no identity": (",M,", "row 2: no identity"),
    "twice": ("ID_1,M,\nID_1,F,", "ID_1: stands there twice"),
    "three times": ("ID_1,M,\nID_1,F,\nID_1,M,", "ID_1: stands there twice"),
    "NUL": ("ID_1,male\0,", "ID_1: gender"),
    "field of 200 kB": (f"ID_1,{LONG},", "ID_1: field larger than"),
    "name of 200 kB": (f"{LONG},M,", "x: field larger than"),
    "age of 200 kB": (f"ID_1,M,{LONG}", "ID_1: field larger than"),
    "open quote": ('ID_1,"male,', "ID_1: unexpected end"),
    "open quote in front": ('"ID_1,male,', "ID_1: unexpected end"),
    "quote in the middle": ('ID_1,"ma"le,', "ID_1: '"),
    "escape sequences": ("ID_1,\x1b[2J,", "ID_1: gender"),
}


def test_a_mistyped_column_is_named(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("identity,Gendr,notes\nID_1,M,x\n")
    (tmp_path / "a.json").write_text('{"ID_1": {"gendr": "M", "notes": "x"}}')
    for name in ("a.csv", "a.json"):
        assert load_attributes(tmp_path / name) == {"ID_1": Attributes()}
        said = capsys.readouterr().err
        assert said.startswith(f"{tmp_path / name}: 'gendr' is not read; did you mean gender? Read are")
        assert said.count("\n") == 1


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_costs_one_person(tmp_path, capsys, name, mark):
    row, message = BAD_ROWS[name]
    text = (HEAD + row + "\nID_2,F,\nID_3,,29\n").replace(",", mark)
    (tmp_path / "a.csv").write_text(text)
    found = load_attributes(tmp_path / "a.csv")
    assert found == {
        "ID_0": Attributes("female", "middle-aged"),
        "ID_2": Attributes("female", None),
        "ID_3": Attributes(None, "young"),
    }
    said = capsys.readouterr().err
    assert message.replace(",", mark) in said or message in said
    assert said.count("\n") == 1 and "people whose rows are bad" in said and len(said) < 500


def test_many_bad_rows_are_one_line(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("identity,gender\n" + "".join(f"ID_{i},?\n" for i in range(5000)))
    assert load_attributes(tmp_path / "a.csv") == {}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "; 4995 others" in said and "ID_4" in said and "ID_5:" not in said


@pytest.mark.parametrize(
    "text",
    [
        '"identity","gender","notes"\n"ID_1","F","two\nlines, one comma"\n"ID_2","M",""\n',
        "Identity ;GENDER;x\r\n ID_1 ; f ;\r\n;;\r\n\r\nID_2;man\r\n",
        "age\tidentity\tgender\n\tID_1\twoman\textra\n\tID_2\tmale\n",
        '"","identity","gender","age"\n"1","ID_1","F",NA\n"2","ID_2","M",NA\n',
        '"identity";"gender";"age"\n"ID_1";"F";""\n"ID_2";"M";"NaN"\n',
        "sep=;\nidentity;gender;age\nID_1;girl;\nID_2;boy;n/a\n",
        '\n"sep=,"\n\nidentity,gender,age,,\nID_1,F,,,\n,,,,\nID_2,M,,,\n,,,,\n',
        'identity,gender,"age; years"\nID_1,F,9\nID_2,M,9\n',
        "identity,gender,age\rID_1,F,\rID_2,M,null\r",
    ],
)
def test_tables_as_spreadsheets_and_r_write_them(tmp_path, capsys, text):
    (tmp_path / "a.csv").write_text(text)
    expected = {"ID_1": Attributes("female", None), "ID_2": Attributes("male", None)}
    assert load_attributes(tmp_path / "a.csv") == expected and not capsys.readouterr().err


def test_years_with_a_decimal_comma(tmp_path):
    (tmp_path / "a.csv").write_text("identity;gender;age\nID_1;F;34,5\n")
    assert load_attributes(tmp_path / "a.csv") == {"ID_1": Attributes("female", "middle-aged")}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-be-sig"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_tables_and_prompts_in_the_encodings_of_others(tmp_path, encoding, form):
    if (encoding, form) == ("cp1252", "NFD"):
        pytest.skip("has no accents of their own")

    def write(name, text):
        mark = b"\xfe\xff" if encoding.endswith("be-sig") else b""
        text = unicodedata.normalize(form, text)
        (tmp_path / name).write_bytes(mark + text.encode(encoding.removesuffix("-sig") if mark else encoding))

    write("a.csv", "identity,gender\nJosé,M\n")
    write("a.json", '{"José": "M"}')
    write("p.txt", "# für alle\na face in a café\n")
    for name in ("a.csv", "a.json"):
        assert load_attributes(tmp_path / name) == {"José": Attributes("male", None)}
    (prompt,) = read_prompt_file(tmp_path / "p.txt")
    assert unicodedata.normalize("NFC", prompt) == "a face in a café"


@pytest.mark.parametrize(
    "place", ["tufts_gender_dict.json", "tfd/tufts_gender_dict.json", "tfd/attributes.csv"]
)
@pytest.mark.parametrize("source", ["tfd", "tfd/images"])
def test_the_table_is_found_by_itself(tmp_path, place, source):
    (tmp_path / "tfd/images").mkdir(parents=True)
    assert find_attributes_file(tmp_path / source) is None
    (tmp_path / place).write_text("{}")
    assert find_attributes_file(tmp_path / source) == tmp_path / place


@pytest.mark.parametrize("bad", ['["M"]', "5", "true", '{"gender": ["M"]}', '{"age": {}}', '{"age": 1e999}'])
def test_a_bad_entry_of_json_costs_one_person(tmp_path, capsys, bad):
    (tmp_path / "a.json").write_text(f'{{"ID_1": {bad}, "ID_2": "F"}}')
    assert load_attributes(tmp_path / "a.json") == {"ID_2": Attributes("female", None)}
    assert "people whose rows are bad" in capsys.readouterr().err
    (tmp_path / "a.json").write_text(f'[{bad}, {{"identity": "ID_2", "gender": "F"}}]')
    assert load_attributes(tmp_path / "a.json") == {"ID_2": Attributes("female", None)}


def test_an_entry_of_json_cannot_speak_of_somebody_else(tmp_path):
    (tmp_path / "a.json").write_text('{"ID_1": {"identity": "ID_2", "gender": "M"}}')
    assert load_attributes(tmp_path / "a.json") == {"ID_1": Attributes("male", None)}


@pytest.mark.parametrize("text", ["5", '"x"', "null", "[" * 100_000, "9" * 5000, "{", '{"a": 1', ""])
def test_json_that_is_no_table(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not") as caught:
        load_attributes(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_a_missing_table_or_a_pipe(tmp_path, name):
    with pytest.raises(UserError, match="not found"):
        load_attributes(tmp_path / name)
    if name == "a.csv":
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="not found"):
            load_attributes(tmp_path / name)
