import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import extract_arcface_embeds as script
from arcface_files import extraction
from arcface_files.faces import FaceAnalyser, align
from arcface_files.people import class_images, find_identities
from arcface_files.recogniser import load_recogniser
from configs.extract_config import ExtractConfig
from tests.tiny_pack import EMBEDDING_SIZE, LANDMARKS, face_photo, make_tiny_pack
from utils.errors import UserError
from utils.images import load_image, save_png

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_tiny_pack(tmp_path_factory.mktemp("packs") / "tiny")


@pytest.fixture(scope="module")
def networks(pack):
    return FaceAnalyser(pack), load_recogniser(pack / "rec_tiny.onnx")


@pytest.fixture
def people(tmp_path):
    """Two identities in the README's nesting, faces at places that can be told apart."""
    for person in (1, 2):
        for number in range(3):
            photo = face_photo((8 * number, 8 * person), blue=40 * number, seed=10 * person + number)
            save_png(tmp_path / f"faces/ID_{person}/images/{number}.png", photo)
    return tmp_path / "faces"


def run_script(pack, *arguments):
    """Exit code of the script's main with the tiny pack."""
    before, sys.argv = (
        sys.argv,
        [
            "extract_arcface_embeds.py",
            "--pack",
            str(pack),
            "--recogniser",
            "None",
            "--device",
            "cpu",
            *map(str, arguments),
        ],
    )
    try:
        return script.main() or 0
    finally:
        sys.argv = before


def faces_json(folder):
    return json.loads((folder / "ArcFace_embeds" / "faces.json").read_text())


def embedding(folder, stem):
    return torch.load(folder / "ArcFace_embeds" / f"{stem}.pt", weights_only=True)


def expected_embedding(photo, recogniser, index=0, analyser=None, crop="aligned"):
    face = analyser.detect([photo])[0][index]
    if crop == "box":
        left, top, right, bottom = face.box.astype(int)
        return recogniser(
            interpolate(
                torch.tensor(photo[top:bottom, left:right]).permute(2, 0, 1)[None].float(),
                (112, 112),
                mode="bilinear",
            ).round()
            / 127.5
            - 1
        )[0]
    crop = align(photo, face.landmarks)
    return recogniser(torch.tensor(crop).permute(2, 0, 1)[None] / 127.5 - 1)[0]


@pytest.mark.parametrize("option", ["--pack", "--recogniser"])
def test_the_home_of_a_user_who_is_not_there(pack, people, option):
    with pytest.raises(UserError, match="~nosuchuser/x"):
        run_script(pack, "--source-folder", people, option, "~nosuchuser/x")


def test_the_script_writes_nothing_where_all_is_up_to_date(pack, people):
    """Photos may then lie on a disk that is only read."""
    assert run_script(pack, "--source-folder", people) == 0
    before = {path: path.stat().st_mtime_ns for path in people.rglob("*")}
    assert run_script(pack, "--source-folder", people) == 0
    assert {path: path.stat().st_mtime_ns for path in people.rglob("*")} == before


def test_consent_is_asked_for_where_it_is_required(pack, people, capsys):
    """Of the people in the photos; class images are nobody's."""
    consent = {"who": "form 17", "purpose": ["train"], "until": "2099-12-31"}
    (people / "ID_1/consent.json").write_text(json.dumps(consent))
    (people / "ID_2/consent.json").write_text(json.dumps(consent | {"purpose": ["generate"]}))
    save_png(people.parent / "class/images/0.png", face_photo((8, 8), seed=3))
    options = ("--source-folder", people, "--class-folder", people.parent / "class")
    assert run_script(pack, *options, "--require-consent") == 1
    rows = {row["identity"]: row for row in json.loads((people / "extract_summary.json").read_text())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "ID_1": "done",
        "ID_2": "failed",
        "class images": "done",
    }
    assert "purpose allows generate, not train" in capsys.readouterr().err
    assert not (people / "ID_2/ArcFace_embeds").exists()
    (people / "ID_1/consent.json").write_text(json.dumps(consent | {"withdrawn": True}))
    assert run_script(pack, *options) == 1
    assert "ID_1/consent.json: consent was withdrawn" in capsys.readouterr().err


def test_a_name_that_is_none_for_a_folder_stops_nobody_else(pack, people, capsys):
    (people / "ID_1").rename(people / "A\nB")
    assert run_script(pack, "--source-folder", people) == 1
    rows = {
        row["identity"]: row["status"] for row in json.loads((people / "extract_summary.json").read_text())
    }
    assert rows == {"A\nB": "failed", "ID_2": "done"} and not (people / "A\nB/ArcFace_embeds").exists()
    assert "'A\\nB': not usable as a folder name; give a plain name" in capsys.readouterr().err


@pytest.mark.parametrize("crop", ["aligned", "box"])
def test_every_photo_gets_its_own_embedding(pack, people, networks, crop):
    analyser, recogniser = networks
    assert run_script(pack, "--source-folder", people, "--crop", crop) == 0
    for folder in (people / "ID_1", people / "ID_2"):
        record = faces_json(folder)
        assert list(record["images"]) == ["0.png", "1.png", "2.png"]
        assert record["crop"] == crop
        assert record["recogniser"]["file"] == "rec_tiny.onnx" and len(record["recogniser"]["sha256"]) == 64
        for number in range(3):
            photo = load_image(folder / "images" / f"{number}.png")
            value = embedding(folder, number)
            assert (
                value.shape == (EMBEDDING_SIZE,)
                and value.dtype == torch.float32
                and value.device.type == "cpu"
            )
            expected = expected_embedding(photo, recogniser, analyser=analyser, crop=crop)
            torch.testing.assert_close(value, expected)
            entry = record["images"][f"{number}.png"]
            assert entry["status"] == "ok" and (entry["height"], entry["width"], entry["faces"]) == (
                64,
                64,
                1,
            )
            corner = [8 * number, 8 * int(folder.name[-1])]
            np.testing.assert_allclose(entry["landmarks"], LANDMARKS + corner, atol=1e-3)
            np.testing.assert_allclose(entry["box"][:2], corner, atol=1e-3)
    assert (people / "extract_run.json").is_file() and (people / "extract_summary.json").is_file()


def test_other_nesting_and_class_images(pack, people, tmp_path, networks):
    root, flat = tmp_path / "root", tmp_path / "class"
    (root / "images").mkdir(parents=True)
    (people / "ID_2" / "images").rename(root / "images" / "ID_2")
    (people / "ID_1").rename(flat)
    save_png(flat / "images" / "empty.png", face_photo())
    assert run_script(pack, "--source-folder", root, "--class-folder", flat) == 0
    assert sorted(p.name for p in (root / "ArcFace_embeds" / "ID_2").glob("*.pt")) == ["0.pt", "1.pt", "2.pt"]
    assert sorted(p.name for p in (flat / "ArcFace_embeds").glob("*.pt")) == ["0.pt", "1.pt", "2.pt"]
    assert faces_json(flat)["images"]["empty.png"]["status"] == "no face"
    counts = extraction.embed_folder(class_images(flat), *networks)
    assert counts["ok"] == 3 and counts["no face"] == 1 and counts["kept"] == 4


def test_up_to_date_stays_and_stale_is_made_anew(pack, people, capsys):
    folder = people / "ID_1"
    run_script(pack, "--source-folder", people)
    before = {
        p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (folder / "ArcFace_embeds").glob("*.pt")
    }
    save_png(folder / "images" / "1.png", face_photo((24, 24), blue=200, seed=99))  # another content
    torch.save(torch.zeros(7), folder / "ArcFace_embeds" / "2.pt")  # another network's embedding
    run_script(pack, "--source-folder", people)
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (folder / "ArcFace_embeds").glob("*.pt")}
    assert after["0.pt"] == before["0.pt"]
    assert after["1.pt"][1] != before["1.pt"][1]
    assert after["2.pt"][1] == before["2.pt"][1]  # the same bytes, written again
    summary = json.loads((people / "extract_summary.json").read_text())
    assert [(row["embedded"], row["kept"]) for row in summary] == [(3, 1), (3, 3)]
    np.testing.assert_allclose(
        faces_json(folder)["images"]["1.png"]["landmarks"], LANDMARKS + [24, 24], atol=1e-3
    )


def test_other_networks_or_settings_make_all_stale(pack, people, tmp_path, networks):
    paths = sorted((people / "ID_1" / "images").iterdir())
    embeds, (analyser, recogniser) = people / "ID_1" / "ArcFace_embeds", networks
    assert extraction.embed_images(paths, embeds, analyser, recogniser)["kept"] == 0
    assert extraction.embed_images(paths, embeds, analyser, recogniser, batch_size=2, workers=1)["kept"] == 3
    assert extraction.embed_images(paths, embeds, analyser, recogniser, multiple_faces="central")["kept"] == 0
    assert extraction.embed_images(paths, embeds, FaceAnalyser(pack, pad=0.5), recogniser)["kept"] == 0
    other = tmp_path / "other.onnx"
    other.write_bytes((pack / "rec_tiny.onnx").read_bytes() + b"\x12\x05other")
    changed = FaceAnalyser(pack, pad=0.5), load_recogniser(other)
    assert extraction.embed_images(paths, embeds, *changed)["kept"] == 0
    assert extraction.embed_images(paths, embeds, *changed, crop="box")["kept"] == 0
    assert extraction.embed_images(paths, embeds, *changed, crop="box")["kept"] == 3


def test_policies_for_several_faces(pack, tmp_path, networks):
    analyser, recogniser = networks
    photo = face_photo((0, 0), (24, 24), blue=(255, 0))  # large in the corner, small in the centre
    save_png(tmp_path / "a" / "two.png", photo)
    results = {}
    for policy in ("largest", "central", "refuse"):
        counts = extraction.embed_images(
            [tmp_path / "a" / "two.png"], tmp_path / "e", analyser, recogniser, policy
        )
        entry = json.loads((tmp_path / "e" / "faces.json").read_text())["images"]["two.png"]
        assert counts["several faces"] == 1 and entry["faces"] == 2
        results[policy] = entry.get("landmarks"), (tmp_path / "e" / "two.pt").exists(), counts["ok"]
    assert results["largest"][0][0] == [4, 6] and results["largest"][1:] == (True, 1)
    assert results["central"][0][0] == [28, 30] and results["central"][1:] == (True, 1)
    assert results["refuse"] == (None, False, 0)  # the embedding of the older policy is gone too


def test_bad_photos_end_in_one_line_each_and_the_others_finish(pack, people, capsys):
    images = people / "ID_1" / "images"
    data = (images / "0.png").read_bytes()
    (images / "cut.png").write_bytes(data[: len(data) // 2])
    (images / "text.png").write_text("not a photo")
    (images / "notes.txt").write_text("other files are none of our business")
    save_png(images / "nobody.png", face_photo())
    Image.fromarray(face_photo((8, 8))).convert("CMYK").save(images / "cmyk.tif")
    Image.fromarray(np.full((64, 64), 30_000, np.uint16)).save(images / "deep.png")
    (people / "ID_0" / "images").mkdir(parents=True)
    (people / "ID_3" / "images").mkdir(parents=True)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(face_photo((8, 8))).save(people / "ID_3" / "images" / name)
    assert run_script(pack, "--source-folder", people) == 1
    lines = capsys.readouterr().err.splitlines()
    for words in (
        ("ID_1/cut.png", "unreadable"),
        ("ID_1/text.png", "not an image"),
        ("ID_1/nobody.png", "no face"),
        ("ID_1/deep.png", "no face"),
        ("ID_0", "no photos"),
        ("ID_3", "a.jpg and a.png would share"),
    ):
        assert sum(all(word in line for word in words) for line in lines) == 1, words
    rows = {row["identity"]: row for row in json.loads((people / "extract_summary.json").read_text())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "ID_0": "failed",
        "ID_1": "failed",
        "ID_2": "done",
        "ID_3": "failed",
    }
    counts = {key: rows["ID_1"][key] for key in ("photos", "embedded", "no face", "unreadable")}
    assert counts == {"photos": 8, "embedded": 4, "no face": 2, "unreadable": 2}
    assert (people / "ID_1" / "ArcFace_embeds" / "cmyk.pt").is_file()
    assert not (people / "ID_1" / "ArcFace_embeds" / "cut.pt").exists()


def test_people_who_cannot_be_embedded_fail_alone(pack, people, capsys, permissions):
    """A dry run says so of those whose photos were looked at before, or need not be."""
    for number, person in enumerate(("closed", "no images", "no embeds", "faceless", "refused")):
        photo = face_photo(*[(0, 0), (24, 24)][: 2 * (person == "refused")], seed=number)
        save_png(people / person / "images/0.png", photo)
    (people / "no embeds/ArcFace_embeds").mkdir()
    for folder in ("closed", "no images/images", "no embeds/ArcFace_embeds"):
        (people / folder).chmod(0)
    options = ("--source-folder", people, "--multiple-faces", "refuse")
    for again in (False, True):
        assert run_script(pack, *options, "--dry-run") == 1
        assert f"{5 if again else 3} failed" in capsys.readouterr().err
        assert run_script(pack, *options) == 1
        said = capsys.readouterr().err
        assert said.count("cannot be read (Permission denied); change its permissions") == 3
        assert "faceless/images: no face found in any photo; add photos that show the face" in said
        assert "refused/images: no face taken from any photo" in said and "Traceback" not in said
    rows = json.loads((people / "extract_summary.json").read_text())
    assert {row["identity"] for row in rows if row["status"] == "done"} == {"ID_1", "ID_2"}
    (people / "closed").chmod(0o700)
    people.chmod(0)
    with pytest.raises(UserError, match="faces: cannot be read"):
        run_script(pack, *options)
    people.chmod(0o700)


def test_no_face_removes_what_an_older_photo_left(pack, people):
    run_script(pack, "--source-folder", people)
    save_png(people / "ID_1" / "images" / "1.png", face_photo())
    assert run_script(pack, "--source-folder", people) == 0  # reported, but no error
    assert not (people / "ID_1" / "ArcFace_embeds" / "1.pt").exists()
    assert faces_json(people / "ID_1")["images"]["1.png"]["status"] == "no face"


def test_orphans_are_named_and_left_alone(pack, people, capsys):
    run_script(pack, "--source-folder", people)
    (people / "ID_2" / "images" / "0.png").unlink()
    run_script(pack, "--source-folder", people)
    assert "1 without a photo, not used: 0.pt" in capsys.readouterr().err
    assert (people / "ID_2" / "ArcFace_embeds" / "0.pt").is_file()
    assert list(faces_json(people / "ID_2")["images"]) == ["1.png", "2.png"]


def test_damaged_faces_json_is_made_anew(pack, people, capsys):
    run_script(pack, "--source-folder", people)
    good = (people / "ID_1" / "ArcFace_embeds" / "faces.json").read_text()
    for bad in ("{", "[]", '{"images": 3}'):
        (people / "ID_1" / "ArcFace_embeds" / "faces.json").write_text(bad)
        assert run_script(pack, "--source-folder", people) == 0
        assert (people / "ID_1" / "ArcFace_embeds" / "faces.json").read_text() == good


def own_embedding(folder, name, seed=5):
    """Somebody's own embedding of a photo; its file's bytes."""
    file = folder / "ArcFace_embeds" / f"{name}.pt"
    file.parent.mkdir(exist_ok=True)
    torch.save(torch.randn(1, EMBEDDING_SIZE, generator=torch.Generator().manual_seed(seed)), file)
    return file.read_bytes()


@pytest.mark.parametrize("when", ["before", "after"])
def test_embeddings_of_others_are_used_as_they_are(pack, people, capsys, when):
    """Put there before the first extraction, or in the place of ours; landmarks are found all the same."""
    first = run_script(pack, "--source-folder", people) if when == "after" else 0
    given, empty = own_embedding(people / "ID_1", "1"), people / "ID_1" / "ArcFace_embeds" / "2.pt"
    empty.write_bytes(b"")  # damage of ours is mended, an empty file of somebody else's stays
    assert first == 0 and run_script(pack, "--source-folder", people) == 0
    assert "of others, used as they are: 1.pt" in capsys.readouterr().err
    entries = faces_json(people / "ID_1")["images"]
    assert len(entries["1.png"]["landmarks"]) == 5 and "embedding_sha256" not in entries["1.png"]
    assert (people / "ID_1" / "ArcFace_embeds" / "1.pt").read_bytes() == given
    assert bool(empty.read_bytes()) == (when == "after")
    other = ("--detection-threshold", "0.4", "--source-folder", people)  # makes all of ours stale
    assert run_script(pack, *other) == 0
    assert (people / "ID_1" / "ArcFace_embeds" / "1.pt").read_bytes() == given


def test_a_photo_without_a_face_costs_nobody_their_embedding(pack, people):
    given = own_embedding(people / "ID_1", "1")
    save_png(people / "ID_1" / "images" / "1.png", np.zeros((64, 64, 3), np.uint8))
    assert run_script(pack, "--source-folder", people) == 0
    assert faces_json(people / "ID_1")["images"]["1.png"]["status"] == "no face"
    assert (people / "ID_1" / "ArcFace_embeds" / "1.pt").read_bytes() == given


def test_nothing_is_written_where_all_is_up_to_date(people, networks):
    paths, embeds = sorted((people / "ID_1" / "images").iterdir()), people / "ID_1" / "ArcFace_embeds"
    extraction.embed_images(paths, embeds, *networks)
    before = {path: path.stat().st_mtime_ns for path in embeds.iterdir()}
    extraction.embed_images(paths, embeds, *networks)
    assert {path: path.stat().st_mtime_ns for path in embeds.iterdir()} == before


def test_links_in_a_photo_folder_lead_nowhere(pack, people, tmp_path):
    """As in an archive from elsewhere: ArcFace_embeds of one person leads to a folder of mine."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "faces.json").write_text("mine")
    (people / "ID_1" / "ArcFace_embeds").symlink_to(mine)
    assert run_script(pack, "--source-folder", people) == 1
    rows = {row["identity"]: row for row in json.loads((people / "extract_summary.json").read_text())}
    assert rows["ID_1"]["status"] == "failed" and rows["ID_2"]["status"] == "done"
    assert [path.name for path in mine.iterdir()] == ["faces.json"]
    assert (mine / "faces.json").read_text() == "mine"


def test_interruption_keeps_what_is_done(people, networks, monkeypatch):
    paths, embeds = sorted((people / "ID_1" / "images").iterdir()), people / "ID_1" / "ArcFace_embeds"
    embed_faces, calls = extraction.embed_faces, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed_faces(*arguments)

    monkeypatch.setattr(extraction, "embed_faces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extraction.embed_images(paths, embeds, *networks, batch_size=1)
    assert len(faces_json(people / "ID_1")["images"]) == 2
    monkeypatch.undo()
    assert extraction.embed_images(paths, embeds, *networks) == {"ok": 3, "kept": 2, "several faces": 0}


def test_full_disk_ends_one_identity_in_one_line(pack, people, monkeypatch, capsys):
    write_bytes = Path.write_bytes

    def full(path, data):
        if "ID_1" in str(path) and ".pt" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run_script(pack, "--source-folder", people) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "disk is full" in line]
    assert len(lines) == 1 and lines[0].startswith("ID_1: ")
    assert not list((people / "ID_1" / "ArcFace_embeds").glob("*.pt*"))
    assert len(list((people / "ID_2" / "ArcFace_embeds").glob("*.pt"))) == 3


def test_batches_respect_memory(people, monkeypatch):
    paths = sorted((people / "ID_1" / "images").iterdir())
    monkeypatch.setattr(extraction, "PIXELS_IN_FLIGHT", 64 * 64 * 2)
    assert [len(batch) for batch in extraction.batches(paths, 32)] == [2, 1]
    monkeypatch.setattr(extraction, "PIXELS_IN_FLIGHT", 1)
    assert [len(batch) for batch in extraction.batches(paths, 32)] == [1, 1, 1]


def test_photos_of_any_size_and_turn(tmp_path, networks):
    """A tall, turned photo: landmarks are those of the photo as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 3
    photo = face_photo((16, 48), size=(160, 72))
    tmp_path.joinpath("i").mkdir()
    Image.fromarray(np.rot90(photo, 2).copy()).save(tmp_path / "i" / "a.png", exif=exif)
    extraction.embed_images([tmp_path / "i" / "a.png"], tmp_path / "e", *networks)
    entry = json.loads((tmp_path / "e" / "faces.json").read_text())["images"]["a.png"]
    np.testing.assert_allclose(entry["landmarks"], LANDMARKS + [16, 48], atol=1e-3)
    assert (entry["width"], entry["height"]) == (72, 160)


def test_dry_run_writes_nothing(pack, people, capsys):
    before = sorted(people.rglob("*"))
    assert run_script(pack, "--source-folder", people, "--dry-run") == 0
    assert "6 photos to embed" in capsys.readouterr().err
    assert sorted(people.rglob("*")) == before
    run_script(pack, "--source-folder", people)
    run_script(pack, "--source-folder", people, "--dry-run")
    assert "0 photos to embed" in capsys.readouterr().err


def test_the_script_itself(pack, people):
    """As a user runs it: missing weights end in one line and exit code 2; a pack's own recogniser serves."""
    command = [
        sys.executable,
        "extract_arcface_embeds.py",
        "--config",
        "configs/extract_sd21.py",
        "--source-folder",
        str(people),
        "--pack",
        str(pack),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    missing = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    if not (PROJECT / ExtractConfig().recogniser).exists():
        assert missing.returncode == 2
        assert missing.stderr.startswith(
            "error: arcface_files/ArcFace_r100_ms1mv3_backbone.pth: no such recogniser"
        )
        assert len(missing.stderr.strip().splitlines()) == 1
    good = subprocess.run(
        [*command, "--recogniser", "None"], cwd=PROJECT, capture_output=True, text=True, env=environment
    )
    assert good.returncode == 0, good.stderr
    assert "ID_1" in good.stderr and good.stdout == ""


def test_real_photos(fixtures_dir, tmp_path):
    """Three AT&T people: all embedded, everyone nearer to themselves than to the others."""
    for person in (1, 2, 3):
        source = fixtures_dir / "images" / "att_faces" / f"s{person}"
        (tmp_path / f"s{person}").mkdir()
        (tmp_path / f"s{person}" / "images").symlink_to(source)
    analyser = FaceAnalyser(fixtures_dir / "real_pack", det_size=320)
    recogniser = load_recogniser(analyser.models["recognition"])
    found = []
    for folder in find_identities(tmp_path):
        paths = [folder.images_dir / f"{number}.png" for number in (1, 4, 8)]
        assert extraction.embed_images(paths, folder.embeds_dir, analyser, recogniser)["ok"] == 3
        found += [torch.load(folder.embeds_dir / f"{path.stem}.pt", weights_only=True) for path in paths]
    units = torch.nn.functional.normalize(torch.stack(found), dim=1)
    similarity, person = units @ units.T, torch.arange(9) // 3
    same = (person[:, None] == person) & ~torch.eye(9, dtype=torch.bool)
    assert similarity[same].min() > similarity[person[:, None] != person].max()
