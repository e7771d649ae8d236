"""Text from outside (names, prompts, messages) as text, on a terminal and in Markdown; and tables of it.

A table is a list of lines, a line a list of cells, a cell text; the first line holds the titles. Its forms in
CSV and LaTeX are in evaluation/tables.py.
"""

import re


def visible(text, keep=""):
    """Text in which what no screen shows, such as an escape sequence, stands as "\\x1b"; but for ``keep``."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def markdown_text(text):
    """Data as text in Markdown: on one line, without HTML, links or marks that would format it."""
    text = visible(" ".join(str(text).split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_~$\[\]|#@]|:(?=//)|(?<=www)\.)", r"\\\1", text)


def lines_of(records):
    """Records (dicts) as lines; a key that a record lacks is an empty cell."""
    columns = columns_of(records)
    return [columns, *[[str(record.get(column, "")) for column in columns] for record in records]]


def columns_of(records):
    """All keys of some records, in order of appearance."""
    return list(dict.fromkeys(key for record in records for key in record))


def aligned(lines):
    """For a terminal: columns as wide as their widest cell, two blanks between."""
    lines = [[visible(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def markdown(lines, numbers=False):
    """A Markdown table of Markdown; bars in cells are escaped. `numbers`: all but the first stand right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(lines[0]) - 1)]
    escaped = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]])
