"""The documentation is true: its links, paths, commands and recipes.

The commands of the README and of docs/ are run as they stand there, in order, in a small copy of the project
(tests/docs_world.py). What cannot be run in a test is in NOT_RUN with the reason, and is parsed.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import string
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro
import yaml

from tests import docs_world
from utils import config as config_loader

ROOT = Path(__file__).resolve().parent.parent
README = "README.md"
# In the order in which somebody reads them, and in which their commands go on from each other.
RUN_PAGES = (README, "docs/miniature.md", "docs/gpu-and-clusters.md", "docs/formats.md", "docs/extending.md")
PAGES = (*RUN_PAGES, "docs/results.md", "docs/published.md")
MOST_WORDS = 1100

LONG = "minutes to hours"
GPUS = "starts many processes; tests/processes.py does that on a CPU"
SUITE = "is or has a part of this suite of its own"
NOT_RUN = {
    "make test": SUITE,
    "make setup": "installs",
    "source .venv/bin/activate": "shell",
    "accelerate launch --num_processes 8 train_id_booth.py --config configs/train_sd21_fast.py": GPUS,
    "torchrun --standalone --nproc_per_node 2 train_id_booth.py --config configs/train_mini.py": GPUS,
    "accelerate launch --num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip node0 "
    "--main_process_port 29500 train_id_booth.py --config configs/train_sd21_fast.py": GPUS,
    "python -m fr_training.study --config configs/study_mini.py": LONG,
    "python -m evaluation.ablation --config configs/ablation_mini.py": SUITE,
    "python -m mini.sheets": LONG,
    "python -m mini.check --scale 0.1 --only renderer,detector": LONG,
    "python -m mini.check --only finetune --seed 0": LONG,
    "python -m mini.build --help": SUITE,
    "python -m tests.faults --kills 50": LONG,
    "python -m tests.fuzz --count 3000": LONG,
    "python -m tests.processes": SUITE,
    "python -m tests.hundred": LONG,
    "python -m benchmarks.sd21_geometry": LONG,
}
# Exit codes other than 0, and what else the output must say.
EXPECTED = {
    (README, "python -m id_booth.check_setup --config configs/train_sd21_fast.py"): "embeddings",
}
VARIABLES = {"RANK": "0", "HOST": "node0", "SLURM_ARRAY_TASK_ID": "3"}
# First parts of paths that users or runs make.
MADE = {
    *("FACE_DATASET", "CLASS_IMAGES", "Trained_LoRA_Models", "Generated_Samples", "FR_DATASETS", "runs"),
    *("demo_output", "models", "build", ".batch", "raw", "OTHERS", "MY_FACES", "MY_CLASS", "LORA_FOLDER"),
    *("tables", "gallery", "images", "consent", "ArcFace_embeds", "sd2-community"),
}


# ------------------------------------------------------------------------------------------ reading a page


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language, text, and the line before it."""

    page: str
    language: str
    text: str
    before: str


def read(page):
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """The fenced blocks of a page, in order."""
    text = read(page)
    found = []
    for match in FENCE.finditer(text):
        lines = text[: match.start()].rstrip().splitlines()
        found.append(Block(page, match[2], textwrap.dedent(match[3]), lines[-1] if lines else ""))
    return found


def commands(text):
    """The commands of a bash block, lists of words, comments gone and variables filled in."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(string.Template(line).safe_substitute(VARIABLES), comments=True)
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found.append(words)
    return [words for words in found if words]


def spans(page):
    """The code spans of a page, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", read(page)))


def all_commands():
    """(page, words) of every command in the bash blocks."""
    bash = [block for page in PAGES for block in blocks(page) if block.language == "bash"]
    return [(block.page, words) for block in bash for words in commands(block.text)]


def slug(heading):
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# --------------------------------------------------------------------------------------- length and links


def test_readme_is_short():
    assert len(read(README).split()) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_the_citation_is_that_of_the_readme():
    citation = yaml.safe_load(read("CITATION.cff"))
    paper = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors", "type"} <= citation.keys()
    assert paper["title"] in read(README).replace("{", "").replace("}", "")
    assert paper["year"] == 2025 and len(paper["authors"]) == 6


def added_files():
    """Files that the recipes have the reader add."""
    lines = [block.before for page in PAGES for block in blocks(page)]
    return {match[1] for line in lines if (match := re.fullmatch(r"Add `(.+)`:", line))}


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    for span in spans(page):
        is_path = re.fullmatch(r"[\w*+-]+([./][\w*+.-]+)*/?", span) and re.search(r"/|\.(py|md)$", span)
        if not is_path or span in added_files() or span.split("/")[0] in MADE:
            continue
        roots = (ROOT, (ROOT / page).parent)
        assert any((root / span).exists() or list(root.glob(span.rstrip("/"))) for root in roots), span


# ------------------------------------------------------------------------------- commands that are not run


class Parsed(Exception):
    """The command line was read and accepted; nothing was done."""


@pytest.fixture
def only_parsing(monkeypatch):
    """Scripts stop with Parsed as soon as their command line is read."""

    def stop_after(function):
        def wrapper(*arguments, **options):
            result = function(*arguments, **options)
            if sys._getframe(1).f_globals["__name__"] == config_loader.__name__ and function is tyro_cli:
                return result  # load_config looks at the values afterwards
            raise Parsed(result)

        return wrapper

    tyro_cli = tyro.cli
    monkeypatch.setattr(tyro, "cli", stop_after(tyro_cli))
    monkeypatch.setattr(config_loader, "load_config", stop_after(config_loader.load_config))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after(argparse.ArgumentParser.parse_args))
    monkeypatch.chdir(ROOT)
    return monkeypatch


def parse(words, monkeypatch):
    """Read the command line of a command; AssertionError or SystemExit when it is not accepted."""
    if words[0] == "make":
        assert all(re.search(rf"^{target}:", read("Makefile"), re.MULTILINE) for target in words[1:])
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        parse_launch(launch_command_parser(), words[2:], monkeypatch)
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        parse_launch(get_args_parser(), words[1:], monkeypatch)
    elif words[0] == "python":
        parse_python(words[1:], monkeypatch)
    else:
        assert words[0] == "source"


def parse_launch(parser, arguments, monkeypatch):
    """Read a launcher's options and those of the script behind them."""
    with pytest.raises(Parsed) as stopped:
        parser.parse_args(arguments)
    options = stopped.value.args[0]
    parse_python([options.training_script, *options.training_script_args], monkeypatch)


def parse_python(arguments, monkeypatch):
    """Read the command line of ``python ARGUMENTS``, a script or module of ours."""
    name = arguments[1] if arguments[0] == "-m" else arguments[0].removesuffix(".py")
    if (ROOT / name.replace(".", "/")).is_dir():
        name += ".__main__"
    assert (ROOT / f"{name.replace('.', '/')}.py").is_file()
    monkeypatch.setattr(sys, "argv", [name, *arguments[2 if arguments[0] == "-m" else 1 :]])
    main = importlib.import_module(name).main
    if name == "tests.processes":  # takes no options
        assert len(arguments) == 2
        return
    with pytest.raises((Parsed, SystemExit)) as stopped:
        main()
    assert stopped.type is Parsed or ("--help" in arguments and stopped.value.code == 0)


def in_not_run(words):
    """Whether a command is not run in a test."""
    return shlex.join(words) in NOT_RUN


@pytest.mark.parametrize("command", sorted({shlex.join(w) for _, w in all_commands() if in_not_run(w)}))
def test_what_is_not_run_is_parsed(command, only_parsing):
    parse(shlex.split(command), only_parsing)


def test_every_entry_of_not_run_is_in_the_documentation():
    assert set(NOT_RUN) <= {shlex.join(words) for _, words in all_commands()}


@pytest.mark.parametrize(
    "command", sorted({s for page in PAGES for s in spans(page) if re.match(r"python (-m )?[\w./]+", s)})
)
def test_commands_in_sentences_are_parsed(command, only_parsing):
    parse(shlex.split(command), only_parsing)


@pytest.mark.parametrize("command", ["python train_id_booth.py --lora-rnk 8", "python -m mini.demo --x"])
def test_wrong_options_are_not_accepted(command, only_parsing):
    with pytest.raises(Exception) as refused:
        parse(shlex.split(command), only_parsing)
    assert refused.type is not Parsed


# ------------------------------------------------------------------------------------ commands that are run


@dataclass
class Step:
    """Something to be done in the copy: its page, its text there, what the runner does, what came of it."""

    page: str
    text: str
    work: dict
    result: dict | None = None


def steps():
    """Everything that the pages have the reader do, in order."""
    return [step for page in RUN_PAGES for block in blocks(page) for step in steps_of(block)]


def steps_of(block):
    """The steps of one block: its commands, its program, or what becomes of its file."""
    match = re.fullmatch(r"(Add|Append to|In) `(.+)`:", block.before)
    if match:
        do = {"Add": "add", "Append to": "append", "In": "change"}[match[1]]
        return [Step(block.page, block.before, {"do": do, "file": match[2], "text": block.text})]
    if block.language == "python":
        needs_datasets = "from datasets import" in block.text
        if needs_datasets and importlib.util.find_spec("datasets") is None:
            return []  # no requirement of ours
        return [Step(block.page, block.text, {"do": "run", "arguments": ["-c", block.text]})]
    if block.language != "bash":
        return []
    found = []
    for words in commands(block.text):
        if not in_not_run(words):
            found.append(Step(block.page, shlex.join(words), {"do": "run", "arguments": arguments_of(words)}))
    return found


def arguments_of(words):
    """What comes after "python" when a command is run; make's are those of its rule."""
    if words[0] == "make":
        rule = re.search(rf"^{words[1]}:.*\n\t\$\(RUN\) (.*)$", read("Makefile"), re.MULTILINE)
        return shlex.split(rule[1])
    assert words[0] == "python", f"{shlex.join(words)}: run it, or put it into NOT_RUN"
    return [re.sub("^~/", "home/", word) for word in words[1:]]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder of the copy, steps with their results)."""
    folder = tmp_path_factory.mktemp("docs")
    table = next(block.text for block in blocks(README) if block.language == "csv")
    root = docs_world.make_project(folder / "project", table)
    todo = steps()
    file = folder / "steps.json"
    file.write_text(json.dumps({"root": str(root), "steps": [step.work for step in todo]}))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.docs_world", str(file)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    for step, result in zip(todo, json.loads(file.read_text()), strict=True):
        step.result = result
    return root, todo


@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_run_as_typed(done, page):
    mine = [step for step in done[1] if step.page == page]
    for step in mine:
        wanted = EXPECTED.get((page, step.text))
        if wanted and step.result["code"] == 1:
            lines = step.result["output"].splitlines()
            assert [line.split()[0] for line in lines if "  missing  " in line] == [wanted], lines
            continue
        assert step.result["code"] == 0, f"{step.text}\n{step.result['output'][-3000:]}"


def test_what_the_recipes_promise_is_there(done):
    paragraphs = (FENCE.sub("", read("docs/extending.md"))).split("\n\n")
    promised = [text for text in paragraphs if text.startswith("What you see:")]
    assert len(promised) == 4
    for text in promised:
        paths = [path for path in re.findall(r"`([^`]+/[^`]+)`", text) if path.split("/")[0] in MADE]
        assert paths
        for path in paths:
            assert list(done[0].glob(path)), path
    for table in ("faces", "overview", "eyes"):
        assert "AngularBooth" in (done[0] / f"demo_output/evaluation/tables/{table}.csv").read_text()


def test_samples_of_the_recipe_have_the_prompts_of_the_table(done):
    name = "Generated_Samples/FacePortrait_Photo_21_Gender_Pose_Background/ID-Booth/metadata.jsonl"
    records = [json.loads(line) for line in (done[0] / name).read_text().splitlines()]
    genders = {record["identity"]: record["gender"] for record in records}
    assert len(records) == 21 * len(genders) and genders["ID_1"] == "female" and genders["ID_2"] == "male"
