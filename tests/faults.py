"""Kill every pipeline at random moments, again and again; a rerun must make what an undisturbed run makes.

    python -m tests.faults --kills 50 --stages training sampling extraction recognition
    python -m tests.faults --kills 50 --bundle            on the networks of mini/weights: 15 minutes
    python -m tests.faults --kills 2                                    the short form, for the test suite

Each round begins in an empty folder. The run is killed (SIGKILL) at a random moment, in every third round
twice, then run to its end; its artefacts must equal the reference to the byte, and no stray file may be left.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests import miniature_runs as runs


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", action="store_true", help="mini/weights in place of tiny networks")
    parser.add_argument("--stages", nargs="+", default=runs.STAGES, choices=runs.STAGES)
    options = parser.parse_args(argv)
    runs.preload()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        world = runs.complete_world(Path(folder) / "world", options.bundle)
        for stage in options.stages:
            faults += torture(stage, world, Path(folder), options.kills, random.Random(options.seed))
    print(f"{faults} faults")
    return int(faults > 0)


def torture(stage, world, folder, kills, rng):
    """Kill one pipeline ``kills`` times; the number of reruns that went wrong."""
    run = runs.RUNS[stage]
    output = fresh(folder)
    started = time.monotonic()
    code = runs.wait(runs.fork(run, world, output))
    seconds = time.monotonic() - started
    reference = runs.artefacts(output)
    faults = [f"undisturbed run ended with {code}"] if code or not reference else []
    struck = rounds = 0
    while struck < kills and not faults:
        output, rounds = fresh(folder), rounds + 1
        for _ in range(1 + (rounds % 3 == 0)):
            code = runs.wait(runs.fork(run, world, output), kill_after=rng.uniform(0, seconds))
            struck += code == -9
        code = runs.wait(runs.fork(run, world, output))
        faults += problems(code, reference, output)
    text = f"{stage}: {struck} kills in {rounds} rounds, {len(reference)} files, {len(faults)} faults"
    print("; ".join([text, *faults[:5]]), flush=True)
    return len(faults)


def fresh(folder):
    """An empty output folder."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    return output


def problems(code, reference, output):
    """What is wrong with a rerun, in words."""
    found = runs.artefacts(output)
    differing = [name for name in reference | found if reference.get(name) != found.get(name)]
    words = [f"rerun ended with {code}"] if code else []
    words += [f"differs: {name}" for name in differing]
    return words + [f"stray: {name}" for name in runs.strays(output)]


if __name__ == "__main__":
    sys.exit(main())
