"""Trees of odd files around valid ones: nothing that is not ours changes, and everybody is accounted for."""

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import extract_arcface_embeds
from fr_training import align_faces
from tests.tiny_pack import face_photo, make_tiny_pack
from utils.errors import UserError
from utils.progress import log_once

EXAMPLES = int(os.environ.get("FOREIGN_TREES", 40))  # 1000 in the long form
PEOPLE = ("ID_1", "ID_2", "José", "Jose\u0301", "comparison", "Contact_Sheets", " a b", "ID_1.png")
LAYOUTS = ("{}/images", "images/{}")
SYSTEM = ("Thumbs.db", ".DS_Store", "._0.png", "desktop.ini", "@eaDir", "__MACOSX", ".batch")
OTHER = ("0.png", "0.jpg", "01.png", "1.PNG", "é.webp", "e\u0301.webp", "x", "x.heic", "x.pt", "notes.txt")
OTHER += ("faces.json", "0.pt", "ArcFace_embeds", "images", "extract_summary.json", "labels.json", "a\nb.png")
NAMES = st.sampled_from(SYSTEM + OTHER) | st.text(
    st.characters(exclude_characters="/\0"), min_size=1, max_size=6
)
PNG = io.BytesIO()
Image.fromarray(face_photo((8, 8), seed=1)).save(PNG, "PNG")
PNG = PNG.getvalue()
CONTENTS = {
    "photo": PNG,
    "cut": PNG[:900],
    "empty": b"",
    "text": b"hello",
    "json": b"{}",
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(400),
    "resource fork": b"\0\5\x16\7\0\2" + bytes(90),
}
KINDS = st.sampled_from([*CONTENTS, "folder", "folder of photos", "pipe", "dangling link", "link to itself"])
PLACES = st.sampled_from(["", "{person}", "{images}", "{embeds}", "images", "ArcFace_embeds"])
ODD = st.lists(st.tuples(PLACES, NAMES, KINDS), max_size=8)
TREES = st.tuples(
    st.sampled_from(LAYOUTS), st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=3, unique=True), ODD
)
FORM = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 40, suppress_health_check=[*HealthCheck]
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_tiny_pack(tmp_path_factory.mktemp("packs") / "tiny")


def grow(root, tree):
    """Write a tree of odd entries around people with two photos each."""
    layout, people, odd = tree
    for number, name in enumerate(people):
        images = root / layout.format(name)
        images.mkdir(parents=True, exist_ok=True)
        for photo in range(2):
            Image.fromarray(face_photo((8, 8), blue=40 * photo, seed=number)).save(images / f"{photo}.png")
    for place, name, kind in odd:
        embeds = "{}/ArcFace_embeds" if layout == LAYOUTS[0] else "ArcFace_embeds/{}"
        places = {"person": people[0], "images": layout.format(people[0]), "embeds": embeds.format(people[0])}
        path = root / place.format(**places) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(path):
                make(path, kind)
        except OSError:  # a file where a folder belongs, a name that this file system does not take
            continue


def make(path, kind):
    """One odd entry."""
    if kind == "pipe":
        os.mkfifo(path)
    elif "link" in kind:
        path.symlink_to(path.name if "itself" in kind else "nowhere")
    elif "folder" in kind:
        path.mkdir()
        if "photos" in kind:
            (path / "0.png").write_bytes(PNG)
    else:
        path.write_bytes(CONTENTS[kind])


def state(root):
    """{path: what is there} of a tree, links not followed."""
    found = {}
    for folder, _, _ in os.walk(root):
        for entry in os.scandir(folder):
            if entry.is_symlink():
                found[entry.path] = os.readlink(entry.path)
            elif entry.is_file():
                found[entry.path] = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
            else:
                found[entry.path] = "folder" if entry.is_dir() else "other"
    return found


def people_there(root, layout):
    """Names of the people that anybody would see in a tree of this layout."""
    place = root / "images" if layout == LAYOUTS[1] else root
    found = set()
    for entry in place.iterdir():
        system = entry.name[0] == "." or entry.name in SYSTEM[:7]
        with_photos = entry.is_dir() and (layout == LAYOUTS[1] or (entry / "images").is_dir())
        if (
            with_photos
            and not system
            and utf8(entry.name)
            and (layout == LAYOUTS[1] or entry.name != "images")
        ):
            found.add(unicodedata.normalize("NFC", entry.name))
    return found


def utf8(name):
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def run(main, *arguments):
    """(exit code, None), or (2, the message) of a refusal, of a script run in this process."""
    before, sys.argv = sys.argv, ["script", *map(str, arguments)]
    log_once.cache_clear()
    try:
        return main() or 0, None
    except UserError as error:
        assert "\n" not in str(error).strip()
        return 2, str(error)
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check(root, before, people, code, refusal, summary):
    """What holds of every run, whatever lay there; the paths that are new."""
    after = state(root)
    for path, content in before.items():
        # Somebody else's faces.json makes room, and is kept under another name.
        moved = path.endswith("/faces.json") and content in after.values()
        assert after.get(path) == content or moved
    if refusal:
        assert code == 2
    else:
        rows = json.loads(summary.read_text())
        assert people <= {row["identity"] for row in rows}
        assert (code == 0) == all(row["status"] == "done" for row in rows)
    return set(after) - set(before)


@given(tree=TREES)
@FORM
def test_extraction(pack, tree):
    root = Path(tempfile.mkdtemp(dir=pack)) / "faces"
    grow(root, tree)
    before, people = state(root), people_there(root, tree[0])
    options = ("--pack", pack, "--recogniser", "None", "--device", "cpu")
    code, refusal = run(extract_arcface_embeds.main, "--source-folder", root, *options)
    new = check(root, before, people, code, refusal, root / "extract_summary.json")
    ours = (".pt", ".txt", ".json", "ArcFace_embeds", ".batch")
    folders = {"/".join(path.split("/")[:-1]) for path in new} | {*before}
    inside = (".batch", "faces.json")
    assert all(path.endswith(ours) or any(map(path.count, inside)) or path in folders for path in new)
    shutil.rmtree(root.parent)


@given(tree=TREES)
@FORM
def test_extraction_to_another_folder(pack, tree):
    root = Path(tempfile.mkdtemp(dir=pack)) / "faces"
    grow(root, tree)
    before, people = state(root), people_there(root, tree[0])
    output = root.parent / "embeds"
    options = ("--pack", pack, "--recogniser", "None", "--device", "cpu", "--embeds-folder", output)
    code, refusal = run(extract_arcface_embeds.main, "--source-folder", root, *options)
    assert not check(root, before, people, code, refusal, output / "extract_summary.json")
    shutil.rmtree(root.parent)


@given(tree=TREES)
@FORM
def test_alignment(pack, tree):
    root = Path(tempfile.mkdtemp(dir=pack)) / "faces"
    grow(root, tree)
    before, people = state(root), people_there(root, tree[0])
    output = root.parent / "crops"
    options = ("--pack", pack, "--pad", 0, "--output", output, "--labels", root.parent / "labels.json")
    code, refusal = run(align_faces.main, "--source", root, *options)
    assert not check(root, before, people, code, refusal, output / "summary.json")
    shutil.rmtree(root.parent)
