"""Tables as text: what a terminal, Markdown, a spreadsheet and LaTeX get."""

import csv

from utils.text_tables import aligned, csv_text, latex, latex_text, lines_of, markdown

RECORDS = [{"name": "a|b", "n": 1}, {"name": 'c, "d"', "n": None, "more": "x"}]


def test_records_become_lines_with_every_key():
    assert lines_of(RECORDS) == [["name", "n", "more"], ["a|b", "1", ""], ['c, "d"', "None", "x"]]


def test_columns_stand_below_each_other():
    assert (
        aligned([["name", "n"], ["long name", "1"], ["", "22"]])
        == "name       n\nlong name  1\n           22"
    )
    assert aligned([["only titles", ""]]) == "only titles"


def test_a_bar_in_a_cell_begins_no_column_in_markdown():
    lines = [["a", "b"], ["x | y", r"z \| z"]]
    assert markdown(lines) == "| a | b |\n| --- | --- |\n| x \\| y | z \\| z |"
    assert markdown(lines[:1], numbers=True) == "| a | b |\n| --- | ---: |"


def test_csv_is_read_back_by_the_standard_library():
    read = list(csv.DictReader(csv_text(RECORDS).splitlines()))
    assert read == [{"name": "a|b", "n": "1", "more": ""}, {"name": 'c, "d"', "n": "", "more": "x"}]
    assert csv_text([], ["a", "b"]) == "a,b\n"


def test_latex():
    assert latex_text("50 % \\ {x}_~^±∞&$#") == (
        r"50 \% \textbackslash{} \{x\}\_\textasciitilde{}\textasciicircum{}$\pm$$\infty$\&\$\#"
    )
    assert latex([["a", "b"], ["1", "2"]], "t").splitlines() == [
        "% t",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a & b \\ \midrule",
        r"1 & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
