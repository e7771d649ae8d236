"""Mutated inputs for everything that reads files of others: only UserError may come out, and nothing else.

    python -m tests.fuzz --count 3000                     all kinds, 3,000 mutants each
    python -m tests.fuzz --count 300 --kinds bin lora

No mutant may run code (a canary file would appear), write outside its folder, raise anything but UserError,
take more than TIME_LIMIT seconds or more memory than MEMORY_LIMIT.
"""

import argparse
import random
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from tests import fuzz_files, fuzz_kinds
from tests.memory import peak_growth
from utils.errors import UserError

TIME_LIMIT = 20
ADDRESS_LIMIT = 12 * 2**30
MEMORY_LIMIT = 2 * 2**30  # beyond what the process had before: a photo of 200 megapixels takes 1.2 GiB
KINDS = {
    "bin": fuzz_kinds.bin_kind,
    "faces": fuzz_kinds.faces_kind,
    "metadata": fuzz_kinds.metadata_kind,
    "config": fuzz_kinds.config_kind,
    "lora": fuzz_kinds.lora_kind,
    "photo": fuzz_files.photo_kind,
    "attributes": fuzz_files.attributes_kind,
    "manifest": fuzz_files.manifest_kind,
    "pairs": fuzz_files.pairs_kind,
    "arrays": fuzz_files.arrays_kind,
    "cache": fuzz_files.cache_kind,
    "onnx": fuzz_files.onnx_kind,
    "pack": fuzz_files.pack_kind,
    "weights": fuzz_files.weights_kind,
    "embedding": fuzz_files.embedding_kind,
}


def too_long(*_):
    """SIGALRM: a mutant takes too long."""
    raise TimeoutError(f"more than {TIME_LIMIT} s")


def fuzz(kind, count, seed, folder):
    """Feed ``count`` mutants of a kind to its reader; (accepted, refused, list of faults)."""
    rng = random.Random(f"{kind} {seed}")
    folder = Path(folder) / kind
    folder.mkdir()
    path, mutant, read = KINDS[kind](folder)
    read()  # the file as it should be is accepted
    before = everything(folder.parent)
    accepted, refused, faults = 0, 0, []
    for number in range(count):
        content = mutant(rng)
        path.write_bytes(content)
        signal.alarm(TIME_LIMIT)
        try:
            growth = peak_growth(read)
            accepted += 1
            if growth > MEMORY_LIMIT:
                faults.append(f"{kind} {number}: took {growth / 2**30:.1f} GiB")
        except UserError as error:
            refused += 1
            if "\n" in str(error):
                faults.append(f"{kind} {number}: message of several lines: {str(error)[:200]!r}")
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}"[:200]
            faults.append(f"{kind} {number}: {text} at {place.name}:{place.lineno}")
        finally:
            signal.alarm(0)
    own = {path, folder / "set/README.md", folder / "set/M/.metadata.jsonl.lock"}
    new = everything(folder.parent) - before - own
    faults += [f"{kind}: wrote {name}" for name in new]
    return accepted, refused, faults


def everything(folder):
    """All files below a folder."""
    return {path for path in Path(folder).rglob("*") if path.is_file()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_LIMIT, ADDRESS_LIMIT))
    signal.signal(signal.SIGALRM, too_long)
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            accepted, refused, faults = fuzz(kind, options.count, options.seed, folder)
            total += len(faults)
            print(
                f"{kind}: {options.count} mutants, {accepted} accepted, {refused} refused in one line, "
                f"{len(faults)} faults",
                *faults[:10],
                sep="\n    ",
                flush=True,
            )
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
