"""The first table of a report: one figure of each kind per method, the rest of the page beneath it."""

from dataclasses import replace

from evaluation.judges import CIRCULAR
from evaluation.sections import Section
from evaluation.tables import Column, Table

# Table (a name, or the start of several), column, title here. Of several tables the first one counts: the
# judge's pack comes before the other recogniser, and encoders and runs come in the order of the config.
FIGURES = (
    ("faces", "share", "with a face"),
    ("identity", "similarity", "similarity to own photos"),
    ("identity", "eer", "EER against real photos"),
    ("quality", "quality", ""),
    ("diversity_", "fd", ""),
    ("diversity_", "vendi", "Vendi per identity"),
    ("pose", "yaw_spread", "yaw spread per identity, degrees"),
    ("clip_score", "score", ""),
    ("attributes", "background", "right background"),
    ("looks", "kept", "looks kept"),
)
NOTE = "In brackets 95 % intervals; arrows say which way is better{}. Details are below."


def overview(sections, comparison):
    """A Section with one table, of figures from the tables of `sections`; what is missing is left out.

    Its text says what the methods' samples lack of one another, which makes their figures no fair comparison.
    """
    tables = [table for section in sections for table in section.tables]
    columns, rows = [Column("method", "method")], {}
    notes = {NOTE.format("" if comparison.unequal_samples else ", where the better value is marked"): None}
    for start, key, title in FIGURES:
        source = next((table for table in tables if is_source(table, start, key)), None)
        if source is None:
            continue
        column = next(column for column in source.columns if column.key == key)
        columns.append(replace(column, key=f"{source.name}/{key}", title=title or column.title))
        for row in source.rows:
            rows.setdefault(row["method"], {"method": row["method"]})[columns[-1].key] = row.get(key)
        if start == "diversity_":
            notes[f"FD and Vendi: {source.title[0].lower()}{source.title[1:]}."] = None
        circular = [row["method"] for row in source.rows if row.get("judge") == CIRCULAR]
        if circular:
            names = ", ".join(circular)
            notes[f"The judge of identity is the recogniser in the loss of {names}: circular."] = None
    notes, rows = " ".join(notes), list(rows.values())
    table = Table("overview", "Methods in one table", columns, rows, notes, comparison.no_rivals)
    return Section("At a glance", comparison.unequal_samples, [table])


def is_source(table, start, key):
    """Whether the overview takes column `key` from this table; EER is that against real photos."""
    wanted = table.name.startswith(start) and any(column.key == key for column in table.columns)
    return wanted and (key != "eer" or table.name.endswith("_vs_real"))
