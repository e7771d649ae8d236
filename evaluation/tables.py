"""One table, many forms; intervals in brackets and the better value marked.

Names and titles may come from anywhere: in every form they are text, no formula of a spreadsheet, no link and
no command.
"""

import csv
import io
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.sections import fill
from utils.files import atomic_write_json, atomic_write_text
from utils.text_tables import aligned, columns_of, markdown, markdown_text, visible

MISSING = "-"
LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {mark: "\\" + mark for mark in "&%$#_{}"}
# What spreadsheets take for a formula when a cell begins with it, Japanese wide forms included.
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?(\d[\d.,]*([eE][+-]?\d+)?|inf|nan)")


@dataclass(frozen=True)
class Value:
    """A figure: its value, a 95 % interval (NaN for none), and a spread (NaN for none)."""

    value: float
    low: float = math.nan
    high: float = math.nan
    spread: float = math.nan

    def text(self, digits=3, scale=1.0, unit=""):
        """For instance "0.512 ± 0.081 [0.480, 0.540]"; a dash when there is no value."""
        if not math.isfinite(self.value):
            return "∞" if self.value == math.inf else MISSING
        parts = [f"{scale * self.value:.{digits}f}{unit}"]
        if math.isfinite(self.spread):
            parts.append(f"± {scale * self.spread:.{digits}f}")
        if math.isfinite(self.low):
            parts.append(f"[{scale * self.low:.{digits}f}, {scale * self.high:.{digits}f}]")
        return " ".join(parts)


@dataclass(frozen=True)
class Column:
    """A column: title, digits, which direction is better ("high", "low", ""), scale and unit for display."""

    key: str
    title: str
    better: str = ""
    digits: int = 3
    scale: float = 1.0
    unit: str = ""
    help: str = ""


@dataclass
class Table:
    """Rows are dicts column key -> Value, number or text; `reference_rows` never count as best.

    page_rows: so many the report shows, None for all; files have them all.
    """

    name: str
    title: str
    columns: list
    rows: list
    note: str = ""
    reference_rows: tuple = ()
    key: str = "method"
    page_rows: int | None = None
    best: dict = field(init=False)

    def __post_init__(self):
        self.best = {column.key: self._best(column) for column in self.columns if column.better}

    def _best(self, column):
        """Positions of the best rows of a column (ties included); none with fewer than two to compare."""
        rivals = [i for i, row in enumerate(self.rows) if row[self.key] not in self.reference_rows]
        numbers = {i: number_of(self.rows[i].get(column.key)) for i in rivals}
        numbers = {i: number for i, number in numbers.items() if math.isfinite(number)}
        if len(numbers) < 2 or len(set(numbers.values())) < 2:
            return set()
        best = (max if column.better == "high" else min)(numbers.values())
        return {i for i, number in numbers.items() if number == best}

    def cells(self):
        """Display texts, a list of rows, each with the text and whether it is marked best."""
        return [
            [(shown(row.get(c.key), c), i in self.best.get(c.key, ())) for c in self.columns]
            for i, row in enumerate(self.rows)
        ]

    def _repr_html_(self):
        return fill("table", self)

    def records(self):
        """Rows as flat dicts of numbers, text and None; keys as in the CSV file."""
        return [flat_record(row, self.columns) for row in self.rows]

    def to_json(self):
        """The table as plain values for a JSON file."""
        best = {key: sorted(self.rows[i][self.key] for i in rows) for key, rows in self.best.items()}
        return {
            "name": self.name,
            "title": self.title,
            "note": self.note,
            "rows": self.records(),
            "best": best,
        }

    def to_csv(self):
        """Comma separated: value, low, high and spread of each column at full precision."""
        return csv_text(self.records(), [column.key for column in self.columns])

    def to_text(self):
        """Aligned for a terminal; the better value carries a star."""
        return f"{visible(self.title)}\n{aligned(self.lines('{} *'))}"

    def to_markdown(self):
        """Title, table with bold best values, note."""
        body = markdown(self.lines("**{}**", markdown_text), numbers=True)
        return f"{markdown_text(self.title)}\n\n{body}\n\n{markdown_text(self.note)}\n"

    def to_latex(self):
        """A booktabs tabular with bold best values."""
        return latex(self.lines(r"\textbf{{{}}}", latex_text, latex_text), latex_text(self.title))

    def write(self, folder):
        """Write folder/{name}.csv, .json, .md and .tex, each whole or not at all."""
        stem = Path(folder) / self.name
        atomic_write_json(stem.with_suffix(".json"), self.to_json())
        forms = {".csv": self.to_csv(), ".md": self.to_markdown(), ".tex": self.to_latex()}
        for suffix, text in forms.items():
            atomic_write_text(stem.with_suffix(suffix), text)

    def lines(self, best, names=str, figures=str):
        """Titles and display texts, a list of lines.

        Args:
            best: the form of a best value. names, figures: what escapes texts of others, and our own figures.
        """
        lines = [[names(column.title) for column in self.columns]]
        for row, line in zip(self.rows, self.cells(), strict=True):
            escapes = [names if isinstance(row.get(c.key), str) else figures for c in self.columns]
            texts = [(escape(text), marked) for escape, (text, marked) in zip(escapes, line, strict=True)]
            lines.append([best.format(text) if marked else text for text, marked in texts])
        return lines


def number_of(value):
    """The number in a cell, NaN for text or nothing."""
    if isinstance(value, Value):
        return value.value
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def shown(value, column):
    """The display text of one cell."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    value = value if isinstance(value, Value) else Value(float(value))
    return value.text(column.digits, column.scale, column.unit)


def flat_record(row, columns):
    """One row with a column per number; NaN becomes None."""
    record = {}
    for column in columns:
        value = row.get(column.key)
        if not isinstance(value, Value):
            record[column.key] = finite(value)
            continue
        record[column.key] = finite(value.value)
        for part in ("low", "high", "spread"):
            if math.isfinite(getattr(value, part)):
                record[f"{column.key}_{part}"] = getattr(value, part)
    return record


def finite(value):
    """None for NaN and infinity, which JSON has no word for; else the value."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------- CSV and LaTeX


def csv_text(records, columns=()):
    """Records as comma separated values; None and what is missing stay empty. No records: just `columns`."""
    stream, keys = io.StringIO(), columns_of(records) or columns
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(csv_cell, keys))
    writer.writerows([csv_cell(record.get(key)) for key in keys] for record in records)
    return stream.getvalue()


def csv_cell(value):
    """A cell that a spreadsheet shows and never computes: an apostrophe before what would be a formula.

    Tabs and line ends, which would begin a new cell, stand as text.
    """
    if not isinstance(value, str):
        return value
    formula = FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{visible(value)}" if formula else visible(value)


def latex_text(text):
    """Text on one line, with LaTeX's special characters escaped."""
    return re.sub(r"[\\&%$#_{}~^±∞]", lambda match: LATEX[match.group()], visible(" ".join(text.split())))


def latex(lines, title):
    """A booktabs tabular of cells that are LaTeX already; the title stands above as a comment."""
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    rows = "\n".join([rf"{head} \midrule", *body])
    align = "l" + "r" * (len(lines[0]) - 1)
    start = f"% {title}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n"
    return f"{start}{rows}\n\\bottomrule\n\\end{{tabular}}\n"
