"""Crops, mixtures, augmentation, and the scripts that test and study: what goes in, what comes out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from arcface_files import face_records
from arcface_files.faces import ARCFACE_TEMPLATE, Face
from arcface_files.recogniser import load_recogniser
from configs.fr_config import AlignConfig, AugmentConfig, StudyConfig, TestFRConfig, TrainFRConfig
from fr_training import align_faces, augment_dataset, study, test_fr
from fr_training.augment import augment_batch
from fr_training.benchmark_bin import read_bin, write_bin
from fr_training.crops import load_crops
from fr_training.networks import build_network, embed, save_network
from fr_training.rand_augment import BINS, MAX_MAGNITUDE, OPERATIONS, TABLE
from fr_training.verification import evaluate_pairs
from id_booth.sampling.provenance import (
    DIGITAL_SOURCE_TYPE,
    FIELDS,
    png_chunks,
    read_metadata,
    read_record,
)
from utils import outputs
from utils.claims import Claims
from utils.config import load_config
from utils.errors import UserError
from utils.files import read_json, sha256_file
from utils.images import load_image, read_png_text, save_png
from utils.run_record import PROJECT_ROOT


class FakeAnalyser:
    """Finds the template itself in the middle of every picture that is not black."""

    calls = 0

    def __init__(self, *settings):
        pass

    def detect(self, images):
        FakeAnalyser.calls += len(images)
        face = Face(np.float32([0, 0, 100, 100]), ARCFACE_TEMPLATE + 8, 0.9)
        return [[face] if image.any() else [] for image in images]


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """Samples of two people, the second picture of ID_10 black, beside overviews of them."""
    monkeypatch.setattr(align_faces, "FaceAnalyser", FakeAnalyser)
    rng = np.random.default_rng(0)
    for name in ("ID_2", "ID_10"):
        for place in range(3):
            image = rng.integers(1, 255, (128, 128, 3), np.uint8)
            save_png(tmp_path / "in" / name / f"{place}.png", image * (name != "ID_10" or place != 1))
        save_png(tmp_path / "in/contact_sheets" / f"{name}.png", image)
    return tmp_path / "in"


def align(tmp_path, samples, output="out", code=0):
    config = tmp_path / "align.py"
    config.write_text(
        f"from configs.fr_config import AlignConfig\nconfig = AlignConfig(source={str(samples)!r}, "
        f"output={str(tmp_path / output)!r}, labels={str(tmp_path / 'labels.json')!r})"
    )
    assert align_faces.main(["--config", str(config)]) == code
    return tmp_path / output


def test_crops_labels_and_missing_faces(tmp_path, samples):
    out = align(tmp_path, samples)
    assert {path.parent.name + "/" + path.name for path in out.glob("*/*.png")} == {
        "ID_2/0.png",
        "ID_2/1.png",
        "ID_2/2.png",
        "ID_10/0.png",
        "ID_10/2.png",
    }
    assert read_json(out / "missing_faces.json") == {"ID_10": ["1.png"]}
    assert read_json(tmp_path / "labels.json") == {"ID_2": 0, "ID_10": 1}
    # The face sits at the template, eight pixels in: the crop is a plain cut-out.
    whole = load_image(samples / "ID_2/0.png")
    assert np.array_equal(load_image(out / "ID_2/0.png"), whole[8:120, 8:120])


def test_crops_of_samples_carry_their_record_and_crops_of_photos_carry_nothing(tmp_path, samples):
    record = {field: "x" for field in FIELDS} | {"digital_source_type": DIGITAL_SOURCE_TYPE}
    save_png(samples / "ID_2/0.png", load_image(samples / "ID_2/0.png"), png_chunks(record))
    notes = {"Author": "somebody", "Comment": "ward 7", "id_booth": json.dumps({"prompt": "forged"})}
    save_png(samples / "ID_2/1.png", load_image(samples / "ID_2/1.png"), notes)
    out = align(tmp_path, samples)
    assert read_record(out / "ID_2/0.png") == record
    assert (
        read_png_text(out / "ID_2/0.png").keys() - read_png_text(out / "ID_2/1.png").keys()
        == png_chunks(record).keys()
    )
    for name in ("ID_2/1.png", "ID_2/2.png"):
        assert read_record(out / name) is None and list(read_png_text(out / name)) == ["Source SHA-256"]
        assert b"AlgorithmicMedia" not in (out / name).read_bytes()


def test_alignment_notes_no_place_of_the_machine(tmp_path, samples):
    (samples / "ID_2/broken.png").write_bytes(b"no picture")
    out = align(tmp_path, samples, code=1)
    for name in ("alignment.json", "summary.json", "summary.txt", "run.json"):
        assert str(tmp_path) not in (out / name).read_text()
    assert read_json(out / "alignment.json")["images"]["ID_2/broken.png"]["trouble"].startswith(
        "broken.png: "
    )


def test_alignment_resumes_by_content(tmp_path, samples):
    out = align(tmp_path, samples)
    FakeAnalyser.calls = 0
    align(tmp_path, samples)
    assert FakeAnalyser.calls == 0
    (out / "ID_2/0.png").unlink()
    save_png(samples / "ID_2/1.png", np.full((128, 128, 3), 9, np.uint8))
    (samples / "ID_10/0.png").unlink()
    align(tmp_path, samples)
    assert FakeAnalyser.calls == 2 and (out / "ID_2/0.png").exists() and not (out / "ID_10/0.png").exists()


def photos_of(folder):
    """Path -> content of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("output", ["in", "in/ID_2", ".", "in/ID_2/crops"])
def test_alignment_never_writes_in_or_around_its_source(tmp_path, samples, output):
    before = photos_of(tmp_path / "in")
    with pytest.raises(UserError, match="overlaps"):
        align(tmp_path, samples, output)
    assert photos_of(tmp_path / "in") == before


def test_pictures_of_others_in_the_output_are_left_alone(tmp_path, samples):
    holiday = tmp_path / "pictures/holiday/1.png"
    save_png(holiday, np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match="did not write"):
        align(tmp_path, samples, "pictures")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["holiday"]

    out = align(tmp_path, samples)
    theirs = {out / "ID_2/holiday.png": 7, out / "ID_2/0.png": 8, out / "stranger/1.png": 9}
    for path, value in theirs.items():
        save_png(path, np.full((9, 9, 3), value, np.uint8))
    before = photos_of(out)
    (samples / "ID_2/1.png").unlink()
    align(tmp_path, samples, code=1)
    after = photos_of(out)
    assert all(after[path] == before[path] for path in theirs) and out / "ID_2/1.png" not in after
    rows = {row["identity"]: row for row in read_json(out / "summary.json")}
    assert rows["ID_2"]["unreadable"] == 1 and rows["ID_10"]["status"] == "done"


def test_one_bad_file_costs_one_file(tmp_path, samples):
    (samples / "ID_2/1.png").write_bytes((samples / "ID_2/1.png").read_bytes()[:200])
    out = align(tmp_path, samples, code=1)
    rows = {row["identity"]: row for row in read_json(out / "summary.json")}
    assert (rows["ID_2"]["crops"], rows["ID_2"]["unreadable"], rows["ID_2"]["status"]) == (2, 1, "failed")
    assert rows["ID_10"]["status"] == "done"
    assert "damaged" in read_json(out / "alignment.json")["images"]["ID_2/1.png"]["trouble"]
    save_png(samples / "ID_2/1.png", np.full((128, 128, 3), 9, np.uint8))
    align(tmp_path, samples)


def test_a_photo_that_may_not_be_read_costs_one_file(tmp_path, samples, monkeypatch):
    out = align(tmp_path, samples)
    hidden = samples / "ID_2/1.png"
    hidden.write_bytes(b"")  # for the decoder, as a test may run as root

    def hash_of(path):
        if path == hidden:
            raise PermissionError
        return sha256_file(path)

    monkeypatch.setattr(face_records, "sha256_file", hash_of)
    align(tmp_path, samples, code=1)
    rows = {row["identity"]: row for row in read_json(out / "summary.json")}
    assert (rows["ID_2"]["crops"], rows["ID_2"]["unreadable"]) == (2, 1) and rows["ID_10"]["status"] == "done"


def test_nobody_is_lost(tmp_path, monkeypatch):
    """A person called comparison, stray pictures beside images/, a mixture of both forms, an empty folder."""
    monkeypatch.setattr(align_faces, "FaceAnalyser", FakeAnalyser)
    picture = np.full((128, 128, 3), 9, np.uint8)
    for name in ("comparison/images/0", "ID_1/images/0", "ID_1/stray", "ID_2/0", "Contact_Sheets/ID_1"):
        save_png(tmp_path / "in" / f"{name}.png", picture)
    (tmp_path / "in/ID_3/images").mkdir(parents=True)
    (tmp_path / "in/notes").mkdir()
    out = align(tmp_path, tmp_path / "in", code=1)
    rows = {row["identity"]: row["crops"] for row in read_json(out / "summary.json")}
    assert rows == {"comparison": 1, "ID_1": 1, "ID_2": 1, "ID_3": 0}


def test_pictures_that_are_of_no_person_get_no_label(tmp_path, samples):
    """The folder of one person's photos, and the one that holds the class images."""
    picture = np.full((128, 128, 3), 9, np.uint8)
    save_png(tmp_path / "faces/ID_1/images/0.png", picture)
    with pytest.raises(UserError, match="ID_1: images in it holds pictures and no .*; give the folder above"):
        align(tmp_path, tmp_path / "faces/ID_1")
    record = {field: "x" for field in FIELDS} | {"identity": "", "digital_source_type": DIGITAL_SOURCE_TYPE}
    save_png(tmp_path / "faces/CLASS_IMAGES/images/0.png", picture, png_chunks(record))
    with pytest.raises(UserError, match="faces: CLASS_IMAGES holds class images, of no person"):
        align(tmp_path, tmp_path / "faces")
    assert not (tmp_path / "labels.json").exists() and not (tmp_path / "out").exists()


def test_two_files_of_one_crop(tmp_path, samples):
    for name in ("a.bmp", "a_bmp.png"):
        Image.fromarray(np.full((128, 128, 3), 9, np.uint8)).save(samples / "ID_2" / name)
    out = align(tmp_path, samples, code=1)
    assert not (out / "ID_2/a_bmp.png").exists() and (out / "ID_2/0.png").exists()


def test_labels_never_change(tmp_path, samples):
    align(tmp_path, samples)
    save_png(samples / "ID_1/0.png", np.full((128, 128, 3), 9, np.uint8))
    align(tmp_path, samples, "second")
    assert read_json(tmp_path / "labels.json") == {"ID_2": 0, "ID_10": 1, "ID_1": 2}


@pytest.mark.parametrize("label", ["0", True, 0.0, None])
def test_labels_are_whole_numbers(tmp_path, samples, mixture, label):
    (tmp_path / "labels.json").write_text(json.dumps({"ID_1": label}))
    with pytest.raises(UserError, match="labels.json: labels are no whole numbers"):
        align(tmp_path, samples)
    with pytest.raises(UserError, match="labels.json: labels are no whole numbers"):
        augment_dataset.build_manifest(AugmentConfig(**mixture, count=6))


def test_another_source_into_the_same_output_is_refused(tmp_path, samples):
    """A second method's samples would replace the first one's crops, which have the same names."""
    out = align(tmp_path, samples)
    state = read_json(out / "alignment.json")
    assert state["source"] == samples.name
    crop = (out / "ID_2/0.png").read_bytes()
    for number, other in enumerate((tmp_path / "other", tmp_path / "elsewhere" / samples.name)):
        for name in ("ID_2/0.png", "ID_10/0.png", "ID_99/0.png"):
            save_png(other / name, np.full((128, 128, 3), 17 + number, np.uint8))
        with pytest.raises(
            UserError, match=f"holds the crops of {samples.name}, not of .*name another output"
        ):
            align(tmp_path, other)
    assert (out / "ID_2/0.png").read_bytes() == crop and read_json(out / "alignment.json") == state
    assert "ID_99" not in read_json(tmp_path / "labels.json")
    del state["source"]  # an older state: by its images
    (out / "alignment.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="holds the crops of another folder"):
        align(tmp_path, tmp_path / "other")
    save_png(samples / "ID_1/0.png", np.full((128, 128, 3), 9, np.uint8))  # new photos are no other source
    align(tmp_path, samples)


def crop_set(folder, people, each, value=100):
    for name in people:
        for place in range(each):
            save_png(folder / name / f"{place:03d}.png", np.full((112, 112, 3), value + place, np.uint8))
    return str(folder)


@pytest.fixture
def mixture(tmp_path):
    """Settings for two real people with 2 crops and 12 samples each, of three backgrounds and two poses."""
    people = ["ID_1", "ID_2"]
    places = ("forest", "office", "beach")
    lines = [
        {
            "file_name": f"{name}/{i:03d}.png",
            "prompt": f"face {'side-' * (i % 2)}portrait photo of sks person, {places[i // 4]} background",
        }
        for name in people
        for i in range(12)
    ]
    metadata = tmp_path / "samples" / "metadata.jsonl"
    metadata.parent.mkdir()
    metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "labels.json").write_text('{"ID_1": 0, "ID_2": 1}')
    return dict(
        real=crop_set(tmp_path / "real", people, 2),
        synthetic=crop_set(tmp_path / "syn", people, 12),
        samples_metadata=str(metadata),
        labels=str(tmp_path / "labels.json"),
        output=str(tmp_path / "mix" / "m.json"),
    )


def chosen(manifest, name="ID_1"):
    return [Path(item["file"]).stem for item in manifest["identities"][name] if item["kind"] == "synthetic"]


def test_exact_counts_balanced_over_backgrounds_and_poses(mixture):
    manifest = augment_dataset.build_manifest(AugmentConfig(**mixture, count=6))
    for name in ("ID_1", "ID_2"):
        numbers = [int(stem) for stem in chosen(manifest, name)]
        assert len(set(numbers)) == 6
        assert [sum(n // 4 == place for n in numbers) for place in range(3)] == [2, 2, 2]
        assert sum(n % 2 for n in numbers) == 3


def test_smaller_sets_are_parts_of_larger_ones_and_seeds_differ(mixture):
    sets = [
        set(chosen(augment_dataset.build_manifest(AugmentConfig(**mixture, count=n)))) for n in (3, 6, 12)
    ]
    assert sets[0] < sets[1] < sets[2]
    others = [
        chosen(augment_dataset.build_manifest(AugmentConfig(**mixture, count=3, seed=s))) for s in range(8)
    ]
    assert len({tuple(other) for other in others}) > 1


def test_the_choice_does_not_depend_on_other_people(mixture, tmp_path):
    both = augment_dataset.build_manifest(AugmentConfig(**mixture, count=4))
    alone = mixture | {"real": crop_set(tmp_path / "one", ["ID_2"], 2)}
    assert chosen(augment_dataset.build_manifest(AugmentConfig(**alone, count=4)), "ID_2") == chosen(
        both, "ID_2"
    )


def test_balance_without_metadata_by_what_the_crops_say(mixture, tmp_path, capsys):
    """Crops of our samples carry their prompts; of others nothing is known, and the log says so."""
    config = AugmentConfig(**mixture | {"samples_metadata": None}, count=6)
    augment_dataset.build_manifest(config)
    assert "not balanced over background and pose" in "".join(capsys.readouterr())
    records = read_metadata(tmp_path / "samples")
    for name, record in records.items():
        full = {field: "" for field in FIELDS} | record | {"digital_source_type": DIGITAL_SOURCE_TYPE}
        save_png(tmp_path / "carry" / name, np.zeros((112, 112, 3), np.uint8), png_chunks(full))
    carrying = AugmentConfig(
        **mixture | {"samples_metadata": None, "synthetic": str(tmp_path / "carry")}, count=6
    )
    manifest = augment_dataset.build_manifest(carrying)
    assert "not balanced" not in "".join(capsys.readouterr())
    assert chosen(manifest) == chosen(augment_dataset.build_manifest(AugmentConfig(**mixture, count=6)))


def test_the_published_choice_is_the_first_by_number(mixture, tmp_path):
    (tmp_path / "syn/ID_2/002.png").unlink()  # no face was found in it
    manifest = augment_dataset.build_manifest(
        AugmentConfig(**mixture, count=5, choice="first", on_shortage="keep")
    )
    assert chosen(manifest) == ["000", "001", "002", "003", "004"]
    assert chosen(manifest, "ID_2") == ["000", "001", "003", "004"]


def test_a_shortage_is_named(mixture, tmp_path):
    config = tmp_path / "mix.py"
    words = ["--on-shortage", "keep"]
    for name in ("real", "synthetic", "labels", "output"):
        words += [f"--{name}", mixture[name]]
    with pytest.raises(UserError, match="output: .*leads out of its folder .../real/ID_1/000.png.; put it"):
        augment_dataset.main(words)
    assert not Path(mixture["output"]).exists()
    mixture["output"] = str(tmp_path / "m.json")  # in a folder that holds the crops
    settings = ", ".join(f"{name}={value!r}" for name, value in mixture.items())
    config.write_text(
        f"from configs.fr_config import AugmentConfig\nconfig = AugmentConfig({settings}, count=21)"
    )
    with pytest.raises(UserError, match="2 identities have too few images, ID_1 has 12 of 21"):
        augment_dataset.main(["--config", str(config)])
    assert augment_dataset.main(["--config", str(config), "--on-shortage", "keep"]) == 0
    crops = load_crops(mixture["output"])
    assert len(crops) == 28 and crops.names == ["ID_1", "ID_2"]
    assert len(list(tmp_path.rglob("*.png"))) == 28  # no copies


def test_a_manifest_names_no_folders_above_the_working_folder(mixture, tmp_path, monkeypatch):
    """Crops and manifest meet in the home folder: refused, unless that is where we work."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with pytest.raises(UserError, match="output: .*this machine's folders"):
        augment_dataset.build_manifest(AugmentConfig(**mixture, count=3))
    monkeypatch.chdir(tmp_path)
    manifest = augment_dataset.build_manifest(AugmentConfig(**mixture, count=3))
    assert manifest["identities"]["ID_1"][0]["file"] == "../real/ID_1/000.png"


def test_crops_of_the_photos_are_no_synthetic_ones(tmp_path, mixture, capsys):
    with pytest.raises(UserError, match="real: holds crops of the images of .*real; give samples'"):
        augment_dataset.build_manifest(AugmentConfig(**mixture | {"synthetic": mixture["real"]}, count=2))
    augment_dataset.build_manifest(AugmentConfig(**mixture, count=2))
    assert "syn: no crop says that it is generated; taken for synthetic" in capsys.readouterr().err
    state = json.dumps({"images": {"ID_1/a.jpg": {"sha256": "of a photo"}, "ID_2/a.jpg": 3, "x": {}}})
    for folder in ("real", "syn"):
        (tmp_path / folder / "alignment.json").write_text(state)
    with pytest.raises(UserError, match="syn: holds crops of the images of"):
        augment_dataset.build_manifest(AugmentConfig(**mixture, count=2))


def test_a_name_without_a_label_is_refused(mixture, tmp_path):
    (tmp_path / "labels.json").write_text('{"ID_1": 0}')
    with pytest.raises(UserError, match="no label for ID_2"):
        augment_dataset.build_manifest(AugmentConfig(**mixture, count=3))


@pytest.mark.parametrize("recipe", ["none", "flip", "randaugment", "robust"])
def test_augmentation_depends_on_the_image_alone(recipe):
    images = np.random.default_rng(0).integers(0, 255, (6, 112, 112, 3), np.uint8)
    whole = augment_batch(images, recipe, 0, 3, np.arange(6))
    parts = [augment_batch(images[i : i + 2], recipe, 0, 3, np.arange(i, i + 2)) for i in (0, 2, 4)]
    assert whole.dtype == np.uint8 and np.array_equal(whole, np.concatenate(parts))
    changed = not np.array_equal(whole, augment_batch(images, recipe, 0, 4, np.arange(6)))
    assert changed == (recipe != "none")


def test_flip_flips_half():
    images = np.random.default_rng(1).integers(0, 255, (200, 8, 8, 3), np.uint8)
    out = augment_batch(images, "flip", 0, 0, np.arange(200))
    flipped = sum(np.array_equal(a, b[:, ::-1]) for a, b in zip(out, images, strict=True))
    same = sum(np.array_equal(a, b) for a, b in zip(out, images, strict=True))
    assert flipped + same == 200 and 70 < flipped < 130


def test_rand_augment_is_the_published_list():
    assert (OPERATIONS, MAX_MAGNITUDE, BINS) == (4, 16, 31)
    assert len(TABLE) == 13 and not {"ShearY", "TranslateY", "Invert", "ResizedCrop"} & set(TABLE)
    most = {name: magnitudes[-1] for name, (_, magnitudes) in TABLE.items()}
    assert most["ShearX"] == pytest.approx(0.3) and most["Rotate"] == 30 and most["Posterize"] == 4
    assert most["TranslateX"] == pytest.approx(150 / 331) and most["Solarize"] == 0
    assert all(most[name] == pytest.approx(0.9) for name in ("Brightness", "Color", "Contrast", "Sharpness"))


def test_rand_augment_colours_by_hand():
    image = Image.fromarray(np.full((112, 112, 3), (200, 100, 50), np.uint8))
    apply = lambda name, m: TABLE[name][0](image, m).getpixel((60, 60))  # noqa: E731
    assert apply("Identity", 0) == (200, 100, 50)
    assert apply("Brightness", -0.45) == (110, 55, 27)  # factor 0.55
    assert apply("Grayscale", 0) == (124,) * 3  # 0.299 R + 0.587 G + 0.114 B = 124.2
    assert apply("Color", -0.5) == (162, 112, 87)  # half way to that grey
    assert apply("Solarize", 127.5) == (55, 100, 50)  # 127.5 and above turn over
    assert apply("Posterize", 2) == apply("Posterize", -2) == (200, 100, 48)  # six bits stay
    assert apply("AutoContrast", 0) == apply("Equalize", 0) == (200, 100, 50)  # flat channels stay
    # A quarter of the 12,544 pixels at each of 10, 20, 30, 40: Pillow's step is (12544 - 3136) // 255 = 36,
    # so with half a step at the start 3,154 // 36 = 87, 6,290 // 36 = 174, and 255 at the end.
    quarters = np.repeat(np.array([10, 20, 30, 40], np.uint8), 28)[None, :, None].repeat(112, 0).repeat(3, 2)
    spread = np.asarray(TABLE["Equalize"][0](Image.fromarray(quarters), 0))[0, ::28, 0]
    assert spread.tolist() == [0, 87, 174, 255]


def test_rand_augment_moves_pixels_as_published():
    image = np.zeros((112, 112, 3), np.uint8)
    image[:, 50] = 255
    where = lambda name, m: [  # noqa: E731
        np.flatnonzero(row[:, 0]).tolist() for row in np.asarray(TABLE[name][0](Image.fromarray(image), m))
    ]
    sheared = where("ShearX", 0.25)  # about the corner: row y moves left by a quarter of y
    assert sheared[0] == sheared[1] == [50] and sheared[40] == [40] and sheared[80] == [30]
    assert where("ShearX", -0.25)[80] == [70]
    assert where("TranslateX", 0.2)[7] == [72]  # 22.4 pixels, cut to 22
    assert where("TranslateX", -0.2)[7] == [28]
    turned = np.asarray(TABLE["Rotate"][0](Image.fromarray(image), 30.0))
    assert turned[0, 0].sum() == 0 and turned[56, 50:52].any()  # about the centre


@pytest.fixture
def benchmark(tmp_path):
    rng = np.random.default_rng(2)
    same = np.arange(40) % 2 == 0
    first = rng.integers(0, 255, (40, 112, 112, 3), np.uint8)
    second = np.where(same[:, None, None, None], first, rng.integers(0, 255, first.shape, np.uint8))
    write_bin(tmp_path / "pairs.bin", np.stack([first, second], 1).reshape(-1, 112, 112, 3), same)
    return tmp_path / "pairs.bin"


def test_testing_writes_tables_in_four_forms_and_keeps_what_is_measured(tmp_path, benchmark, monkeypatch):
    for seed in range(2):
        best = tmp_path / "run" / f"seed_{seed}" / "best"
        best.mkdir(parents=True)
        save_network(build_network("iresnet_tiny", 16), best / "network.safetensors")
    config = TestFRConfig(
        recognisers=(str(tmp_path / "run"),), benchmarks=(str(benchmark),), output=str(tmp_path / "test")
    )
    weights = test_fr.find_weights(config.recognisers[0])
    results = test_fr.test_all(config, weights, [benchmark])
    assert [result["seed"] for result in results] == ["seed_0", "seed_1"]
    images, same = read_bin(benchmark)
    embeddings = embed(load_recogniser(weights[0].file), images)
    assert results[0]["auc"] == evaluate_pairs(embeddings[0::2], embeddings[1::2], same)["auc"]
    test_fr.report(config, results, ["pairs"])
    for suffix in ("json", "csv", "md", "tex"):
        assert (tmp_path / "test" / f"verification.{suffix}").stat().st_size > 50
    assert (tmp_path / "test/roc_pairs.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(test_fr, "test_one", lambda *_: pytest.fail("measured again"))
    assert test_fr.test_all(config, weights, [benchmark]) == results


def test_an_image_in_several_pairs_is_embedded_once():
    a, b = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    first, places = test_fr.distinct(np.stack([b, a, b, b, a]))
    assert first.tolist() == [0, 1] and places.tolist() == [0, 1, 0, 0, 1]


def test_small_lfw_is_refused_for_accuracy(tmp_path, fixtures_dir):
    config = TestFRConfig(recognisers=("x",), output=str(tmp_path))
    weights = tmp_path / "w.safetensors"
    save_network(build_network("iresnet_tiny", 16), weights)
    with pytest.raises(UserError, match=r"small_lfw\.bin: all 10 pairs show the same person"):
        test_fr.test_all(
            config, test_fr.find_weights(str(weights)), [fixtures_dir / "benchmarks/small_lfw.bin"]
        )


def test_crafted_weights_are_refused(tmp_path, benchmark):
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch trap'\ntR.")
    config = TestFRConfig(recognisers=("x",), output=str(tmp_path / "t"))
    with pytest.raises(UserError, match="evil.pth"):
        test_fr.test_all(config, test_fr.find_weights(str(tmp_path / "evil.pth")), [benchmark])


def test_the_study_makes_its_table_and_goes_on_where_it_stopped(tmp_path, mixture, benchmark, monkeypatch):
    people = ["ID_1", "ID_2"]
    crop_set(tmp_path / "generators" / "A", people, 4, 60)
    crop_set(tmp_path / "oracle", people, 4, 160)
    training = tmp_path / "training.py"
    training.write_text(
        "from configs.fr_config import TrainFRConfig\n"
        "config = TrainFRConfig(network='iresnet_tiny', base_lr=0.01, "
        "embedding_size=8, batch_size=4, schedule='onecycle', selection='none', precision='fp32')"
    )
    config = StudyConfig(
        real=mixture["real"],
        synthetic=str(tmp_path / "generators"),
        oracle=str(tmp_path / "oracle"),
        labels=mixture["labels"],
        counts=(2, 4),
        seeds=(0, 1),
        steps=2,
        train_config=str(training),
        benchmarks=(str(benchmark),),
        output=str(tmp_path / "study"),
    )
    rows = study.plan_rows(config)
    monkeypatch.setattr(outputs, "opened", [tmp_path / "study"])  # as main does: these manifests are its own
    assert [row.name for row in rows] == [
        "real",
        "A_4",
        "real+A_2",
        "real+A_4",
        "real+oracle_2",
        "real+oracle_4",
    ]
    study.work_on_rows(config, rows, [benchmark])
    results = study.test_rows(config, rows, [benchmark])
    assert len(results) == 12
    study.report(config, rows, results, ["pairs"])
    table = read_json(tmp_path / "study/verification.json")
    assert [row["method"] for row in table["rows"]] == [row.name for row in rows]
    assert not any("oracle" in name for names in table["best"].values() for name in names)
    assert (tmp_path / "study/study.png").exists()
    epochs = read_json(tmp_path / "study/runs/real/seed_0/last/state.json")["epoch"]
    assert epochs == 2  # two steps of four images, whatever the size of the set
    assert read_json(tmp_path / "study/runs/real+A_4/seed_0/last/state.json")["epoch"] == 1
    from fr_training.trainer import Trainer

    monkeypatch.setattr(Trainer, "run_epoch", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(test_fr, "test_one", lambda *_: pytest.fail("tested again"))
    study.work_on_rows(config, rows, [benchmark])


def study_config(tmp_path, mixture, benchmark, **changes):
    """A study of one generator with four samples of each of two people, and three of one of them."""
    crop_set(tmp_path / "generators" / "A", ["ID_1", "ID_2"], 4, 60)
    (tmp_path / "generators/A/ID_2/003.png").unlink()
    training = tmp_path / "training.py"
    training.write_text(
        "from configs.fr_config import TrainFRConfig\n"
        "config = TrainFRConfig(network='iresnet_tiny', base_lr=0.01, optimizer='adamw', "
        "embedding_size=8, batch_size=3, schedule='onecycle', selection='none', precision='fp32')"
    )
    options = dict(
        real=mixture["real"],
        synthetic=str(tmp_path / "generators"),
        labels=mixture["labels"],
        seeds=(0,),
        train_config=str(training),
        benchmarks=(str(benchmark),),
        output=str(tmp_path / "study"),
    )
    return StudyConfig(**(options | changes))


def test_every_row_of_a_study_takes_the_same_steps(tmp_path, mixture, benchmark, monkeypatch):
    config = study_config(tmp_path, mixture, benchmark, counts=(2, 3), steps=4)
    rows = study.rows_with_samples(config, study.plan_rows(config))
    assert [row.name for row in rows] == ["real", "A_3", "real+A_2", "real+A_3"]  # of 4, 6, 8 and 10 images
    monkeypatch.setattr(outputs, "opened", [tmp_path / "study"])
    study.work_on_rows(config, rows, [benchmark])
    for row in rows:
        last = tmp_path / "study/runs" / row.name / "seed_0/last"
        steps = {int(v) for k, v in load_file(last / "optimizer.safetensors").items() if k.endswith(".step")}
        assert steps == {4}, row.name
    assert read_json(last / "state.json")["epoch"] == 2  # three steps, and one of the second epoch


def test_a_study_names_all_shortages_before_it_trains(tmp_path, mixture, benchmark):
    config = study_config(tmp_path, mixture, benchmark, counts=(2, 4, 9))
    with pytest.raises(UserError) as refused:
        study.rows_with_samples(config, study.plan_rows(config))
    message = str(refused.value)
    assert "A_9 (2 people have 3 to 4 of 9), real+A_4 (1 people have 3 to 3 of 4), real+A_9 (" in message
    assert "\n" not in message and not (tmp_path / "study").exists()
    keeping = study_config(tmp_path / "b", mixture, benchmark, counts=(2, 4, 9), on_shortage="keep")
    assert len(study.rows_with_samples(keeping, study.plan_rows(keeping))) == 5


def test_a_study_leaves_out_what_nobody_has(tmp_path, mixture, benchmark, capsys):
    """The rows of 100 after the recipe of 21; without photos the largest set that there is."""
    config = study_config(tmp_path, mixture, benchmark, counts=(2, 4, 9), on_shortage="skip")
    rows = study.rows_with_samples(config, study.plan_rows(config))
    assert [row.name for row in rows] == ["real", "A_4", "real+A_2", "real+A_4"]
    told = "".join(capsys.readouterr())
    assert "real+A_9 (left out: 2 people have 3 to 4 of 9)" in told and told.count("too few samples") == 1


def test_a_study_refuses_sets_smaller_than_a_step_before_it_trains(tmp_path, mixture, benchmark):
    config = study_config(tmp_path, mixture, benchmark, counts=(2,))
    Path(config.train_config).write_text(
        Path(config.train_config).read_text().replace("batch_size=3", "batch_size=5")
    )
    with pytest.raises(UserError, match="real: 4 images to train on, and a step takes 5"):
        study.rows_with_samples(config, study.plan_rows(config))
    text = Path(config.train_config).read_text().replace("batch_size=5", "batch_size=3")
    held_out = text.replace("selection='none'", "selection='held_out', held_out_identities=2")
    assert held_out != text
    Path(config.train_config).write_text(held_out)  # who are all that there are
    with pytest.raises(UserError, match="real: 0 images to train on, and a step takes 3; .* held_out_ident"):
        study.rows_with_samples(config, study.plan_rows(config))


def test_a_study_has_its_sets_made_by_the_module_it_names(tmp_path, monkeypatch):
    (tmp_path / "make_sets.py").write_text(
        "import pathlib, sys\npathlib.Path(__file__).with_name('given').write_text(' '.join(sys.argv[1:]))\n"
        "sys.exit('--seeds' in sys.argv)"
    )
    config = tmp_path / "study.py"
    config.write_text(
        f"from configs.fr_config import StudyConfig\nconfig = StudyConfig(prepare='make_sets', "
        f"synthetic={str(tmp_path / 'sets')!r}, generators=('A',))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--config", str(config), "--output", str(tmp_path / "study"), "--steps", "3"]
    for wrong, message in {
        ("--prepare", "nope"): "prepare: no Python module 'nope'",
        ("--prepare", "no.pe"): "prepare: no Python module 'no.pe'",
        ("--train-config", "README.md"): "README.md: SyntaxError",
        (
            "--train-config",
            "configs/train_mini.py",
        ): "builds a TrainConfig, this script needs a TrainFRConfig",
        ("--output", str(config)): "is a file; name a folder for the output",
        ("--synthetic", str(tmp_path / "study/sets")): "overlaps",
    }.items():
        for dry in ((), ("--dry-run",)):
            with pytest.raises(UserError, match=message):
                study.main([*arguments, *wrong, *dry])
    assert study.main([*arguments, "--dry-run"]) == 0 and not (tmp_path / "given").exists()
    with pytest.raises(UserError, match="no crop set .*A; there are none"):  # it made no sets
        study.main(arguments)
    assert (tmp_path / "given").read_text() == " ".join(arguments)
    with pytest.raises(UserError, match="-m make_sets .*ended with exit code 1"):
        study.main([*arguments, "--seeds", "1"])


def test_two_studies_share_the_rows(tmp_path, monkeypatch):
    """A row that another process trains comes last, when that one has let it go."""
    config = StudyConfig(output=str(tmp_path))
    rows = [study.Row(name, None, "", 0, True) for name in ("real", "other")]
    done = []
    monkeypatch.setattr(study, "train_row", lambda _, row: done.append(f"train {row.name}"))
    monkeypatch.setattr(study, "test_rows", lambda _, mine, __: done.append(f"test {mine[0].name}"))
    with Claims(tmp_path / "runs") as another:
        assert another.take("real")
        monkeypatch.setattr(study.time, "sleep", lambda _: another.release("real"))
        study.work_on_rows(config, rows, [])
    assert done == ["train other", "test other", "train real", "test real"]


@pytest.mark.parametrize(
    "kind,pattern",
    [
        (AlignConfig, "align_*.py"),
        (AugmentConfig, "augment_*.py"),
        (TestFRConfig, "test_fr_*.py"),
        (TrainFRConfig, "train_fr_*.py"),
    ],
)
def test_the_config_files_load(kind, pattern):
    files = sorted((PROJECT_ROOT / "configs").glob(pattern))
    assert files and all(isinstance(load_config(file, (), kind), kind) for file in files)


def test_the_study_configs_load_with_their_training():
    for name in ("study_tfd", "study_published", "study_mini"):
        config = load_config(PROJECT_ROOT / "configs" / f"{name}.py", (), StudyConfig)
        assert load_config(PROJECT_ROOT / config.train_config, (), TrainFRConfig).check() is None
