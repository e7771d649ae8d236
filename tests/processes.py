"""Training and sampling with one, two, three and seven processes make the same files to the byte.

    python -m tests.processes

Three people and two objectives over two processes are uneven shards; seven processes are more than there
is work for.
"""

import sys
import tempfile
from pathlib import Path

from tests import miniature_runs as runs

COUNTS = {"training": (1, 2, 3, 7), "sampling": (1, 2, 3, 7)}


def main():
    runs.preload()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        world = runs.complete_world(Path(folder) / "world")
        for stage, counts in COUNTS.items():
            reference = None
            for count in counts:
                output = Path(folder) / f"{stage}-{count}"
                codes = runs.launch(runs.RUNS[stage], count, world, output)
                found = runs.artefacts(output)
                reference = reference or found
                wrong = [name for name in reference | found if reference.get(name) != found.get(name)]
                wrong += [f"exit codes {codes}"] if any(codes) else []
                verdict = "; ".join(wrong) or "equal"
                print(f"{stage}, {count} processes: {len(found)} files; {verdict}", flush=True)
                faults += bool(wrong) or not found
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
