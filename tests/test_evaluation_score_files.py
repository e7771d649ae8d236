"""Score files: written, read, and the figures of files that others wrote."""

import numpy as np
import pytest

from evaluation import score_files
from evaluation.identity import verification_stats
from evaluation.score_files import GENUINE, IMPOSTOR, read_scores, write_scores
from utils.errors import UserError


def test_files_go_to_pyeer_and_back(tmp_path):
    rng = np.random.default_rng(0)
    genuine, impostor = (
        rng.normal(mean, 0.1, size).astype(np.float32) for mean, size in ((0.5, 40), (0, 300))
    )
    write_scores(tmp_path, genuine, impostor)
    for name, scores in ((GENUINE, genuine), (IMPOSTOR, impostor)):
        lines = (tmp_path / name).read_text().splitlines()
        assert len(lines) == len(scores)
        # PyEER takes the last word of a line.
        assert [float(line.strip().split(" ")[-1]) for line in lines] == pytest.approx(scores, rel=1e-8)
        assert np.array_equal(read_scores(tmp_path / name).astype(np.float32), scores)


def test_files_of_others_have_names_before_the_scores(tmp_path):
    (tmp_path / "g.txt").write_text("a/1.png a/2.png 0.75\n\nb/1.png b/2.png 5e-1\n")
    np.savetxt(tmp_path / "i.txt", [0.1, -0.25])  # as the published evaluation writes them
    assert read_scores(tmp_path / "g.txt").tolist() == [0.75, 0.5]
    assert read_scores(tmp_path / "i.txt").tolist() == [0.1, -0.25]


def test_the_figures_of_files(tmp_path, capsys):
    genuine, impostor = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.3, 0.75, 0.0])
    write_scores(tmp_path, genuine, impostor)
    words = ["--genuine", str(tmp_path / GENUINE), "--impostor", str(tmp_path / IMPOSTOR)]
    assert score_files.main(words) == 0
    told = dict(line.split() for line in "".join(capsys.readouterr()).splitlines() if len(line.split()) == 2)
    expected = verification_stats(genuine, impostor, "nearest")
    assert set(told) == set(expected) and float(told["eer"]) == expected["eer"] == 0.25


@pytest.mark.parametrize(
    "text, message", [("0.5\nnone\n", "could not convert"), (b"\xff\xfe0", "not readable")]
)
def test_what_is_no_score_file_is_refused(tmp_path, text, message):
    (tmp_path / "s.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=message):
        read_scores(tmp_path / "s.txt")
    with pytest.raises(UserError, match="not readable"):
        read_scores(tmp_path / "absent.txt")
