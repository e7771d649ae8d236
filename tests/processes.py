"""Training and sampling with one, two, three and seven processes make the same files to the byte.

    python -m tests.processes

Three people and two objectives over two processes are uneven shards; seven processes are more than there
is work for. Where one person is refused, both of two processes leave with 1, once everything is written.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests import miniature_runs as runs

COUNTS = {"training": (1, 2, 3, 7), "sampling": (1, 2, 3, 7)}
# Where a stage leaves its summary, and what else it writes once all processes are done.
WRITTEN = {"training": ("summary.json",), "sampling": ("set/summary.json", "set/README.md")}


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
        faults += sum(not leave_together(stage, world, Path(folder)) for stage in COUNTS)
    return int(faults > 0)


def leave_together(stage, world, folder):
    """Whether two processes, of which one meets a person without consent, write all and leave with 1."""
    refused, *others = runs.PEOPLE
    for name in others:
        consent = {"who": "form", "purpose": "research", "until": "2099-01-01"}
        (world / "faces" / name / "consent.json").write_text(json.dumps(consent))
    output = folder / f"{stage}-refused"
    codes = runs.launch(runs.RUNS[stage], 2, world, output, "--require-consent")
    rows = json.loads((output / WRITTEN[stage][0]).read_text())
    failed = {row["identity"] for row in rows if row["status"] == "failed"}
    done = {row["identity"] for row in rows if row["status"] == "done"}
    wanted = [output / name for name in WRITTEN[stage]]
    wanted += [folder / f"{stage}-refused_sheets/set/{name}.jpg" for name in others if stage == "sampling"]
    missing = [path.name for path in wanted if not path.is_file()]
    well = codes == [1, 1] and failed == {refused} and done == {*others} and not missing
    print(f"{stage}, one person refused: exit codes {codes}; {'together' if well else missing or rows}")
    return well


if __name__ == "__main__":
    sys.exit(main())
