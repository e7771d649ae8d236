from dataclasses import replace
from pathlib import Path

import pytest

from configs.extract_config import ExtractConfig
from utils.config import load_config
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("workers", 0),
        ("det_size", 100),
        ("detection_threshold", 1.5),
        ("detection_pad", -1),
    ],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        replace(ExtractConfig(), **{field: value}).check()


def test_nothing_to_do_is_refused():
    with pytest.raises(UserError, match="source_folder, class_folder"):
        ExtractConfig(source_folder=None).check()


@pytest.mark.parametrize("name", ["extract_sd21.py", "extract_mini.py"])
def test_shipped_configs_load(name):
    assert isinstance(load_config(PROJECT / "configs" / name), ExtractConfig)
