"""Config files, typed overrides and refusals."""

import dataclasses
from typing import Literal

import pytest

from utils.config import BaseConfig, load_config, parse_command_line
from utils.errors import UserError


@dataclasses.dataclass
class ToyConfig(BaseConfig):
    """A toy."""

    lora_rank: int = 4
    """Rank of the adapters."""
    learning_rate: float = 1e-4
    names: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    output_folder: str = "out"
    negative_prompt: str = ""
    threads: int | None = None
    cohort_size: int | Literal["auto"] = 1
    objective: Literal["dreambooth", "id-booth"] = "id-booth"

    def check(self):
        if self.lora_rank < 1:
            raise UserError("lora_rank: must be at least 1")


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "toy.py"
        path.write_text(f"from tests.test_config import ToyConfig\n{text}\n")
        return path

    return write


def test_file_and_overrides(config_file):
    path = config_file("config = ToyConfig(lora_rank=8)")
    config = load_config(path, ("--learning-rate", "2e-4", "--names", "ID_1", "ID_2", "--dry-run"))
    assert (config.lora_rank, config.learning_rate, config.names) == (8, 2e-4, ("ID_1", "ID_2"))
    assert config.dry_run and not load_config(path).dry_run


def test_command_line_takes_the_config_flag_in_both_forms(config_file):
    path = config_file("config = ToyConfig(lora_rank=8)")
    for argv in (["--config", str(path), "--lora-rank", "2"], [f"--config={path}", "--lora-rank", "2"]):
        assert parse_command_line(ToyConfig, "nowhere.py", argv).lora_rank == 2
    with pytest.raises(UserError, match="nowhere.py: no such config file"):
        parse_command_line(ToyConfig, "nowhere.py", [])


def test_without_a_config_the_one_in_use_is_named(config_file, capsys):
    path = str(config_file("config = ToyConfig(lora_rank=8)"))
    assert parse_command_line(ToyConfig, "nowhere.py", ["--config", path]) and not capsys.readouterr().err
    assert parse_command_line(ToyConfig, path, []).lora_rank == 8
    assert capsys.readouterr().err == f"no --config: {path}, the miniature\n"


@pytest.mark.parametrize(
    "text, overrides, message",
    [
        (
            "config = ToyConfig()",
            ("--lora-rnk", "8"),
            "^--lora-rnk: no such option; did you mean --lora-rank[?]",
        ),
        ("config = ToyConfig()", ("--zzz=8",), "^--zzz=8: no such option; --help lists all$"),
        ("config = ToyConfig()", ("--lora-rank", "8", "9"), "^9: belongs to no option; --help lists them$"),
        (
            "config = ToyConfig()",
            ("--lora-rank", "eight"),
            "^Error parsing --lora-rank: invalid",
        ),
        ("config = ToyConfig()", ("--lora-rank",), "^Missing value for argument '--lora-rank'.* --help exp"),
        ("config = ToyConfig()", ("--lora-rank", "0"), "lora_rank: must be at least 1"),
        ("config = ToyConfig()", ("--objective", "dreambuth"), "dreambooth"),
        ("config = ToyConfig(lora_rnk=8)", (), "no field 'lora_rnk'; did you mean lora_rank. "),
        ("config = ToyConfig(lora_rank='8')", (), "lora_rank is '8' .str.*type int"),
        ("config = ToyConfig(lora_rank=True)", (), "lora_rank is True"),
        ("x = 1", (), "defines no 'config'; end it with config = "),
        ("config = {'lora_rank': 3}", (), r"'config' is {'lora_rank': 3}; end it with config = "),
        ("config = ToyConfig", (), r"'config' is <class .*; end it with config = "),
        ("config = ToyConfig()", ("--threads", "0"), "^threads: is 0, must be at least 1, or None"),
        ("config = ToyConfig(threads=-1)", (), "^threads: is -1, must be at least 1"),
        ("config = ToyConfig(output_folder='')", (), "^output_folder: is empty; give a folder, file or name"),
        ("config = ToyConfig()", ("--output-folder", " "), "^output_folder: is empty"),
        ("config = ToyConfig()", ("--names", "a", ""), "^names: is empty"),
        ("config = ToyConfig()", ("--output-folder", f"/tmp/{'x' * 256}/y"), "^output_folder: .*longer than"),
        ("config = ToyConfig()", ("--names", "é" * 128), "^names: .*longer than"),
        ("config = ToyConfig()", ("--names", "a", "b", "a"), "^names: a, b, a names one twice; name each on"),
        ("config = ToyConfig()", ("--seeds", "1", "1"), "^seeds: 1, 1 names one twice"),
        (
            "config = ToyConfig()",
            ("--cohort-size", "autox"),
            r"--cohort-size: 'autox' is none of INT.{auto};",
        ),
        ("config = 1 / 0", (), "ZeroDivisionError"),
    ],
)
def test_refusals_are_one_line_and_name_the_field(config_file, text, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(config_file(text), overrides)
    assert "\n" not in str(caught.value)


def test_what_may_be_empty_or_long(config_file):
    config = config_file("config = ToyConfig(negative_prompt=' ', names=())")
    options = ("--negative-prompt", "word " * 99, "--output-folder", f"{'x' * 255}/{'y' * 255}", "--threads")
    assert load_config(config, (*options, "1")).threads == 1
    assert load_config(config, (*options, "None")).threads is None


def test_the_config_of_another_script_is_refused(config_file):
    class Other(BaseConfig):
        pass

    with pytest.raises(UserError, match="builds a ToyConfig, this script needs a Other"):
        load_config(config_file("config = ToyConfig()"), expected_type=Other)


def test_what_training_calls_objectives_are_methods_to_sampling():
    for path, wrong, right in (("inference", "objectives", "methods"), ("train", "methods", "objectives")):
        with pytest.raises(UserError, match=f"^--{wrong}: no such option; did you mean --{right}[?]"):
            load_config(f"configs/{path}_mini.py", (f"--{wrong}", "ID-Booth"))


def test_the_nearest_config_file_is_named(config_file):
    path = config_file("config = ToyConfig()")
    with pytest.raises(UserError, match="toi.py: no such config file; did you mean toy.py"):
        load_config(path.with_name("toi.py"))
