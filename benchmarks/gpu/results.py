"""Results as they come, a JSON line each: whatever ends a stage costs only what was not measured yet."""

import json
from pathlib import Path

from utils.text_tables import lines_of, markdown

RESULTS_FILE = "gpu.jsonl"


class Record:
    """Appends results to OUTPUT/gpu.jsonl, each at once.

    Args:
        output: folder. stage: name of the stage that the results are of.
    """

    def __init__(self, output, stage):
        self.path, self.stage = Path(output) / RESULTS_FILE, stage

    def __call__(self, **fields):
        """Keep one result."""
        line = json.dumps({"stage": self.stage, **{key: rounded(value) for key, value in fields.items()}})
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


def rounded(value):
    """Numbers with four significant digits: more are noise."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def read_results(output):
    """The results in a folder, in order; a line that a crash cut off is left out."""
    path, results = Path(output) / RESULTS_FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            results.append(json.loads(line))
        except ValueError:
            continue
    return results


def ceiling(output, kind="bf16"):
    """The measured rate of a large matrix product in operations per second, None where there is none."""
    found = [
        r for r in read_results(output) if r["stage"] == "ceilings" and r.get("what") == f"matmul {kind}"
    ]
    return 1e12 * found[-1]["tera_operations_per_s"] if found else None


def report(output):
    """Print the results of a folder, a table for each stage, and write them to OUTPUT/summary.md."""
    results, parts = read_results(output), []
    published = [r["ms_per_person"] for r in results if r["stage"] == "step" and r.get("way") == "published"]
    for stage in dict.fromkeys(result["stage"] for result in results):
        rows = [{k: shown(v) for k, v in r.items() if k != "stage"} for r in results if r["stage"] == stage]
        if stage == "step" and published:
            for row in rows:
                if "ms_per_person" in row:
                    row["times published"] = f"{published[0] / float(row['ms_per_person']):.2f}"
        parts.append(f"## {stage}\n\n{markdown(lines_of(rows))}\n")
    text = "\n".join(parts)
    (Path(output) / "summary.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def shown(value):
    """A value as a table shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
