"""What an interrupted training needs to go on to the bit: one file for each identity.

The next run may group the identities otherwise.
"""

import io
import time
from pathlib import Path

import torch

from arcface_files.safe_load import load_tensors
from id_booth.diffusion.stacked_lora import load_slot_state, slot_state
from utils.errors import UserError
from utils.files import atomic_write_bytes

RESUME_FILE = "resume.pt"
RESUME_LIMIT = 2 * 2**30  # bytes; adapters and optimiser of rank 4 take 12 MiB, of rank 256 less than 1 GiB


def save_resume(run, cohort, slot, step):
    """Write the state of an IdentityRun, at a place of a cohort, after ``step`` steps.

    With what the summary will count: items, those with an identity term, and the seconds it has taken.
    """
    groups = cohort.models.lora.items()
    state = {
        "step": step,
        "counted": run.counted,
        "seconds": time.perf_counter() - run.started,
        "lora": {k: v for prefix, layers in groups for k, v in slot_state(layers, slot, prefix).items()},
        **cohort.updates[slot].state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write_bytes(run.folder / RESUME_FILE, buffer.getvalue())


def load_resume(folder):
    """The state written by :func:`save_resume`, or None; UserError when it is corrupt."""
    path = Path(folder) / RESUME_FILE
    if not path.is_file():
        return None
    try:
        state = load_tensors(path, RESUME_LIMIT)
        if not {"lora", "optimizer", "scaler"} <= state.keys() or not isinstance(state["step"], int):
            raise KeyError("incomplete")
        return state
    except Exception as error:
        raise UserError(
            f"{path}: corrupt, cannot go on from it; delete it to train {path.parent.name} from the start"
        ) from error


def restore_cohort(cohort, states):
    """Put the states of a cohort's identities (all of one step) into adapters and optimiser.

    Raises:
        UserError: a state that has the right form but another content.
    """
    try:
        fill_cohort(cohort, states)
    except Exception as error:  # a damaged state can be wrong in any way
        raise UserError(
            f"{RESUME_FILE}: corrupt ({type(error).__name__}), cannot go on from it; delete it to train "
            f"{', '.join(cohort.names)} from the start"
        ) from error


def fill_cohort(cohort, states):
    """:func:`restore_cohort` on states that fit."""
    for slot, state in enumerate(states):
        for prefix, layers in cohort.models.lora.items():
            load_slot_state(layers, slot, state["lora"], prefix)
        cohort.updates[slot].load_state_dict(state, state["step"])
