"""A hundred miniature people through the public scripts, unattended; three of them fail, each otherwise.

    python -m tests.hundred                      about six minutes on one core
    python -m tests.hundred --people 8           a first look

One person's folder is empty, one has a photo cut short, one shows no face. Their failures must stay their
own, the summaries must say so, and memory must not grow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from mini.lab_photos import write_lab_photos
from utils.run_record import PROJECT_ROOT

PHOTOS, CLASS_IMAGES, STEPS, PROMPTS = 3, 8, 4, 3
PARTS = (0.1, 0.4), (0.7, 1.0)
FLAT = 1.05
"""Largest resident memory in the last part of a run (by people done), as a share of that in the first."""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=100)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        faults = batch(Path(folder), options.people)
    print("; ".join(faults) or "no fault")
    return int(bool(faults))


def batch(root, people):
    """Extract, train and sample; what was wrong, in words."""
    photos, loras, samples = root / "FACE_DATASET", root / "loras", root / "samples"
    empty, broken, faceless = failing = prepare(photos, people)
    extract, train, sample = scripts(root, photos, loras, samples)
    faults = []
    made = "samples/batch/ID-Booth/*/002.png"
    runs = (
        # Photos without a face are no failure of extraction: they are counted, and training says the rest.
        (extract, photos / "extract_summary.json", people, [empty, broken], "FACE_DATASET/*/ArcFace_embeds"),
        (train, loras / "summary.json", people, failing, "loras/ID-Booth/*/checkpoint-*"),
        # Sampling knows of those who have a LoRA.
        (sample, samples / "batch/summary.json", people - len(failing), [], made),
    )
    for words, summary, count, expected, finished in runs:
        code, sizes, seconds = watched(words, lambda pattern=finished: len(list(root.glob(pattern))))
        rows = {row["identity"]: row for row in json.loads(summary.read_text())}
        found = sorted(name for name, row in rows.items() if row["status"] == "failed")
        first, last = (
            max(size for size, done in sizes if low * people <= done <= high * people) for low, high in PARTS
        )
        print(
            f"{words[0]}: {seconds:.0f} s, exit code {code}, {len(rows)} in the summary, "
            f"failed {', '.join(found)}; resident up to {first:.0f} MiB at first, {last:.0f} MiB at last",
            flush=True,
        )
        for name in found:
            told = ", ".join(f"{key} {value}" for key, value in rows[name].items() if key != "identity")
            print(f"    {name}: {told}", flush=True)
        if code != bool(expected) or found != sorted(expected) or len(rows) != count:
            faults.append(f"{words[0]}: exit code {code}, failed {found}, {len(rows)} in the summary")
        if last > FLAT * first:
            faults.append(f"{words[0]}: memory grew from {first:.0f} to {last:.0f} MiB")
    made = len(list((samples / "batch").glob("ID-Booth/*/*.png")))
    if made != PROMPTS * (people - len(failing)):
        faults.append(f"{made} images, not {PROMPTS} for each of {people - len(failing)} people")
    return faults


def scripts(root, photos, loras, samples):
    """The words of the three commands."""
    extract = ["extract_arcface_embeds.py", "--config", "configs/extract_mini.py", "--source-folder", photos]
    train = ["train_id_booth.py", "--config", "configs/train_mini.py", "--source-folder", photos]
    train += ["--class-folder", root / "CLASS_IMAGES", "--output-folder", loras, "--objectives", "ID-Booth"]
    train += ["--num-class-images", CLASS_IMAGES, "--class-inference-steps", 5, "--max-train-steps", STEPS]
    train += ["--validation-images", 0]
    sample = ["inference_id_booth.py", "--config", "configs/inference_mini.py", "--source-folder", photos]
    sample += ["--lora-folder", loras, "--output-folder", samples, "--sheets-folder", root / "sheets"]
    sample += ["--set-name", "batch", "--methods", "ID-Booth", "--prompt-set", PROMPTS, "--steps", 5]
    return extract, train, sample


def prepare(photos, people):
    """Lab photos of all; the names of the three with nothing usable."""
    write_lab_photos(photos, people, PHOTOS)
    empty, broken, faceless = (f"ID_{number}" for number in (2, people // 2, people - 1))
    for file in (photos / empty / "images").iterdir():
        file.unlink()
    content = (photos / broken / "images/00.png").read_bytes()
    (photos / broken / "images/00.png").write_bytes(content[: len(content) // 2])
    for file in (photos / faceless / "images").iterdir():
        Image.new("RGB", (128, 128), (40, 60, 90)).save(file)
    return empty, broken, faceless


def watched(words, done):
    """Run a script; its exit code, (resident MiB, ``done()``) every 50 ms, and the seconds it took."""
    started, sizes = time.monotonic(), []
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=PROJECT_ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                sizes.append((int(line.split()[1]) / 1024, done()))
        time.sleep(0.05)
    return process.returncode, sizes, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
