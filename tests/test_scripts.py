"""All entry scripts as programs: run by path, and their help cut short."""

import re
import subprocess
import sys

import pytest

from mini import demo, sheets, study_data
from tests.conftest import PROJECT_ROOT
from utils.errors import UserError

FOLDERS = ("evaluation", "fr_training", "id_booth", "mini", "benchmarks")
MAIN = re.compile('^if __name__ == "__main__":', re.MULTILINE)
MODULES = {
    path.relative_to(PROJECT_ROOT).as_posix()
    for folder in FOLDERS
    for path in (PROJECT_ROOT / folder).rglob("*.py")
    if MAIN.search(path.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("path", sorted(MODULES))
def test_a_module_run_by_its_path_says_how_to_run_it(path):
    command = [sys.executable, path, "--help"]
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    name = path.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    assert result.stderr == f"error: run it from the project's folder as python -m {name}\n"
    assert result.returncode == 1 and not result.stdout


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        (sheets, "--output a_file", "a_file: is a file; name a folder for the output"),
        (demo, "--people 2", "--people: demo_output has 3; ask for as many, or begin anew by make clean"),
        (demo, "--people 1000000", "--people, --photos: from 1 to 500,000 people, and two photos of each"),
        (demo, "--photos 1", "--people, --photos: from 1 to 500,000 people, and two photos of each at least"),
    ],
)
def test_what_the_miniature_refuses(tmp_path, monkeypatch, script, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", *arguments.split()])
    (tmp_path / "a_file").touch()
    for person in ("ID_1", "ID_2", "ID_3"):
        (tmp_path / "demo_output/FACE_DATASET" / person).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        script.main()


def test_what_the_sets_of_the_study_refuse():
    with pytest.raises(UserError, match="people, views: 6, 4; 10 folds take 20 people of 2 views"):
        study_data.wild_pairs(people=6, views=4)
    with pytest.raises(
        UserError, match="generators: no method 'ID-Both' .*; did you mean ID-Booth.*there are"
    ):
        study_data.main(["--config", "configs/study_mini.py", "--generators", "ID-Both"])


@pytest.mark.parametrize("script", ["train_id_booth.py", "-m evaluation.evaluate", "-m id_booth.export_lora"])
def test_help_that_is_read_in_part_ends_silently(script):
    command = [sys.executable, *script.split(), "--help"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=PROJECT_ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
