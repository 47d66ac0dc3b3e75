"""The console that everything prints to, as text or as JSON lines."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

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


FIELDS = ("method", "actor", "step")
"""What a JSON line says of what it is about, where that is known, besides time, level, run and message."""
_about: ContextVar[dict[str, Any]] = ContextVar("about")
_json_of: str | None = None  # the run whose lines are JSON; None: they are text


def log_as_json(run: str) -> None:
    """Have every further line of this process, those of libraries' loggers too, be an object of JSON."""
    global _json_of
    _json_of = run
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)


def log_as_text() -> None:
    """Undo `log_as_json`."""
    global _json_of
    _json_of = None
    logging.captureWarnings(False)
    logging.basicConfig(handlers=[], force=True)


def as_json() -> bool:
    """Whether lines are JSON."""
    return _json_of is not None


@contextlib.contextmanager
def about(**what: Any) -> Iterator[None]:
    """What is said within is about this: any of `FIELDS`, or more of one's own, as JSON values."""
    token = _about.set({**_about.get({}), **what})
    try:
        yield
    finally:
        _about.reset(token)


def json_line(message: str, level: str = "info", **more: Any) -> str:
    """A line of JSON: time (UTC), level (info, warning, error), run, method, actor, step, message."""
    told = _about.get({}) | more
    fields = {name: told.pop(name, None) for name in FIELDS}
    fields["actor"] = fields["actor"] or "driver"
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps(
        {"time": time, "level": level, "run": _json_of or None, **fields, "message": message, **told},
        ensure_ascii=False,
        default=str,
    )


class _JsonFormatter(logging.Formatter):
    """What libraries and threads log, in the same form."""

    def format(self, record: logging.LogRecord) -> str:
        return json_line(super().format(record), record.levelname.lower(), logger=record.name)


class Screen(Console):
    """A console whose reader may go: what else is said goes nowhere, and the work goes on.

    Ctrl-C in `streamcvit run ... | tee log` ends `tee` before the run has stopped in good order; rich would end the
    process then.

    Args:
        settings: of a rich console.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, **settings)

    @property
    def is_terminal(self) -> bool:
        """Whether a person is taken to sit there; for lines of JSON nobody is."""
        return not as_json() and super().is_terminal

    def print(self, *objects: Any, **how: Any) -> None:
        """Print, as `rich` does it; where lines are JSON, all of a call as one of them."""
        if not as_json():
            super().print(*objects, **how)
            return
        plain = Console(file=io.StringIO(), width=self.width, color_system=None, highlight=False)
        plain.print(*objects, **how)
        said = plain.file.getvalue().strip("\n")  # type: ignore[attr-defined]
        level = "error" if said.startswith("error: ") else "warning" if self.stderr else "info"
        super().print(Text(json_line(said.removeprefix("error: "), level)), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Say nothing more, whatever is still buffered included."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
