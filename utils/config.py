"""Python config files that build one typed dataclass, with typed overrides from the command line.

A config file defines ``config = SomeConfig(...)``. Any field is overridden by name
(``--lora-rank 8``, ``--no-with-prior-preservation``); ``--help`` explains each field and shows the value the
file gives it. Unknown names, wrong types and impossible combinations are refused before anything heavy
starts.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import runpy
import sys
import types
import typing
from pathlib import Path

import tyro

from utils.errors import UserError, did_you_mean
from utils.progress import log_once

# What training calls one thing, and sampling another.
SAME = {"objectives": "methods", "methods": "objectives"}
# Fields of texts that may be empty, by the ends of their names; every other text names something.
WORDING = ("prompt", "subject", "title")
PROJECT_ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class BaseConfig:
    """What every script's configuration has."""

    dry_run: bool = False
    """Print the plan (what would be done, what is done already, disk, time) and stop."""

    def check(self):
        """Refuse impossible combinations with a UserError. Called after the overrides are applied."""


def load_config(path, overrides=(), expected_type=BaseConfig):
    """The configuration a Python file builds, with command-line style overrides applied and checked.

    Args:
        path: a Python file that defines ``config``.
        overrides: strings as on the command line, e.g. ``("--lora-rank", "8")``.
        expected_type: the dataclass the script wants; a config file of another script is refused.

    Raises:
        UserError: for a missing or broken file, an unknown field, a wrong type, an impossible combination.
    """
    path = shipped(path)
    config = read_config_file(path)
    if not isinstance(config, expected_type):
        raise UserError(
            f"{path}: builds a {type(config).__name__}, this script needs a {expected_type.__name__}; "
            "choose another config file"
        )
    check_types(config, path)
    config = apply_overrides(config, list(overrides), str(path))
    check_types(config, "command line")
    config = dataclasses.replace(config, **{name: shipped(value) for name, value in vars(config).items()})
    check_values(config)
    config.check()
    return config


def shipped(value):
    """A path into configs/ or mini/ that is not here as the project's own; everything else as it is."""
    ours = str(value).startswith(("configs/", "mini/")) and not os.path.lexists(value)
    return type(value)(PROJECT_ROOT / value) if ours and os.path.lexists(PROJECT_ROOT / value) else value


def read_config_file(path):
    """Run a config file and return the dataclass instance it calls ``config``."""
    path = Path(path)
    if not path.is_file():
        hint = did_you_mean(path.name, [file.name for file in path.parent.glob("*.py")])
        raise UserError(f"{path}: no such config file; {hint}give one with --config")
    try:
        # A config file is a program of the user's own, as the scripts are; data files never are.
        variables = runpy.run_path(str(path))
    except TypeError as error:
        raise UserError(f"{path}: {nearest_field(str(error))}") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise UserError(f"{path}: {reason}; mend the config file") from error
    config = variables.get("config")
    if not isinstance(config, BaseConfig):
        what = f"'config' is {config!r:.80}" if "config" in variables else "defines no 'config'"
        raise UserError(f"{path}: {what}; end it with config = TrainConfig(...) or the like")
    return config


def nearest_field(message):
    """Add the nearest valid field name to Python's own complaint about an unknown keyword."""
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    kinds = {kind.__name__: kind for kind in BaseConfig.__subclasses__()}
    if not match or match[1] not in kinds:
        return message
    names = [field.name for field in dataclasses.fields(kinds[match[1]])]
    hint = did_you_mean(match[2], names) or f"there are {', '.join(names)}"
    return f"{match[1]} has no field {match[2]!r}; {hint}"


def apply_overrides(config, arguments, source):
    """A copy of ``config`` with tyro's typed overrides; ``--help`` prints the fields and exits."""
    if "--help" in arguments or "-h" in arguments:
        about = f"{type(config).__doc__} --config FILE gives the defaults below, now {source}."
        # Comments over a group of fields are no help to its first one.
        marks = (tyro.conf.HelptextFromCommentsOff,)
        tyro.cli(type(config), default=config, args=arguments, description=about, config=marks)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), contextlib.redirect_stdout(captured):
            return tyro.cli(type(config), default=config, args=arguments)
    except SystemExit:
        names = [field.name.replace("_", "-") for field in dataclasses.fields(config)]
        raise UserError(condense(captured.getvalue(), names)) from None


def condense(text, names):
    """What tyro's boxed message says first, on one line; of an unknown option what may be meant."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│┌┐└┘]", "", text)
    _, said, *_ = [*re.split("[─-]{9,}", text), text]  # a title and a line come before
    said = " ".join(said.split()).rstrip(".")
    said = re.sub(r"no type matching (.*) could .* from \[(.*?)\]\. Got .*", r"\2 is none of \1", said)
    if not said.startswith("Unrecognized options: "):
        return f"{said}; --help explains it"
    word = said.split()[2].rstrip(",")
    if not word.startswith("-"):
        return f"{word}: belongs to no option; --help lists them"
    name = word.strip("-").partition("=")[0]
    hint = did_you_mean(SAME.get(name, name), names)
    return f"{word}: no such option; {hint.replace('mean ', 'mean --')}--help lists all"


def check_types(config, source):
    """Refuse a config file that puts, say, a string where a number belongs (Python itself would not)."""
    for name, kind in typing.get_type_hints(type(config)).items():
        if not fits(value := getattr(config, name), kind):
            wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise UserError(
                f"{source}: {name} is {value!r:.80} ({type(value).__name__}), it must be of type "
                f"{wanted}{' and finite' if isinstance(value, float) else ''}; mend it"
            )


def fits(value, kind):
    """Whether a value is of an annotated type: plain ones, Literal, unions, tuples of these."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        members = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        return len(members) == len(value) and all(map(fits, value, members))
    if kind in (int, float, bool, str):
        right = isinstance(value, (int, float) if kind is float else kind)
        # bool is a subclass of int in Python, yet True is no rank and 1 is no switch; nan is no number.
        finite = not isinstance(value, float) or math.isfinite(value)
        return right and finite and isinstance(value, bool) == (kind is bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def check_values(config):
    """Refuse what no script can use: names of nothing or too long for a file, repetitions, no threads."""
    for name, value in vars(config).items():
        values = value if isinstance(value, tuple) else (value,)
        names = [item for item in values if isinstance(item, str) and not name.endswith(WORDING)]
        if not all(map(str.strip, names)):
            raise UserError(f"{name}: is empty; give a folder, file or name, or None where that is allowed")
        if any(len(part.encode(errors="replace")) > 255 for item in names for part in item.split("/")):
            raise UserError(f"{name}: {value!r:.80} is longer than the name of a file may be; shorten it")
        if len({*values}) < len(values):
            raise UserError(f"{name}: {', '.join(map(str, values))} names one twice; name each once")
    if getattr(config, "threads", None) is not None and config.threads < 1:
        raise UserError(f"threads: is {config.threads}, must be at least 1, or None for torch's own choice")


def parse_command_line(expected_type, default_config, argv=None):
    """The configuration for a script: ``--config FILE`` (or the default) and overrides from ``argv``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = default_config
    for index, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            has_value = "=" in argument
            if not has_value and index + 1 == len(arguments):
                raise UserError("--config: needs a file, e.g. --config configs/train_mini.py")
            path = argument.split("=", 1)[1] if has_value else arguments[index + 1]
            del arguments[index : index + (1 if has_value else 2)]
            break
    config = load_config(path, arguments, expected_type)
    if path is default_config:
        log_once(f"no --config: {path}, the miniature")
    return config


def parse_shard(text):
    """(i, n) of "i/n", i from 0; UserError for anything else."""
    parts = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if not parts or int(parts[1]) >= int(parts[2]):
        raise UserError(f"shard: {text!r} is not of the form i/n with i from 0 to n - 1, e.g. 0/4")
    return int(parts[1]), int(parts[2])


def as_dict(config):
    """The configuration as plain values for JSON."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}
