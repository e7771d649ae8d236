"""What fine-tuning minimises: the table of objectives and the losses behind it.

Every objective has the denoising loss of the photos and, with prior preservation, of the class images. An
entry of OBJECTIVES says which identity term it adds; training, sampling, summaries and reports ask the table
and know no name. A further objective is one more entry (docs/extending.md).
"""

import ast
import dataclasses
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import torch
from torch.nn import functional

from utils.errors import UserError, did_you_mean


def identity_loss(anchor, positive):
    """1 - cosine similarity (PortraitBooth's term).

    Args:
        anchor, positive: (N, D) float embeddings of any norm.

    Returns:
        (N,) in [0, 2].
    """
    return 1 - functional.cosine_similarity(anchor, positive, dim=-1)


def triplet_identity_loss(anchor, positive, negative, margin=1.0):
    """max(d(a, p) - d(a, n) + margin, 0) with d = 1 - cosine similarity (ID-Booth's triplet identity term).

    The anchor is the embedding of the denoised prediction, the positive that of the training photo, the
    negative that of another person's (prior) image. With margin 1 the hinge is inactive only where
    cos(a, p) - cos(a, n) >= 1, so in practice the gradient never vanishes.

    Args:
        anchor, positive, negative: (N, D) float embeddings of any norm.

    Returns:
        (N,) in [0, 2 + margin].
    """
    return functional.relu(identity_loss(anchor, positive) - identity_loss(anchor, negative) + margin)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What one objective adds to the denoising losses.

    ``identity_term``: None, or a function of (anchor, positive) embeddings; where ``needs_negatives``, of
    (anchor, positive, negative, margin). All (N, D), the result (N,). ``needs_faces``: photos must have
    embeddings, and the identity branch runs.
    """

    identity_term: Callable | None = None
    needs_faces: bool = False
    needs_negatives: bool = False

    def identity_values(self, anchor, positive, negative, margin):
        """The unweighted identity term of each item, (N,); ``negative`` may be None where none is needed."""
        if self.needs_negatives:
            return self.identity_term(anchor, positive, negative, margin)
        return self.identity_term(anchor, positive)

    def digest(self):
        """16 hexadecimal digits over the code of the identity term: another formula, another digest."""
        code = "".join(sorted(source_of(self.identity_term))) if self.identity_term else ""
        text = f"{code}{self.needs_faces}{self.needs_negatives}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


OBJECTIVES = {
    "DreamBooth": Objective(),
    "PortraitBooth": Objective(identity_loss, needs_faces=True),
    "ID-Booth": Objective(triplet_identity_loss, needs_faces=True, needs_negatives=True),
}


def check_objectives(names):
    """``names`` as a tuple, all of the table when empty; UserError for an unknown one."""
    for name in names:
        if name not in OBJECTIVES:
            hint = did_you_mean(name, OBJECTIVES)
            raise UserError(f"objectives: no {name!r}; {hint}there are {', '.join(OBJECTIVES)}")
    return tuple(names or OBJECTIVES)


def with_objectives(config):
    """A TrainConfig whose objectives are spelled out; UserError for an unknown one, or missing negatives."""
    chosen = check_objectives(config.objectives)
    wanting = [name for name in chosen if OBJECTIVES[name].needs_negatives]
    if wanting and not config.with_prior_preservation and not config.negatives_folder:
        raise UserError(
            f"negatives_folder: {wanting[0]} without prior preservation needs other people's embeddings as "
            "negatives; give a folder with ArcFace_embeds/, or leave with_prior_preservation on"
        )
    if wanting and config.negatives_folder and not Path(config.negatives_folder).is_dir():
        raise UserError(f"{config.negatives_folder}: no such folder; give one with ArcFace_embeds/ in it")
    return dataclasses.replace(config, objectives=chosen)


def any_needs_faces(names):
    """Whether one of the objectives called ``names`` has an identity term."""
    return any(OBJECTIVES[name].needs_faces for name in names)


def source_of(function, seen=None):
    """The code of a function and of those of its module that it calls, without comments and docstrings."""
    seen = {} if seen is None else seen
    if function in seen:
        return seen.values()
    seen[function] = plain_source(function)
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if isinstance(called, FunctionType) and called.__module__ == function.__module__:
            source_of(called, seen)
    return seen.values()


def plain_source(function):
    """The code of a function without comments and docstring; its bytecode where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # typed at a prompt, or a lambda inside another statement
        return repr((function.__code__.co_code, function.__code__.co_consts))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


# ------------------------------------------------------------------------------ shared by all objectives


def timestep_weight(timesteps, num_train_timesteps, form="squared"):
    """The weight of an identity term: predictions from much noise say little about identity.

    Args:
        timesteps: (N,) integers in [0, num_train_timesteps).
        form: "squared" for (1 - t/T)^2, as the official code runs; "linear" for 1 - t/T; "none" for 1.

    Returns:
        (N,) float32 in [0, 1].
    """
    remaining = 1 - timesteps.float() / num_train_timesteps
    return {"squared": remaining.square(), "linear": remaining, "none": torch.ones_like(remaining)}[form]


def denoising_loss(model_output, target, weight=None):
    """Mean squared error of each item in float32, times an optional weight (min-SNR).

    Args:
        model_output, target: (N, C, H, W).
        weight: None or (N,).

    Returns:
        (N,).
    """
    error = functional.mse_loss(model_output.float(), target.float(), reduction="none").flatten(1).mean(1)
    return error if weight is None else error * weight
