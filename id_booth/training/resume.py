"""What an interrupted training needs to go on to the bit: one file for each identity.

A cohort's optimiser holds all its identities stacked; a file holds one identity's slice, so that the next run
may group them otherwise.
"""

import io
from pathlib import Path

import torch

from id_booth.diffusion.stacked_lora import load_slot_state, slot_state
from utils.errors import UserError
from utils.files import atomic_write_bytes
from utils.safe_load import load_tensors

RESUME_FILE = "resume.pt"
RESUME_LIMIT = 2 * 2**30  # bytes; adapters and optimiser of rank 4 take 12 MiB, of rank 256 less than 1 GiB


def save_resume(folder, cohort, slot, step):
    """Write the state of one identity of a cohort after ``step`` steps."""
    groups = cohort.models.lora_groups().items()
    state = {
        "step": step,
        "lora": {k: v for prefix, layers in groups for k, v in slot_state(layers, slot, prefix).items()},
        "optimizer": optimizer_slot(cohort.optimizer, slot, len(cohort.photos)),
        "scaler": cohort.scaler.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write_bytes(Path(folder) / RESUME_FILE, buffer.getvalue())


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
        for prefix, layers in cohort.models.lora_groups().items():
            load_slot_state(layers, slot, state["lora"], prefix)
    merged = {}
    for index, entry in states[0]["optimizer"]["state"].items():
        each = [state["optimizer"]["state"][index] for state in states]
        merged[index] = {
            key: torch.cat([one[key] for one in each]) if torch.is_tensor(value) and value.ndim else value
            for key, value in entry.items()
        }
    current = cohort.optimizer.state_dict()["param_groups"]
    saved = states[0]["optimizer"]["groups"]
    groups = [group | {"params": now["params"]} for group, now in zip(saved, current, strict=True)]
    cohort.optimizer.load_state_dict({"state": merged, "param_groups": groups})
    cohort.scaler.load_state_dict(states[0]["scaler"])
    cohort.scheduler.last_epoch = states[0]["step"]


def optimizer_slot(optimizer, slot, cohort_size):
    """One identity's part of an optimiser's state: tensors stacked over the cohort are sliced."""
    state = optimizer.state_dict()
    return {
        "state": {
            index: {key: take_slot(value, slot, cohort_size) for key, value in entry.items()}
            for index, entry in state["state"].items()
        },
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]],
    }


def take_slot(value, slot, cohort_size):
    """The slot's slice of a stacked tensor; shared scalars as they are."""
    stacked = torch.is_tensor(value) and value.ndim > 0 and value.shape[0] == cohort_size
    return value[slot : slot + 1].clone() if stacked else value
