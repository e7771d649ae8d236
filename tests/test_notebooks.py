"""Every notebook, cell by cell, on the miniature: rendered people, its own pack and networks."""

import ast
import json
from pathlib import Path

import pytest

from configs.ablation_config import AblationConfig
from configs.evaluation_config import EvaluationConfig
from configs.inference_config import InferenceConfig
from evaluation import ablation, evaluate, published_values
from id_booth.sampling.settings import data_set_name
from mini.lab_photos import write_lab_photos
from mini.study_data import wild_photo
from mini.world.identity import HELD_OUT
from tests.evaluation_world import Page
from utils.config import load_config
from utils.images import save_png
from utils.run_record import PROJECT_ROOT

NOTEBOOKS = sorted((PROJECT_ROOT / "evaluation/notebooks").glob("*.ipynb"))
PEOPLE, EACH = 3, 3
FIGURES = {"auc": 0.9, "eer": 0.1, "tar@far=1e-3": 0.5, "tar@far=1e-4": 0.3}
FR_RESULTS = [
    {"row": row, "seed": f"seed_{seed}", "benchmark": "lfw", "accuracy": base + 0.01 * seed, **FIGURES}
    for row, base in (("real", 0.8), ("real+ID-Booth_21", 0.85))
    for seed in (0, 1)
]


def test_there_is_a_notebook_for_every_table_and_figure():
    names = {path.stem for path in NOTEBOOKS}
    tables = {"usable_faces", "verification", "diversity", "quality", "pose", "fr_accuracy", "ablation"}
    figures = {"samples", "scores", "quality", "pose", "fr_accuracy"}
    assert names == {f"table_{name}" for name in tables} | {f"figure_{name}" for name in figures}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_jupyter_and_vs_code_can_open_it(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    kernel = notebook["metadata"]["kernelspec"]
    assert kernel == {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells) and cells[0]["cell_type"] == "markdown"
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert tagged == [cells[1]]  # one cell to change, the first one
    for cell in cells[1:]:
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos, samples of two methods, an ablation's reports, recogniser results; {parameter: value}."""
    root = tmp_path_factory.mktemp("notebooks")
    write_lab_photos(root / "photos", PEOPLE, EACH)
    for shift, method in enumerate(("ID-Booth", "NonFineTuned")):  # of the person, and of somebody else
        write_samples(root / "samples" / "set" / method, shift)
    evaluation = load_config(PROJECT_ROOT / "configs/evaluate_mini.py", (), EvaluationConfig)
    evaluation.cache_folder, evaluation.replicates, evaluation.verification_replicates = None, 20, 20
    evaluation.cache_folder, evaluation.output_folder = str(root / "cache"), str(root / "out")
    for name in ("pack", "attributes_file", "quality_weights"):
        setattr(evaluation, name, str(PROJECT_ROOT / getattr(evaluation, name)))
    write_config(root / "evaluate.py", evaluation)
    (root / "fr").mkdir()
    (root / "fr/results.json").write_text(json.dumps(FR_RESULTS))
    write_ablation(root, evaluation)
    return root


def write_samples(folder, shift):
    """Wild renders of ID_1, ID_2, ID_3, or of the people `shift` numbers after them, with their records."""
    records = []
    for person in range(PEOPLE):
        for number in range(EACH):
            name = f"ID_{person + 1}/{number:03d}.png"
            save_png(folder / name, wild_photo(HELD_OUT + person + 7 * shift, number))
            records.append({"file_name": name, "prompt": "face portrait photo of male sks person"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_ablation(root, evaluation):
    """An ablation's config, and the reports of two of its rows."""
    inference = InferenceConfig(output_folder=str(root / "ablation samples"))
    write_config(root / "inference.py", inference)
    config = AblationConfig(
        inference_config=str(root / "inference.py"),
        evaluation_config=str(root / "evaluate.py"),
        output_folder=str(root / "ablation"),
        images=EACH,
        counts=(),
    )
    write_config(root / "ablation.py", config)
    for row in ablation.plan_rows(config)[:2]:
        options = ablation.sampling_options(config, row)
        name = data_set_name(load_config(config.inference_config, options, InferenceConfig))
        write_samples(Path(inference.output_folder) / name / "ID-Booth", shift=int(row.name == "base"))
        options = [*ablation.evaluation_options(config, row), "--real-folder", str(root / "photos")]
        evaluate.main(["--config", config.evaluation_config, *options])


def write_config(file, config):
    """A config file that builds `config`."""
    kind = type(config)
    file.write_text(f"from {kind.__module__} import {kind.__name__}\n\nconfig = {config!r}\n")


def run_notebook(path, parameters):
    """What the last cell shows, after all cells with these parameters in the place of the notebook's own."""
    variables, shown = {}, None
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(path), "exec"), variables)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(parameters) >= {name for name in variables if not name.startswith("__")}
            variables |= {name: parameters[name] for name in parameters if name in variables}
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), str(path), "eval"), variables)
    return shown._repr_html_()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_on_the_miniature(path, world, monkeypatch):
    monkeypatch.chdir(path.parent)  # where Jupyter starts it
    parameters = {
        "config_path": str(world / ("ablation.py" if path.stem == "table_ablation" else "evaluate.py")),
        "samples": str(world / "samples"),
        "photos": str(world / "photos"),
        "fr_runs": str(world / "fr"),
    }
    text = run_notebook(path, parameters)
    page = Page(text)
    wanted = "img" if path.stem == "figure_samples" else {"figure": "svg", "table": "table"}
    assert (wanted if isinstance(wanted, str) else wanted[path.stem.partition("_")[0]]) in page.tags
    assert "Not measured" not in page.text and ("ID-Booth" in page.text or path.stem == "table_ablation")
    values = {"table_quality": "2.146", "table_pose": "26.30", "table_diversity": "1.196"}
    values |= {"table_verification": "4.217", "table_usable_faces": "2,233", "figure_scores": "0.155"}
    values["table_ablation"] = "2.079"
    assert values.get(path.stem, "") in page.text  # published, beside ours


def test_published_tables_have_a_column_for_every_value():
    names = ("usable_faces", "quality", "pose", "verification", "scores", "diversity", "ablation")
    tables = [table for name in names for table in getattr(published_values, name)()]
    assert len({table.name for table in tables}) == len(tables) == 12
    for table in tables:
        keys = {column.key for column in table.columns}
        assert all(set(row) == keys for row in table.rows) and not any(table.best.values())
        assert table.to_csv() and table.to_latex()
