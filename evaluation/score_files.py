"""Scores as the text files that PyEER and the published evaluation exchange, and the figures of such files.

    python -m evaluation.score_files --genuine genuines.txt --impostor impostors.txt

A file has a score a line; where a line has more words (names of the two images), the last one is the score.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m evaluation.score_files")

from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

from evaluation.identity import verification_stats
from utils.errors import UserError, run
from utils.files import atomic_path
from utils.progress import log

GENUINE, IMPOSTOR = "genuines.txt", "impostors.txt"


@dataclass
class ScoreFilesConfig:
    """Verification figures of scores in text files, as PyEER's."""

    genuine: str
    """Scores of pairs of one person."""
    impostor: str
    """Scores of pairs of two people."""
    fmr_rule: Literal["at_most", "nearest"] = "nearest"
    """As in evaluate.py; "nearest" is PyEER's."""


def main(argv=None):
    config = tyro.cli(ScoreFilesConfig, prog="python -m evaluation.score_files", args=argv)
    genuine, impostor = read_scores(config.genuine), read_scores(config.impostor)
    log(f"{len(genuine):,} genuine and {len(impostor):,} impostor scores")
    for name, value in verification_stats(genuine, impostor, config.fmr_rule).items():
        log(f"{name:14} {value:.6g}")
    return 0


def write_scores(folder, genuine, impostor):
    """Write FOLDER/genuines.txt and impostors.txt, each whole or not at all."""
    for name, scores in ((GENUINE, genuine), (IMPOSTOR, impostor)):
        with atomic_path(folder / name) as temporary:
            np.savetxt(temporary, scores, "%.9g")  # nine digits bring every float32 back


def read_scores(path):
    """The scores in a file, float64; UserError for a missing file or a line without a number at its end."""
    try:
        with open(path, encoding="utf-8") as stream:
            return np.array([float(line.split()[-1]) for line in stream if line.strip()])
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({error}); give a file with a score a line") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; give a file with a score a line") from error


if __name__ == "__main__":
    run(main)
