"""Tables for a paper: LaTeX with booktabs, best bold, second underlined, the interval's two ends apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from streamcvit.monitoring.record import Interval

_ESCAPES = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2013": "--",
    "\u2212": "$-$",
    "\u00a0": "~",
}


def escaped(text: str) -> str:
    """Text as LaTeX prints it; line breaks and control characters become blanks."""
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    return "".join(_ESCAPES.get(c, c) for c in plain)


def points(entry: Interval | None, best: bool = False, second: bool = False, digits: int = 1) -> str:
    """A value with how far its interval reaches up and down, which need not be the same."""
    if entry is None:
        return "--"
    value, low, high = entry
    text = _number(value, digits)
    text = rf"\textbf{{{text}}}" if best else rf"\underline{{{text}}}" if second else text
    if low is None or high is None:
        return text
    up, down = max(0.0, high - value), max(0.0, value - low)
    return text + rf" {{\tiny $^{{+{up:.{digits}f}}}_{{-{down:.{digits}f}}}$}}"


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.replace("-", "$-$") if float(text) else text.lstrip("-")


def tabular(head: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    """A tabular of cells that are LaTeX already, a rule between blocks of rows; needs the package booktabs."""
    lines = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", " & ".join(head) + r" \\"]
    for block in blocks:
        if block:
            lines += [r"\midrule", *(" & ".join(cells) + r" \\" for cells in block)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
