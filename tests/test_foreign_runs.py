"""Training, sampling, evaluation and curation among odd files: nothing of others changes, nobody is missed.

Odd entries lie in the folders that are read before a first run; more come, in all folders, before a second.
"""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import extract_arcface_embeds
import inference_id_booth
import train_id_booth
from evaluation import curate, evaluate
from id_booth.diffusion.base_model import load_base_model
from tests.evaluation_world import ColourAnalyser
from tests.test_foreign_trees import FORM, KINDS, LAYOUTS, NAMES, PEOPLE, grow, make, people_there, run, state
from tests.tiny_base import make_tiny_lora
from tests.tiny_pack import face_photo, make_tiny_pack
from utils.images import save_png

OURS = "summary.json run.json README.md training_config.json train_log.jsonl tensorboard 000.png"
OURS += " checkpoint-0-1 pytorch_lora_weights.safetensors metadata.jsonl consent.json attributes.csv tables"
OURS += " ours.json report.html results.json measurements.csv data.js curation.json DreamBooth ID_1 ID_1.jpg"
ODD_NAMES = NAMES | st.sampled_from([*OURS.split(), "\udcff.png", "\udcff", "._00000.png", "00000.png"])
LINKS = {"link to a photo": "outside/0.png", "link to a folder": "outside", "link to ours": "out"}
ODD_KINDS = KINDS | st.sampled_from([*LINKS])
FACES = ("faces", "faces/{person}", "faces/{images}", "faces/{embeds}", "faces/images")
CLASS = ("class", "class/images", "class/ArcFace_embeds")
PERSON = "out/{method}/{person}"
RUN = (
    "out",
    "out/.batch",
    "out/{method}",
    PERSON,
    f"{PERSON}/checkpoint-0-1",
    f"{PERSON}/training_config.json",
)
RUN += (f"{PERSON}/tensorboard", f"{PERSON}/train_log.jsonl", "class/images/00000.png")
LORA = ("loras", "loras/{method}", "loras/{method}/{person}", "loras/{method}/{person}/checkpoint-7-9")
SET = ("out/set", "out/set/.batch", "out/set/{method}", "out/set/{method}/{person}", "sheets", "sheets/set")
SET += ("out/set/{method}/{person}/000.png", "out/set/{method}/metadata.jsonl", "sheets/set/{person}.jpg")
SAMPLES = ("sets", "sets/one", "sets/one/{method}", "sets/one/{method}/{person}")
REPORT = ("out", "out/cache", "out/gallery", "out/tables", "curated", "curated/.batch")
# Each example is two runs; an evaluation takes the longest.
FORM_OF_RUNS, FORM_OF_EVALUATIONS = (
    type(FORM)(FORM, max_examples=FORM.max_examples // share) for share in (3, 6)
)


def trees(read, written):
    """Layout, people, method, and odd entries: in places that are ``read`` at first, then in all."""
    first, later = (
        st.lists(st.tuples(st.sampled_from(places), ODD_NAMES, ODD_KINDS), max_size=6)
        for places in (read, (*read, *written))
    )
    in_the_way = st.tuples(st.sampled_from(written), st.just(""), ODD_KINDS)
    later = st.tuples(later, st.lists(in_the_way, max_size=3)).map(lambda lists: [*lists[1], *lists[0]])
    people = st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=2, unique=True)
    methods = st.sampled_from(["DreamBooth", "ID-Booth"])
    return st.tuples(st.sampled_from(LAYOUTS), people, methods, first, later)


@contextlib.contextmanager
def world(pack, tree):
    """A new folder with the people's photos in faces/, and something outside to link to."""
    with tempfile.TemporaryDirectory(dir=pack) as folder:
        root = Path(folder)
        grow(root / "faces", (tree[0], tree[1], []))
        save_png(root / "outside/0.png", np.full((64, 64, 3), 100, np.uint8))
        save_png(root / "outside/images/0.png", np.full((64, 64, 3), 50, np.uint8))
        yield root


def plant(root, tree, odd):
    """Put odd entries into a world, where nothing of their name is yet."""
    layout, (person, *_), method = tree[:3]
    embeds = "{}/ArcFace_embeds" if layout == LAYOUTS[0] else "ArcFace_embeds/{}"
    places = {"images": layout.format(person), "embeds": embeds.format(person)}
    for place, name, kind in odd:
        path = root / place.format(person=person, method=method, **places) / name
        with contextlib.suppress(OSError):  # a file where a folder belongs, a name that is too long
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):
                continue
            path.symlink_to(root / LINKS[kind]) if kind in LINKS else make(path, kind)


def watched(root, outputs, ours, main, *options):
    """Run a script; (exit code, whether refused, what it said, paths that are ours).

    Whatever is not ``ours`` must stay as it is, and what is new lie in ``outputs``.
    """
    before, said = state(root), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code, refusal = run(main, *options)
    after, said = state(root), said.getvalue()
    assert "Traceback" not in said
    theirs = {path: content for path, content in before.items() if path not in ours}
    assert theirs == {path: after.get(path) for path in theirs}
    new, outputs = set(after) - set(before), [root / output for output in outputs]
    for path in map(Path, new):
        assert any(output in (path, *path.parents) or path in output.parents for output in outputs)
    return code, refusal, said, ours | new


def check_rows(people, code, refusal, summary):
    """Everybody is in the summary, in one line, and the exit code says whether all is done."""
    if refusal:
        assert code == 2
        return
    rows = json.loads(summary.read_text())
    assert {unicodedata.normalize("NFC", name) for name in people} <= {row["identity"] for row in rows}
    assert (code == 0) == all(row["status"] in ("done", "done before") for row in rows)
    assert not any(re.search(r"\n|^\w+(Error|Exception):", row["detail"]) for row in rows)


@pytest.fixture(scope="module")
def pack(tmp_path_factory, tiny_base):
    """A tiny pack; the tiny base model is read once for all runs."""
    base = []

    def load(name, dtype, device, revision=None):
        base[:] = base or [load_base_model(name, dtype, device, revision)]
        return copy.deepcopy(base[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("id_booth.training.frozen_models.load_base_model", load)
        patch.setattr("inference_id_booth.load_base_model", load)
        patch.setattr("evaluation.plots.draw", lambda *_, **__: "<svg></svg>")
        patch.setattr("evaluation.comparison.FaceAnalyser", lambda name, **_: ColourAnalyser(folder, name))
        folder = make_tiny_pack(tmp_path_factory.mktemp("packs") / "tiny")
        make_tiny_lora(folder / "lora", tiny_base)
        yield folder


@given(tree=trees((*FACES, *CLASS, *RUN[:5]), RUN), prior=st.booleans())
@FORM_OF_RUNS
def test_training(pack, tiny_base, tree, prior):
    _, people, method, first, later = tree
    with world(pack, tree) as root:
        save_png(root / "class/images/a.png", face_photo((8, 8), seed=9))
        options = ("--source-folder", root / "faces", "--class-folder", root / "class")
        options += ("--pack", pack, "--device", "cpu")
        run(extract_arcface_embeds.main, "--recogniser", "None", *options)
        options += ("--config", "configs/train_mini.py", "--num-class-images", 2)
        options += ("--output-folder", root / "out", "--base-model", tiny_base, "--resolution", 64)
        options += ("--objectives", method, "--max-train-steps", 1, "--class-inference-steps", 1)
        options += ("--train-batch-size", 1, "--lora-rank", 2, "--lora-targets", "to_q")
        options += ("--validation-images", 0, "--no-start-check")
        options += () if prior else ("--no-with-prior-preservation", "--negatives-folder", root / "class")
        ours = {str(root / "class/ArcFace_embeds/faces.json")}  # of the extraction: images are made after it
        for odd, names in ((first, people[1:]), (later, ())):
            plant(root, tree, odd)
            some = ("--identities", *names) if names else ()
            found = watched(root, ("out", "class"), ours, train_id_booth.main, *options, *some)
            code, refusal, _, ours = found
            there = names or people_there(root / "faces", tree[0])
            check_rows(there, code, refusal, root / "out/summary.json")


@given(tree=trees((*FACES, *LORA), SET))
@FORM_OF_RUNS
def test_sampling(pack, tiny_base, tree):
    _, people, method, first, later = tree
    with world(pack, tree) as root:
        for name in people:
            shutil.copytree(pack / "lora", root / "loras" / method / name / "checkpoint-7-9")
        options = ("--config", "configs/inference_mini.py", "--source-folder", root / "faces")
        options += ("--lora-folder", root / "loras", "--output-folder", root / "out", "--set-name", "set")
        options += ("--sheets-folder", root / "sheets", "--base-model", tiny_base, "--resolution", 64)
        options += ("--steps", 1, "--prompt-set", 2, "--device", "cpu", "--no-use-gender")
        options += ("--methods", method)
        ours = set()
        for odd, names in ((first, people[1:]), (later, ())):
            plant(root, tree, odd)
            some = ("--identities", *names) if names else ()
            found = watched(root, ("out/set", "sheets/set"), ours, inference_id_booth.main, *options, *some)
            code, refusal, _, ours = found
            check_rows(names or people, code, refusal, root / "out/set/summary.json")


@given(tree=trees((*FACES, *SAMPLES), REPORT))
@FORM_OF_EVALUATIONS
def test_evaluation_and_curation(pack, tree):
    _, people, method, first, later = tree
    with world(pack, tree) as root:
        for number, name in enumerate(people):
            for sample in range(2):
                colour = np.full((64, 64, 3), (200, 90 * number, 40 * sample), np.uint8)
                save_png(root / "sets/one" / method / name / f"{sample:03d}.png", colour)
        options = ("--config", "configs/evaluate_mini.py", "--real-folder", root / "faces", "--device", "cpu")
        options += ("--samples-folder", root / "sets", "--output-folder", root / "out", "--pack", "tiny")
        options += ("--cache-folder", root / "out/cache", "--replicates", 20, "--encoders", "pixels")
        options += ("--judge-pack", "None", "--attributes-file", "None", "--verification-replicates", 20)
        chosen = ("--fmr", "None", "--measurements", root / "out", "--output-folder", root / "curated")
        ours = set()
        for odd in (first, later):
            plant(root, tree, odd)
            code, refusal, said, ours = watched(root, ("out",), ours, evaluate.main, *options)
            assert code == (2 if refusal else 0)
            if refusal:
                continue
            measured = (root / "out/measurements.csv").read_text()
            for name in people:
                assert unicodedata.normalize("NFC", name) in measured or name in said
            code, refusal, _, ours = watched(root, ("curated",), ours, curate.main, *chosen)
            assert code == (2 if refusal else 0)
