"""A small complete run, from photos to a recogniser: nothing that it leaves names the machine or its secrets.

The run happens in a forked process on a machine of its own: another host and user name, another home, folders
named after both, and secrets on every command line.
"""

import base64
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from id_booth.sampling.provenance import COMPOSITE_SOURCE_TYPE, DIGITAL_SOURCE_TYPE, read_record
from tests import miniature_runs as runs

HOST, USER, LAB = "gpu07planted", "aliceplanted", "secretlabplanted"
SECRETS = ("hf_" + "Q" * 34, "glpat-" + "Q" * 20, "ghp_" + "Q" * 36, "sk-" + "Q" * 40, "AKIA" + "Q" * 16)
JPEG = re.compile(rb"data:image/jpeg;base64,([A-Za-z0-9+/=]+)")


def be_another_machine(home):
    """In a child: take another host name, user and home folder."""
    from utils import files, run_record

    socket.gethostname = lambda: HOST
    os.environ |= {
        "HOME": str(home),
        "USER": USER,
        "LOGNAME": USER,
        "USERNAME": USER,
        "WANDB_API_KEY": "e" * 40,
    }
    for function in (files.host, run_record.private_names):
        function.cache_clear()


def call(script, *options):
    """Run a script's main in this process, with a command line that holds a secret more."""
    sys.argv = [f"/home/{USER}/{LAB}/{script.__name__}.py", *map(str, options), f"--note={SECRETS[1]}"]
    return script.main(list(map(str, options)))


def everything(world, output):
    """All stages, one after another; 0 when each ended well."""
    import extract_arcface_embeds
    import inference_id_booth
    import train_id_booth
    from evaluation import evaluate
    from fr_training import align_faces, augment_dataset, train_fr
    from mini.paths import WEIGHTS

    be_another_machine(world.parents[1])
    shutil.copytree(
        world / "faces", output / "faces", ignore=shutil.ignore_patterns("ArcFace_embeds", ".*", "*.json")
    )
    (output / "faces/ID_1/images/broken.png").write_bytes(b"no picture")
    pack, base = ["--pack", world / "pack"], ["--base-model", world / "base", "--revision", SECRETS[0]]
    words = [*pack, "--source-folder", output / "faces", "--recogniser", "None"]
    sys.argv = ["extract.py", *map(str, words)]
    codes = [extract_arcface_embeds.main()]
    (output / "faces/ID_1/images/broken.png").unlink()
    loras, samples = output / "loras", output / "samples"
    values = [
        *("--config", "configs/train_mini.py", "--source-folder", output / "faces", *pack, *base),
        *("--class-folder", output / "class", "--output-folder", loras, "--hub-namespace", SECRETS[2]),
        *("--resolution", runs.resolution(world), "--num-class-images", 2, "--class-inference-steps", 1),
        *("--max-train-steps", 1, "--objectives", "DreamBooth", "--validation-images", 2, "--device", "cpu"),
        *("--validation-steps", 1, "--lora-rank", 2, "--lora-targets", "to_q", "--checkpointing-epochs", 1),
    ]
    codes.append(call(train_id_booth, *values))
    values = [
        *("--config", "configs/inference_mini.py", "--source-folder", output / "faces", *base),
        *("--lora-folder", loras, "--output-folder", samples, "--sheets-folder", output / "sheets"),
        *("--resolution", runs.resolution(world), "--steps", 1, "--prompt-set", 2, "--set-name", "set"),
        *("--methods", "NonFineTuned", "DreamBooth", "--device", "cpu"),
    ]
    codes.append(call(inference_id_booth, *values))
    values = [
        *("--config", "configs/evaluate_mini.py", "--samples-folder", samples / "set", *pack),
        *("--real-folder", output / "faces", "--output-folder", output / "report", "--encoders", "pixels"),
        *("--cache-folder", output / "report/cache", "--attributes-file", WEIGHTS / "attributes.onnx"),
        *("--title", f"Faces of {output}, on {HOST} with {SECRETS[3]}", "--clip-folder", world / "no clip"),
        *("--replicates", 20, "--verification-replicates", 20, "--quality-weights", world / "no weights.pth"),
    ]
    codes.append(call(evaluate, *values))
    crops = output / "crops"
    for source, name in ((output / "faces", "real"), (samples / "set/DreamBooth", "synthetic")):
        words = ["--config", "configs/align_mini.py", "--source", source, "--output", crops / name, *pack]
        codes.append(call(align_faces, *words, "--labels", crops / "labels.json"))
    words = ["--real", crops / "real", "--synthetic", "None", "--output", crops / "mix.json"]
    words += ["--labels", crops / "labels.json", "--count", 0]
    codes.append(call(augment_dataset, "--config", "configs/augment_mini.py", *words))
    words = ["--dataset", crops / "mix.json", "--output", output / "fr", "--seeds", 0, "--max-epochs", 1]
    words += ["--batch-size", 2, "--selection", "none", "--embedding-size", 16, "--detector", world / "pack"]
    codes.append(
        call(train_fr, "--config", "configs/train_fr_mini.py", *words, "--export-pack", output / "exported")
    )
    print("exit codes", codes)
    return int(codes != [1] + [0] * (len(codes) - 1))  # extraction says 1 of the broken photo


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder with all that the run left."""
    place = tmp_path_factory.mktemp("home") / USER / LAB
    runs.preload()
    world, output = place / "world", place / "out"
    output.mkdir(parents=True)
    log = place / "log"
    assert runs.wait(runs.fork(runs.make_world, world)) == 0
    code = runs.wait(runs.fork(everything, world, output, environment={"CHILD_LOG": str(log)}))
    assert code == 0, log.read_text()
    return output


def contents(folder):
    """{relative name: bytes} of all files, those inside of reports as well."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    for name, data in list(files.items()):
        for number, picture in enumerate(JPEG.findall(data)):
            files[f"{name}#{number}"] = base64.b64decode(picture)
    return files


def test_the_run_left_what_it_should(left):
    names = set(contents(left))
    for pattern in (
        "faces/ID_1/ArcFace_embeds/faces.json",
        "faces/extract_run.json",
        "loras/run.json",
        "loras/DreamBooth/ID_1/train_log.jsonl",
        r"loras/DreamBooth/ID_1/tensorboard/events.out.tfevents.\d+.host.\d+.\d+",
        "loras/DreamBooth/ID_1/checkpoint-0-1/(validation.jpg|training_config.json|pytorch.*safetensors)",
        "class/images/00001.png",
        "samples/set/(README.md|run.json|summary.txt|DreamBooth/metadata.jsonl|DreamBooth/ID_1/001.png)",
        "sheets/set/ID_1.jpg",
        "report/(report.html|results.json|tables/faces.csv|report.html#3)",
        "crops/real/(alignment.json|summary.json|ID_1/0.png)",
        "crops/mix.json",
        "fr/seed_0/(settings.json|run.json|tensorboard/.*)",
        "exported/rec_trained.onnx",
    ):
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_nothing_names_the_machine_its_user_its_folders_or_a_secret(left):
    project, home = str(runs.WEIGHTS.parents[1]), str(Path.home())
    words = [HOST, USER, LAB, *SECRETS, "Q" * 16, "e" * 40, str(left), project]
    words += [home] if len(home) > 6 else []  # "/root" is too short to tell
    found = {
        (word, name)
        for name, data in contents(left).items()
        for word in words
        if word.encode() in data or word in name or word.encode("utf-16-le") in data
    }
    assert not found


GENERATED = (
    "loras/*/*/*/validation.jpg",
    "class/images/*.png",
    "samples/set/*/*/*.png",
    "crops/synthetic/*/*.png",
)
REAL = ("faces/*/images/*", "crops/real/*/*.png")


@pytest.mark.parametrize("pattern", GENERATED)
def test_everything_generated_carries_mark_and_record(left, pattern):
    # The tiny base model paints no faces, so that there may be no crops of samples here (see test_fr_data).
    files = sorted(left.glob(pattern))
    assert files or "synthetic" in pattern
    for file in files:
        assert read_record(file)["code_version"] and DIGITAL_SOURCE_TYPE.encode() in file.read_bytes(), file


@pytest.mark.parametrize("pattern", REAL)
def test_nothing_real_is_marked(left, pattern):
    files = sorted(left.glob(pattern))
    assert files
    for file in files:
        assert read_record(file) is None and b"lgorithmicMedia" not in file.read_bytes(), file


def test_pictures_of_both_say_so(left):
    for file in (left / "sheets/set").glob("*.jpg"):
        assert COMPOSITE_SOURCE_TYPE.encode() in file.read_bytes()
    page = [
        DIGITAL_SOURCE_TYPE.encode() in data
        for name, data in contents(left / "report").items()
        if "#" in name
    ]
    assert 0 < page.count(True) < len(page)


def test_no_photo_lies_in_the_set(left):
    photos = {path.read_bytes() for path in left.glob("faces/*/images/*")}
    images = [path for path in (left / "samples").rglob("*") if path.suffix in (".png", ".jpg", ".jpeg")]
    assert images and all(read_record(path) for path in images)
    assert not photos & {path.read_bytes() for path in images}
    assert "Every image in this data set is generated" in (left / "samples/set/README.md").read_text()
