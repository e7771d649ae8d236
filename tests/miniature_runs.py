"""All four pipelines on networks of a few thousand weights, in forked processes that may be killed.

With ``bundle`` the networks are those of mini/weights, on lab photos: the same runs, ten seconds each.

A forked child has all libraries loaded, so a run takes a second or two, and 50 kills are affordable. The
parent only imports and never computes, since torch's autograd does not survive a fork.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent.parent / "mini/weights"
PEOPLE = ("ID_1", "ID_2", "ID_10")
STAGES = ("extraction", "training", "sampling", "recognition")
# What a run leaves for its user; records of time and machine are none of it.
ARTEFACTS = ("*.safetensors", "*.png", "*.pt", "faces.json", "metadata.jsonl", "README.md")


def fork(function, *arguments, environment=None):
    """Run a function in a child process; returns its process number. The child is silent and ends here."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment or {})
        null = os.open(os.environ.get("CHILD_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(null, 1)
        os.dup2(null, 2)
        result = function(*arguments)
        code = result if isinstance(result, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid, kill_after=None):
    """The exit code of a child; negative the signal that ended it, SIGKILL after ``kill_after`` seconds."""
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = None
        else:
            time.sleep(0.002)


def launch(function, processes, *arguments):
    """Run a function in so many processes that form one launch, as torchrun does; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(processes):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        pids.append(fork(function, *arguments, environment=environment if processes > 1 else None))
    return [wait(pid) for pid in pids]


def make_world(root, bundle=False):
    """Photos with faces, a pack, a base model, class images, crops: what the four pipelines start from."""
    from configs.train_config import TrainConfig  # noqa: F401  (loads what the children need)
    from fr_training.crops import write_crop_arrays
    from tests.tiny_base import make_tiny_base
    from tests.tiny_pack import make_tiny_pack
    from tests.tiny_recognition import patches
    from utils.images import save_png

    root = Path(root)
    if bundle:
        shutil.copytree(WEIGHTS / "base", root / "base")
        shutil.copytree(WEIGHTS / "pack", root / "pack")
    else:
        make_tiny_base(root / "base")
        make_tiny_pack(root / "pack")
    for number, name in enumerate((*PEOPLE, "class")):
        folder = root / "faces" / name if name != "class" else root / "class"
        for photo in range(2 + number % 2):
            save_png(folder / "images" / f"{photo}.png", make_photo(number, photo, bundle))
    (root / "faces" / "attributes.csv").write_text(
        "identity,gender\n" + "".join(f"{name},F\n" for name in PEOPLE)
    )
    write_crop_arrays(root / "crops", *patches(4, 3), [f"P{i}" for i in range(4)])
    return root


def make_photo(person, photo, bundle):
    """One photo with a face that the world's pack finds, uint8 (H, W, 3)."""
    from mini.face_world import render, sample_identity, sample_view
    from mini.world.identity import HELD_OUT
    from tests.tiny_pack import face_photo

    if not bundle:
        return face_photo((8 * photo + 8, 8 * person + 8), blue=60 * photo, seed=10 * person + photo)
    return render(sample_identity(HELD_OUT + person), sample_view(10 * person + photo, "lab")).image


def resolution(world):
    """Side in pixels of the pictures that the world's base model makes."""
    return 8 * json.loads((world / "base/unet/config.json").read_text())["sample_size"]


def command(config, values, overrides=()):
    """A command line: a config file and options, each once, overrides first."""
    given = {str(word) for word in overrides if str(word).startswith("--")}
    words = ["--config", config]
    for name, value in values.items():
        if f"--{name}" not in given:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return [*words, *map(str, overrides)]


def extract(world, output):
    """extract_arcface_embeds.py on a copy of the photos (it writes beside them)."""
    if not (output / "faces").is_dir():
        ignored = shutil.ignore_patterns("ArcFace_embeds", ".*", "*.json", "*.txt")
        shutil.copytree(world / "faces", output / "copy", ignore=ignored, dirs_exist_ok=True)
        (output / "copy").rename(output / "faces")
    return embed(world, "--source-folder", output / "faces", "--batch-size", 1, "--workers", 1)


def embed(world, *overrides):
    """extract_arcface_embeds.py with the tiny pack."""
    import extract_arcface_embeds as script

    values = {"pack": world / "pack", "source-folder": world / "faces", "device": "cpu"}
    sys.argv = ["extract_arcface_embeds.py", *command("configs/extract_mini.py", values, overrides)]
    return script.main()


def train(world, output, *overrides):
    """train_id_booth.py, the objectives DreamBooth and ID-Booth of all people."""
    import train_id_booth as script

    values = {
        "source-folder": world / "faces",
        "class-folder": world / "class",
        "negatives-folder": world / "class",
        "base-model": world / "base",
        "pack": world / "pack",
        "output-folder": output,
        "resolution": resolution(world),
        "objectives": ("DreamBooth", "ID-Booth"),
        "num-train-epochs": 2,
        "checkpointing-epochs": 1,
        "validation-images": 0,
        "learning-rate": 1e-2,
        "log-every": 1,
        "resume-minutes": 0,
        "face-margin": 1,
        "lora-rank": 2,
        "lora-alpha": 2.0,
        "identity-max-timestep": 1000,
        "device": "cpu",
        "train-batch-size": 1,
        # A cohort that a kill has split goes on in parts, and is the same up to rounding only.
        "cohort-size": 1,
        "lora-targets": ("to_q", "to_k", "to_v", "to_out.0"),
    }
    return script.main(command("configs/train_mini.py", values, ("--no-with-prior-preservation", *overrides)))


def sample(world, output, *overrides):
    """inference_id_booth.py with the LoRAs in world/loras."""
    import inference_id_booth as script
    from id_booth.sampling import plan as sample_plan

    # Somebody may commit while the tests run; images name the commit they were made with.
    sample_plan.code_version = lambda: "0123abc"
    values = {
        "lora-folder": world / "loras",
        "source-folder": world / "faces",
        "output-folder": output,
        "sheets-folder": output.with_name(f"{output.name}_sheets"),
        "base-model": world / "base",
        "resolution": resolution(world),
        "steps": 2,
        "prompt-set": 3,
        "batch-size": 2,
        "set-name": "set",
        "device": "cpu",
        "methods": ("NonFineTuned", "DreamBooth", "ID-Booth"),
    }
    return script.main(command("configs/inference_mini.py", values, overrides))


def recognise(world, output):
    """fr_training.train_fr on colour patches."""
    from fr_training import train_fr
    from tests.tiny_recognition import tiny_training

    config = tiny_training(world / "crops", output / "fr", base_lr=0.1, max_epochs=4)
    config.check()
    return train_fr.train_seeds(config, *train_fr.prepare_data(config))


RUNS = dict(zip(STAGES, (extract, train, sample, recognise), strict=True))


def complete_world(root, bundle=False):
    """make_world, with embeddings and LoRAs made by the scripts themselves (in children)."""
    world = Path(root)
    for step, *arguments in ((make_world, bundle), (embed_world,), (lora_world,)):
        code = wait(fork(step, world, *arguments))
        if code:
            raise RuntimeError(f"{step.__name__} ended with {code}")
    return world


def embed_world(world):
    """Embeddings beside the photos and the class images."""
    return embed(world, "--class-folder", world / "class")


def lora_world(world):
    """LoRAs of two methods."""
    return train(world, world / "loras", "--max-train-steps", 1)


def artefacts(folder):
    """Relative name -> content hash of everything a run leaves for its user."""
    files = {path for pattern in ARTEFACTS for path in Path(folder).rglob(pattern)}
    names = {path.relative_to(folder).as_posix(): path for path in sorted(files) if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not name.startswith(".") and "/." not in name
    }


def strays(folder):
    """Temporary files and resume states that a finished run has no use for."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in Path(folder).rglob("*")
        if path.name.endswith((".tmp", ".old", ".new")) or path.name == "resume.pt"
    )


def preload():
    """Import in the parent what all children use."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion  # noqa: F401
        import peft  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
    import extract_arcface_embeds  # noqa: F401
    import inference_id_booth  # noqa: F401
    import train_id_booth  # noqa: F401
    from fr_training import train_fr  # noqa: F401
