"""Tables as text: aligned for a terminal, Markdown, CSV and LaTeX.

A table is a list of lines, a line a list of cells, a cell text; the first line holds the titles.
"""

import csv
import io
import re

LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {mark: "\\" + mark for mark in "&%$#_{}"}


def lines_of(records):
    """Records (dicts) as lines; a key that a record lacks is an empty cell."""
    columns = columns_of(records)
    return [columns, *[[str(record.get(column, "")) for column in columns] for record in records]]


def columns_of(records):
    """All keys of some records, in order of appearance."""
    return list(dict.fromkeys(key for record in records for key in record))


def aligned(lines):
    """For a terminal: columns as wide as their widest cell, two blanks between."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def markdown(lines, numbers=False):
    """A Markdown table; bars in cells are escaped. With `numbers` all columns but the first stand right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(lines[0]) - 1)]
    escaped = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]])


def csv_text(records, columns=()):
    """Records as comma separated values; None and what is missing stay empty. No records: just `columns`."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns_of(records) or columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def latex_text(text):
    """Text with LaTeX's special characters escaped."""
    return re.sub(r"[\\&%$#_{}~^±∞]", lambda match: LATEX[match.group()], text)


def latex(lines, title):
    """A booktabs tabular of cells that are LaTeX already; the title stands above as a comment."""
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    rows = "\n".join([rf"{head} \midrule", *body])
    align = "l" + "r" * (len(lines[0]) - 1)
    start = f"% {title}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n"
    return f"{start}{rows}\n\\bottomrule\n\\end{{tabular}}\n"
