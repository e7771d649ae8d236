"""The prompts of an identity: the published grammar, free prompts, and the attributes they speak of.

Prompts are drawn once per identity from (seed, identity), so they are the same for every method and do not
depend on which other identities exist. Each aspect (background, pose, age) has its own random stream: an
ablation that leaves one out keeps the others as they were.
"""

import contextlib
import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.inference_config import NEGATIVE_PROMPT
from utils.errors import UserError, did_you_mean
from utils.files import read_json, read_text
from utils.identities import same_name
from utils.progress import log, log_once
from utils.seeding import derive_seed
from utils.text_tables import columns_of

PROMPTED = ("gender", "age", "background", "pose")  # what a prompt of the published grammar can say
BACKGROUNDS = (
    "forest",
    "city street",
    "beach",
    "office",
    "bus",
    "laboratory",
    "factory",
    "construction site",
    "hospital",
    "night club",
)
AGES = ("", "young", "middle-aged", "old")
AGE_BACKGROUND_SET = "age-background-44"
GENDERS = {word: "male" for word in ("m", "male", "man", "boy")}
GENDERS |= {word: "female" for word in ("f", "female", "woman", "girl")}
NOTHING = ("na", "n/a", "nan", "null", "none")  # empty cells of R, pandas and SQL
# Where numbers stand for ages; the prompts know three words.
YOUNG_BELOW, OLD_FROM = 30, 56
FIELDS = ("gender", "age")  # of a table of attributes, beside "identity"
BROKEN = object()  # key of what is wrong with a row


@dataclass(frozen=True)
class Attributes:
    """What prompts say of a person: "male" or "female", "young", "middle-aged" or "old"; None if unknown."""

    gender: str | None = None
    age: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One image to be made. ``background``, ``gender`` and ``age`` are "" where the prompt does not say."""

    text: str
    negative: str
    background: str
    pose: str
    gender: str
    age: str
    index: int


def prompts_for_identity(
    identity,
    attributes,
    prompt_set="21",
    seed=0,
    use_gender=True,
    use_pose=True,
    use_age="no",
    use_background=True,
    negative=NEGATIVE_PROMPT,
    subject="sks person",
):
    """The list of :class:`Prompt` of one identity.

    Args:
        identity: name; with ``seed`` it decides every draw.
        attributes: :class:`Attributes` of the identity, or None.
        prompt_set: a number, as "21" or "100" (the paper's sets), or "age-background-44" (all pairs of the
            four ages and the ten backgrounds plus none), or a file of free prompts, one a line.
        use_gender: name the gender before the subject; it must then be known.
        use_pose: write "side-portrait" for half of the images.
        use_age: "no"; "attribute" names the identity's own age, which must then be known; "varied" draws one
            of "", young, middle-aged, old for each image.
        use_background: set the person before one of ten backgrounds.
        negative: negative prompt.
        subject: the words the LoRA learned the person by.

    Raises:
        UserError: unknown set, broken prompt file, an attribute that is needed and not known.
    """
    attributes = attributes or Attributes()
    gender = need(attributes.gender, "gender", identity) if use_gender else ""
    own_age = need(attributes.age, "age", identity) if use_age == "attribute" else ""
    templates = None if is_grammar_set(prompt_set) else read_prompt_file(prompt_set)
    if templates is not None:
        texts = [fill_template(t, identity, attributes, subject) for t in templates]
        return [Prompt(text, negative, "", "", "", "", i) for i, text in enumerate(texts)]
    backgrounds, ages = draw_scene(prompt_set, seed, identity)
    side = np.random.default_rng(derive_seed("pose", seed, identity)).random(len(backgrounds)) < 0.5
    prompts = []
    for index, (background, drawn_age) in enumerate(zip(backgrounds, ages, strict=True)):
        background = background if use_background else ""
        age = drawn_age if use_age == "varied" or prompt_set == AGE_BACKGROUND_SET else own_age
        pose = "side-portrait" if use_pose and side[index] else "portrait"
        text = portrait_prompt(pose, age, gender, background, subject)
        prompts.append(Prompt(text, negative, background, pose, gender, age, index))
    return prompts


def portrait_prompt(pose, age, gender, background, subject="sks person"):
    """One sentence of the published grammar; empty parts leave neither gap nor comma."""
    words = " ".join(word for word in ("face", pose, "photo of", age, gender, subject) if word)
    return f"{words}, {background} background" if background else words


def published_sample(file):
    """(number, prompt) that the name of an official sample says, or of a crop of one; None for other names.

    5_0_face portrait photo of male sks person, .png; a flat crop has its label before.
    """
    found = re.fullmatch(r"(?:[0-9]+_)?([0-9]{1,9})_[0-9]+_([^0-9].*)", Path(file).stem)
    return (int(found[1]), found[2].rstrip(", ")) if found else None


def is_grammar_set(prompt_set):
    """Whether the set is drawn from the published grammar; UserError when it is no file either."""
    if prompt_set == AGE_BACKGROUND_SET or re.fullmatch("0*[1-9][0-9]{0,8}", prompt_set):
        return True
    if not os.path.isfile(prompt_set):  # which also takes what cannot be a path
        raise UserError(
            f"prompt_set: {prompt_set[:80]!r} is neither a number of images (21, 100), nor "
            f"{AGE_BACKGROUND_SET}, nor a file of prompts"
        )
    return False


def draw_scene(prompt_set, seed, identity):
    """Backgrounds and ages of all images of an identity, in the order they are made.

    N images have N // 10 times the ten backgrounds and, for the rest, none and then further ones: 21 is none
    + 2 x 10, 100 is 10 x 10, as published. Each run of ten images shows all ten backgrounds, so the first
    images of a set are balanced too.
    """
    random = np.random.default_rng(derive_seed("background", seed, identity))
    age_random = np.random.default_rng(derive_seed("age", seed, identity))
    if prompt_set == AGE_BACKGROUND_SET:
        pairs = [(background, age) for age in AGES for background in ("", *BACKGROUNDS)]
        pairs = [pairs[i] for i in random.permutation(len(pairs))]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    count = int(prompt_set)
    blocks = [[BACKGROUNDS[i] for i in random.permutation(10)] for _ in range(count // 10)]
    backgrounds = [background for block in blocks for background in block]
    rest = [BACKGROUNDS[i] for i in random.permutation(10)]
    for extra in ["", *rest][: count % 10]:
        backgrounds.insert(int(random.integers(len(backgrounds) + 1)), extra)
    return backgrounds, [AGES[i] for i in age_random.integers(len(AGES), size=count)]


def need(value, name, identity):
    """An attribute's value; UserError when it is not known."""
    if not value:
        raise UserError(
            f"{identity}: {name} is not known; add it to attributes.csv (columns identity, gender, age) "
            f"beside the data, or leave it out of the prompts"
        )
    return value


def read_prompt_file(path):
    """Free prompts from a text file (one a line, # starts a comment line) or a JSON list of strings."""
    if str(path).endswith(".json"):
        lines = read_json(path)
    else:
        lines = [line.strip() for line in read_text(path).splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{path}: holds no prompts; give one a line, or a JSON list of strings")
    if re.search("[\0\ud800-\udfff]", "".join(lines)):  # which no PNG and no JSON file of ours can say again
        raise UserError(f"{path}: prompts with characters that are no text; write them anew")
    return lines


def fill_template(template, identity, attributes, subject):
    """A free prompt with {gender}, {age} and {subject} filled in."""

    def value(match):
        name = match.group(1)
        if name == "subject":
            return subject
        if name not in ("gender", "age"):
            raise UserError(f"prompt {template!r}: no placeholder {{{name}}}; there are gender, age, subject")
        return need(getattr(attributes, name), name, identity)

    return re.sub(r"\{(\w*)\}", value, template)


# ----------------------------------------------------------------------------------------- attributes


def find_attributes_file(folder):
    """attributes.csv or .json in ``folder``, or the official code's tufts_gender_dict.json; None without.

    A folder images/ stands for the one above it, and the official file lies beside the folder of the data.
    """
    folder = Path(os.path.abspath(folder))
    root = folder.parent if folder.name == "images" else folder
    files = [place / name for place in (folder, root) for name in ("attributes.csv", "attributes.json")]
    files += [place / "tufts_gender_dict.json" for place in (root, root.parent)]
    return next(filter(Path.is_file, files), None)


def load_attributes(path):
    """Attributes by identity name from a CSV (columns identity, gender, age) or JSON file.

    JSON is {"ID_1": {"gender": "male", "age": "young"}}, a list of such rows with "identity", or the
    published {"ID_1": "M"}. Ages are the words of the prompts or years. A bad row costs one person, of whom
    nothing is known then; one line names them.
    """
    path = Path(path)
    rows = rows_of_json(path) if path.suffix.lower() == ".json" else rows_of_csv(path)
    found, bad = {}, {}
    for column in columns_of(rows):
        if column not in ("identity", *FIELDS, BROKEN) and (hint := did_you_mean(column, FIELDS)):
            log_once(f"{path}: {column[:40]!r} is not read; {hint}Read are identity, gender and age")
    for number, row in enumerate(rows, 1):
        name = same_name(row.get("identity") or "").strip()
        try:
            if not name or name in found or name in bad:
                raise ValueError("stands there twice" if name else "no identity")
            if BROKEN in row:
                raise ValueError(row[BROKEN])
            found[name] = Attributes(parse_gender(row.get("gender")), parse_age(row.get("age")))
        except ValueError as error:
            found.pop(name, None)
            bad[name or number] = f"{name[:40] or f'row {number}'}: {error}"
    if bad:
        shown = "; ".join([*bad.values()][:5]) + (f"; {len(bad) - 5} others" if len(bad) > 5 else "")
        log(f"{path}: nothing is known of people whose rows are bad, mend these: {shown}")
    return found


def rows_of_json(path):
    """Rows (dicts with "identity") of any of the JSON forms."""
    content = read_json(path)
    if isinstance(content, dict):
        content = [
            {**(value if isinstance(value, dict) else {"gender": value}), "identity": name}
            for name, value in content.items()
        ]
    if not isinstance(content, list):
        raise UserError(f'{path}: not a table of attributes; write {{"ID_1": {{"gender": "male"}}}}')
    return [row if isinstance(row, dict) else {} for row in content]


def rows_of_csv(path):
    """Rows of a CSV file as R, pandas and spreadsheets write it, header names in any case."""
    lines = [line for line in read_text(path).splitlines() if line.strip(' \t,;"')]
    if announced := re.fullmatch('"?sep=(.)"?', lines[0].strip() if lines else ""):
        lines = lines[1:]
    marks = re.sub('"[^"]*"', "", lines[0]) if lines else ""
    delimiter = announced[1] if announced else next((mark for mark in ";\t" if mark in marks), ",")
    header = csv_rows(lines[:1], delimiter, 0)
    names = [name.strip().lower() for name in header[0]] if header and BROKEN not in header[0] else []
    if "identity" not in names:
        raise UserError(f"{path}: no column 'identity'; the first line must be identity,gender,age")
    rows = csv_rows(lines[1:], delimiter, names.index("identity"))
    return [fields if isinstance(fields, dict) else dict(zip(names, fields, strict=False)) for fields in rows]


def csv_rows(lines, delimiter, place):
    """The fields of each row; of one that cannot be read a dict with its identity and BROKEN."""
    with contextlib.suppress(csv.Error):
        return [*filter(any, csv.reader(lines, delimiter=delimiter, strict=True))]
    rows = []  # a quote that is not closed, or a field without end: line by line it costs one line
    for line in filter(None, lines):
        try:
            rows += filter(any, csv.reader([line], delimiter=delimiter, strict=True))
        except csv.Error as error:
            name = (line.split(delimiter, place + 1) + [""] * place)[place]
            rows.append({"identity": name.strip().strip('"'), BROKEN: str(error)})
    return rows


def said(value):
    """A cell's text in small letters; "" where there is none, in whichever way a program says so."""
    text = str("" if value is None else value).strip().lower()
    return "" if text in NOTHING else text


def parse_gender(value):
    """ "male" or "female" from the usual spellings; None when empty. ValueError for anything else."""
    text = said(value)
    if text and text not in GENDERS:
        raise ValueError(f"gender {str(value)[:40]!r}, not male, female, M, F or nothing")
    return GENDERS.get(text)


def parse_age(value):
    """A word of the prompts from the word itself or from years; None when empty. ValueError as above."""
    text = said(value).replace(",", ".")
    if not text or text in AGES:
        return text or None
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text):
        raise ValueError(f"age {str(value)[:40]!r}, not young, middle-aged, old or years")
    years = float(text)
    return "young" if years < YOUNG_BELOW else "old" if years >= OLD_FROM else "middle-aged"
