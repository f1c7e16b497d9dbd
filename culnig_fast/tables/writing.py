"""Tables as csv for programs, markdown for reading, LaTeX for papers."""

from __future__ import annotations

import csv
import io

from culnig_fast.tables.table import Cell, Table

_CSV_FIELDS = ("row", "neurons", "column", "value", "low", "high", "sd", "p", "p_holm", "bold", "n")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def to_csv(table: Table) -> str:
    """One line a cell, every number in full; an empty cell has no line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for name, neurons, cells in table.rows:
        for column, cell in zip(table.columns, cells, strict=True):
            if cell is not None:
                values = {field: getattr(cell, field) for field in _CSV_FIELDS[3:]}
                writer.writerow({"row": name, "neurons": neurons, "column": column, **values})
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table; a cell is `value ± sd [low, high]`, bold where significant."""
    counted = any(neurons is not None for _, neurons, _ in table.rows)
    head = ["", *(["neurons"] if counted else []), *map(_plain, table.columns)]
    lines = [f"**{_plain(table.title)}**", "", _line(head), "|---|" + "---:|" * (len(head) - 1)]
    for name, neurons, cells in table.rows:
        count = ["" if neurons is None else f"{neurons:,}"] if counted else []
        lines.append(_line([_plain(name), *count, *(_markdown_cell(cell) for cell in cells)]))
    return "\n".join([*lines, "", *(f"* {_plain(note)}" for note in table.notes), ""])


def to_latex(table: Table) -> str:
    """A `table` with `booktabs` rules; intervals are set small."""
    counted = any(neurons is not None for _, neurons, _ in table.rows)
    head = ["", *(["neurons"] if counted else []), *map(_escaped, table.columns)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title)}. {' '.join(map(_escaped, table.notes))}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        _row(head),
        r"\midrule",
    ]
    for name, neurons, cells in table.rows:
        count = ["" if neurons is None else f"{neurons:,}"] if counted else []
        lines.append(_row([_escaped(name), *count, *(_latex_cell(cell) for cell in cells)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = f"**{cell.value:.2f}**" if cell.bold else f"{cell.value:.2f}"
    spread = "" if cell.sd is None else f" ± {cell.sd:.2f}"
    interval = "" if cell.low is None or cell.high is None else f" [{cell.low:.2f}, {cell.high:.2f}]"
    return f"{value}{spread}{interval}"


def _latex_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = rf"\textbf{{{cell.value:.2f}}}" if cell.bold else f"{cell.value:.2f}"
    spread = "" if cell.sd is None else rf" $\pm$ {cell.sd:.2f}"
    if cell.low is None or cell.high is None:
        return f"{value}{spread}"
    return rf"{value}{spread} {{\scriptsize [{cell.low:.2f}, {cell.high:.2f}]}}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _plain(text: str) -> str:
    return text.replace("|", r"\|")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
