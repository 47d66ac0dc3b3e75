"""The console that everything prints to."""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any

from rich.console import Console

_PLAIN = str.maketrans(
    {
        "↑": "^",
        "↓": "v",
        "→": "->",
        "–": "-",
        "−": "-",
        "±": "+-",
        "·": ".",
        "…": "...",
        "\u00a0": " ",
        "≈": "~",
        "━": "#",
        "─": "-",
    }
)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """For a terminal or file that has no such sign: one that looks like it, or a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(sign if sign.isascii() else "?" for sign in text), error.end


codecs.register_error("streamcvit.plain", _plainly)


def plain_streams() -> None:
    """Let nothing that is said end the work because the reader's encoding (ASCII, a Windows code page) lacks a sign."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="streamcvit.plain")


class Screen(Console):
    """A console whose reader may go: what else is said goes nowhere, and the work goes on.

    Ctrl-C in `streamcvit run ... | tee log` ends `tee` before the run has stopped in good order; rich would end the
    process then.

    Args:
        settings: of a rich console.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, **settings)

    def on_broken_pipe(self) -> None:
        """Say nothing more, whatever is still buffered included."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
