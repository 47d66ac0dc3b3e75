"""Tables written down: for a terminal, as Markdown, as LaTeX, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from streamcvit.comparison.sheets import Cell, Sheet
from streamcvit.monitoring import latex
from streamcvit.monitoring.report.charts import number, shorten
from streamcvit.monitoring.report.tables import unformula


def terminal(sheet: Sheet, console: Console) -> Iterator[RenderableType]:
    """A sheet as a console has room for it; where that is narrow, without intervals, or in parts."""
    rows = [row for block in sheet.blocks for row in block]
    across = len(rows) <= len(sheet.columns)
    heads = [(name, note) for name, note, _ in rows] if across else [(name, "") for name in sheet.columns]
    sides = [(name, "") for name in sheet.columns] if across else [(name, note) for name, note, _ in rows]
    cells = [[row[2][k] for row in rows] for k in range(len(sheet.columns))] if across else [row[2] for row in rows]
    title, whole = sheet.title, slice(None)
    table = _grid(title, heads, sides, cells, whole, True)
    if _wide(table, console) and _wide(table := _grid(title, heads, sides, cells, whole, False), console):
        count = max(1, (console.width - max(len(name) for name, _ in sides) - 2) // 14)
        for start in range(0, len(heads), count):
            yield _grid(title, heads, sides, cells, slice(start, start + count), False)
    else:
        yield table
    yield from (Text(note, "dim") for note in sheet.notes)
    yield Text()


def _wide(table: Table, console: Console) -> bool:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum > console.width


def _grid(
    title: str,
    heads: list[tuple[str, str]],
    sides: list[tuple[str, str]],
    cells: list[list[Cell]],
    part: slice,
    intervals: bool,
) -> Table:
    table = Table(box=SIMPLE_HEAD, title=Text(title), title_justify="left", pad_edge=False)
    table.add_column("")
    for name, note in heads[part]:
        table.add_column(_named(name, note, 14), justify="right")
    for (name, note), row in zip(sides, cells, strict=True):
        table.add_row(_named(name, note, 30), *(_screen(cell, intervals) for cell in row[part]))
    return table


def _named(name: str, note: str, width: int) -> Text:
    lines = Text(shorten(name, 2 * width))
    if len(name) > width and " − " in name:
        lines = Text(name.replace(" − ", "\n− "))
    return lines.append(f"\n{note}" if note else "", "dim")


def _screen(cell: Cell, intervals: bool) -> Text:
    if cell.entry is None:
        return Text("–", "dim")
    value, low, high = cell.entry
    style = "bold green" if cell.best else "underline" if cell.second else ""
    text = Text(number(value, signed=cell.decided is not None), style, no_wrap=True)
    text.append("*" if cell.decided else "", "bold")
    if intervals and low is not None and high is not None:
        text.append(f"\n[{number(low)}, {number(high)}]", "dim")
    return text


def markdown(sheets: Sequence[Sheet]) -> str:
    """All sheets on one page."""
    parts = []
    for sheet in sheets:
        lines = [f"## {_md(sheet.title)}", ""]
        lines += ["| " + " | ".join(map(_md, [sheet.corner, *sheet.columns])) + " |"]
        lines += ["|---" + "|---:" * len(sheet.columns) + "|"]
        for block in sheet.blocks:
            for name, note, cells in block:
                title = _md(name) + (f" ({_md(note)})" if note else "")
                lines.append("| " + " | ".join([title, *map(_md_cell, cells)]) + " |")
        parts.append("\n".join([*lines, "", *(f"- {_md(note)}" for note in sheet.notes)]))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    plain = " ".join(text.split())
    for mark in "\\|*_`<>[]":
        plain = plain.replace(mark, "\\" + mark)
    return plain


def _md_cell(cell: Cell) -> str:
    if cell.entry is None:
        return "–"
    value, low, high = cell.entry
    text = number(value, signed=cell.decided is not None)
    text = f"**{text}**" if cell.best or cell.decided else f"<u>{text}</u>" if cell.second else text
    return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]"


def tex(sheet: Sheet) -> str:
    """A sheet as a LaTeX table (booktabs): best bold, second underlined, the interval's two ends apart."""
    blocks = [
        [[latex.escaped(name + (f" ({note})" if note else "")), *map(_tex_cell, cells)] for name, note, cells in block]
        for block in sheet.blocks
    ]
    head = [_tex_head(text) for text in [sheet.corner, *sheet.columns]]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering\small",
            latex.tabular(head, blocks),
            rf"\caption{{{' '.join(latex.escaped(_sentence(text)) for text in [sheet.title, *sheet.notes])}}}",
            rf"\label{{tab:{sheet.name}}}",
            r"\end{table}",
            "",
        ]
    )


def _tex_head(text: str) -> str:
    for arrow, sign in (("↑", "uparrow"), ("↓", "downarrow")):
        if text.endswith(f" {arrow}"):
            return rf"{latex.escaped(text[:-2])} $\{sign}$"
    return latex.escaped(text)


def _tex_cell(cell: Cell) -> str:
    text = latex.points(cell.entry, cell.best, cell.second)
    return text + "$^{*}$" if cell.decided else text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def table_csv(sheets: Sequence[Sheet]) -> str:
    """Every cell of every sheet, one a line, at full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "note", "column", "value", "low", "high", "mark"])
    for sheet in sheets:
        for block in sheet.blocks:
            for name, note, cells in block:
                for column, cell in zip(sheet.columns, cells, strict=True):
                    if cell.entry is None:
                        continue
                    mark = "best" if cell.best else "second" if cell.second else "decided" if cell.decided else ""
                    ends = ["" if end is None else f"{end:.4f}" for end in cell.entry]
                    writer.writerow([sheet.name, unformula(name), note, unformula(column), *ends, mark])
    return out.getvalue()
