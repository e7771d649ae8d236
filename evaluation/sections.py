"""The parts of a report, and the template that shows them there and in notebooks."""

from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def fill(macro, *values, **named):
    """The HTML of a macro of report.html.jinja."""
    return getattr(TEMPLATES.get_template("report.html.jinja").module, macro)(*values, **named)


@dataclass
class Section:
    """One part of the report. Notebooks show it as the report does.

    tables: list of Table. figures: (caption, inline SVG) of evaluation/plots.py. networks: name -> licence of
    what was used, beside the judges.
    """

    title: str
    text: str = ""
    tables: list = field(default_factory=list)
    figures: list = field(default_factory=list)
    networks: dict = field(default_factory=dict)

    def _repr_html_(self):
        return fill("section", self)
