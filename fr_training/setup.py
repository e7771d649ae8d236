"""What id_booth/check_setup.py says of a recognition config: networks, benchmarks, the script's own plan."""

from configs.fr_config import AlignConfig, AugmentConfig, StudyConfig, TestFRConfig, TrainFRConfig
from fr_training import align_faces, augment_dataset, study, test_fr, train_fr
from fr_training.benchmarks import find_benchmark

SCRIPTS = {
    AlignConfig: align_faces,
    AugmentConfig: augment_dataset,
    TrainFRConfig: train_fr,
    TestFRConfig: test_fr,
    StudyConfig: study,
}


def checks(config, arguments):
    """[(what, function, its arguments...)], where the function returns good news or raises UserError.

    Args:
        arguments: the command line that the config is from.
    """
    found = [("recogniser", networks, source) for source in getattr(config, "recognisers", ())]
    if not getattr(config, "prepare", None):  # which makes them
        names = getattr(config, "benchmarks", ())
        found += [("benchmark", benchmark, name, config.benchmark_folder) for name in names]
    return [*found, ("data", dry_run, SCRIPTS[type(config)], arguments)]


def networks(source):
    """How many networks a recogniser to be tested stands for."""
    return f"{source}: {len(test_fr.find_weights(source))}"


def benchmark(name, folder):
    """The file of a benchmark."""
    return str(find_benchmark(name, folder))


def dry_run(script, arguments):
    """What a script's plan says; it raises UserError for the first thing that is missing."""
    script.main([*arguments, "--dry-run"])
    return "complete, by the script's dry run"
