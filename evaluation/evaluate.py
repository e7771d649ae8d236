"""Measure sample sets against real photos, and write one report.

    python -m evaluation.evaluate --config configs/evaluate_sd21.py --samples-folder Generated_Samples/SET

Reads   {samples_folder}/{method}/{identity}/*.png and the real photos in either nesting.
Writes  {output_folder}/report.html (one file, opens offline), results.json, tables/*.csv, .json, .md, .tex,
        measurements.parquet and .csv (a row for each sample and real photo; .json says what they mean),
        gallery.html and gallery/ (all samples beside the real photos; opens offline from its folder).

Each part is measured on its own: what lacks its network or its pairs is listed under "Not measured" with the
reason, and takes nothing else with it. Detections and features are cached by content, so that a second run
with other settings takes seconds.
"""

if not __package__:
    raise SystemExit("error: run it from the project's folder as python -m evaluation.evaluate")

from functools import partial

from configs.evaluation_config import EvaluationConfig
from utils.config import parse_command_line
from utils.errors import UserError, run

if __name__ == "__main__":  # a wrong command line is answered before the libraries load, for seconds
    run(lambda: parse_command_line(EvaluationConfig, "configs/evaluate_mini.py"), exits=False)

from evaluation.comparison import image_sets_of, open_comparison
from evaluation.gallery import write_gallery
from evaluation.image_sets import REFERENCE, ImageSet, unequal_samples
from evaluation.measure_diversity import EQUAL, diversity_section
from evaluation.measure_identity import identity_section
from evaluation.measure_people import group_section, people_section, threshold_section
from evaluation.measure_samples import measure_samples
from evaluation.measure_sets import (
    attribute_section,
    clip_section,
    faces_section,
    pose_section,
    quality_section,
)
from evaluation.measurements import FILES, write_measurements
from evaluation.overview import overview
from evaluation.report import write_report
from utils.devices import use_threads
from utils.outputs import open_output
from utils.progress import log
from utils.run_record import describe_run
from utils.text_tables import visible

# {what: function of the comparison and the samples' measurements}, after the others.
PEOPLE = {
    "fixed false match rates": threshold_section,
    "people": people_section,
    "groups of people": group_section,
}
DEFAULT_CONFIG = "configs/evaluate_mini.py"


def main(argv=None):
    """Parse the command line and evaluate; returns the exit code."""
    config = parse_command_line(EvaluationConfig, DEFAULT_CONFIG, argv)
    if config.dry_run:
        open_outputs(config, write=False)
        print_plan(config)
        return 0
    path, sections, not_measured = evaluate(config)
    print(f"\n{sections[0].tables[0].to_text()}")
    if sections[0].text:
        log(sections[0].text)
    for what, why in not_measured:
        log(f"not measured: {what} ({why})")
    print(f"report: {path}")
    return 0


def evaluate(config):
    """Measure all that a config asks for and write the report.

    Returns:
        (path of report.html, list of Section, list of (what, why) that was not measured).

    Raises:
        UserError: no samples, no real photos, or no face in any real photo.
    """
    open_outputs(config)
    use_threads(config.threads)
    comparison = open_comparison(config)
    sections, not_measured = run_parts(measures(comparison), comparison)
    measurements = measure_samples(comparison)
    write_measurements(config.output_folder, measurements)
    if config.gallery:
        write_gallery(config.output_folder, comparison, measurements)
    of_people, missing = run_parts(PEOPLE, comparison, measurements)
    sections, not_measured = sections + of_people, not_measured + missing
    sections.insert(0, overview(sections, comparison))
    not_measured += [(faces.name, line) for faces in comparison.sets for line in faces.unreadable]
    path = write_report(config.output_folder, comparison, sections, not_measured, describe_run(config))
    return path, sections, not_measured


def run_parts(parts, *inputs):
    """(sections, [(what, why not measured)]) of parts of the report, {what: function of `inputs`}."""
    sections, not_measured = [], []
    for what, measure in parts.items():
        log(f"measuring: {what}")
        try:
            sections.append(measure(*inputs))
        except UserError as error:
            not_measured.append((what, str(error)))
    return sections, not_measured


def open_outputs(config, write=True):
    """Take the folders that the evaluation writes into, or refuse to (utils/outputs.py)."""
    sources = (config.samples_folder, config.real_folder, config.reference_folder)
    names = ["report.html", "results.json", "gallery.html", *FILES]
    open_output(config.output_folder, names, sources, write=write)
    if config.cache_folder:
        open_output(config.cache_folder, [], sources, write=write)


def measures(comparison):
    """{what: function of the comparison} of every part of the report, in its order."""
    identity = {
        f"identity, by the {judge}": partial(identity_section, judge=judge) for judge in comparison.judges
    }
    diversity = {
        f"diversity on {kind}" + ("" if run == EQUAL else f" ({run})"): partial(
            diversity_section, kind=kind, run=run
        )
        for run in comparison.config.diversity_runs
        for kind in comparison.config.encoders
    }
    parts = {"usable faces": faces_section} | identity
    parts |= {"face image quality (CR-FIQA)": quality_section} | diversity
    parts |= {"head pose": pose_section, "prompt adherence (CLIP score)": clip_section}
    return parts | {"prompt adherence (attributes)": attribute_section}


def print_plan(config):
    """What would be compared."""
    real, methods, reference = image_sets_of(config)
    for images in [real, *methods]:
        people = len(images.identities)
        print(visible(f"{images.name}: {len(images):,} images of {people:,} identities in {images.folder}"))
    if config.reference_folder is not None:
        known = isinstance(reference, ImageSet)
        print(f"{REFERENCE}: {f'{len(reference):,} images' if known else reference}")
    if unequal := unequal_samples(methods):
        print(visible(unequal))
    print(f"would write {config.output_folder}/report.html and tables/")


if __name__ == "__main__":
    run(main)
