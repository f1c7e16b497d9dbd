"""The three forms of a table."""

from __future__ import annotations

import csv
import io

from culnig_fast.tables.table import Cell, Table
from culnig_fast.tables.writing import to_csv, to_latex, to_markdown

TABLE = Table(
    "main",
    "Accuracy, 95 % & more",
    ("country_rc", "a|b"),
    (
        ("original", None, (Cell(81.25, 79.0, 83.5, n=40), None)),
        ("ours", 1234, (Cell(1 / 3, 0.1, 0.5, p=0.01, p_holm=0.02, bold=True, n=40), Cell(5.0))),
        ("random", 1234, (Cell(80.0, 78.0, 82.0, sd=0.5, n=40), Cell(-5.0))),
    ),
    ("A note.",),
)


def test_csv_keeps_every_number_in_full() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert len(rows) == 5  # the empty cell has none
    ours = rows[1]
    assert (ours["row"], ours["neurons"], ours["column"], ours["bold"]) == ("ours", "1234", "country_rc", "True")
    assert float(ours["value"]) == 1 / 3
    assert (ours["low"], ours["p"], ours["p_holm"], ours["sd"]) == ("0.1", "0.01", "0.02", "")


def test_markdown() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "**Accuracy, 95 % & more**",
        "",
        r"|  | neurons | country_rc | a\|b |",
        "|---|---:|---:|---:|",
        "| original |  | 81.25 [79.00, 83.50] |  |",
        "| ours | 1,234 | **0.33** [0.10, 0.50] | 5.00 |",
        "| random | 1,234 | 80.00 ± 0.50 [78.00, 82.00] | -5.00 |",
        "",
        "* A note.",
    ]


def test_latex_escapes_and_closes_what_it_opens() -> None:
    text = to_latex(TABLE)
    assert r"\caption{Accuracy, 95 \% \& more. A note.}" in text
    assert r" & neurons & country\_rc & a|b \\" in text
    assert r"ours & 1,234 & \textbf{0.33} {\scriptsize [0.10, 0.50]} & 5.00 \\" in text
    assert r"80.00 $\pm$ 0.50" in text
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert text.count("{") == text.count("}")


def test_a_table_without_neurons_has_no_such_column() -> None:
    table = Table("t", "T", ("x",), (("a", None, (Cell(1.0),)),))
    assert "neurons" not in to_markdown(table)
    assert r"\begin{tabular}{lr}" in to_latex(table)
