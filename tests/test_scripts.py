"""All entry scripts as programs: run by path, and their help cut short."""

import re
import subprocess
import sys

import pytest

from tests.conftest import PROJECT_ROOT

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


@pytest.mark.parametrize("script", ["train_id_booth.py", "-m evaluation.evaluate", "-m id_booth.export_lora"])
def test_help_that_is_read_in_part_ends_silently(script):
    command = [sys.executable, *script.split(), "--help"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=PROJECT_ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
