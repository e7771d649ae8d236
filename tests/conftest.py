"""Shared fixtures. Tests that need the real networks and photos skip where that folder is absent."""

import ctypes
import os
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # no test asks the hub, which a machine without a network waits for
PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors run fastest on one thread, and results then never depend on the machine's cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_bars_of_other_tests():
    """A bar that an interrupted script left open moves the cursor of every later message in this process."""
    yield
    for bar in list(tqdm._instances):
        bar.close()


@pytest.fixture
def permissions():
    """Permissions hold in this test, for root too: no CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH meanwhile."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~0b110
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = effective
    assert libc.capset(header, sets) == 0


@pytest.fixture(scope="session")
def fixtures_dir():
    """Folder of real networks and photos (see the developer part of the README); skips when absent."""
    folder = Path(os.environ.get("ID_BOOTH_FIXTURES", PROJECT_ROOT.parent / "shared" / "fixtures"))
    if not folder.is_dir():
        pytest.skip("real networks and photos are not on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A random-weight Stable Diffusion pipeline of a few thousand parameters."""
    from tests.tiny_base import make_tiny_base

    folder = tmp_path_factory.mktemp("tiny_base") / "base"
    make_tiny_base(folder)
    return folder
