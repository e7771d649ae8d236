"""What the notebooks share: opening an evaluation, and the published values beside its own."""

from dataclasses import replace

from configs.evaluation_config import EvaluationConfig
from evaluation import published_values
from evaluation.comparison import open_comparison
from evaluation.report import pictures
from evaluation.sections import Section, fill
from utils.config import load_config
from utils.errors import UserError


def open_evaluation(config_path, samples=None, photos=None):
    """The Comparison of a config, with a set of samples and photos of one's own in place of its own.

    Args:
        samples: a sample set's folder; None takes the config's. photos: likewise of the real photos.
    """
    config = load_config(config_path, (), EvaluationConfig)
    own = {"samples_folder": samples, "real_folder": photos}
    return open_comparison(replace(config, **{name: str(path) for name, path in own.items() if path}))


def tables(section, published=None):
    """A Section with the tables of another, and the published ones of that name after them."""
    more = getattr(published_values, published)() if published else []
    return Section(section.title, section.text, [*section.tables, *more])


def figures(section, published=None):
    """A Section with the figures of another, and the published tables of that name after them."""
    more = getattr(published_values, published)() if published else []
    return Section(section.title, section.text, more, section.figures)


def measured(measure, *arguments, **options):
    """The Section that a measure gives, or one that says why it cannot."""
    try:
        return measure(*arguments, **options)
    except UserError as reason:
        return Section("Not measured", str(reason))


class Samples:
    """Samples beside the photos of some people, shown as the report shows them."""

    def __init__(self, comparison, people=3):
        self.comparison, self.people = comparison, comparison.real.images.identities[:people]

    def _repr_html_(self):
        rest = len(self.comparison.real.images.identities) - len(self.people)
        return fill("pictures", pictures(self.comparison, self.people), rest)
