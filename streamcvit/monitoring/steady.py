"""A live view in a terminal that stays whole: whatever is typed, logged or resized while it is shown."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import termios
from collections.abc import Iterator
from typing import Any

from rich.console import ConsoleRenderable
from rich.control import Control
from rich.live import Live


class SteadyLive(Live):
    """A `Live` that begins anew on a clean screen when the terminal's size changes.

    Rich goes back as many lines as it drew; a terminal that has become narrower has made more of them.
    """

    _size: Any = None

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Go back to the view's first line, or to the screen's, before it is drawn again."""
        before, self._size = self._size, self.console.size
        if self._live_render.last_render_height and before not in (None, self._size):
            self._live_render._shape = None
            renderables = [Control.clear(), Control.home(), *renderables]
        return super().process_renderables(renderables)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep what is typed, and loggers made earlier, from writing into the midst of a view that is shown."""
    with _no_echo(), _logs_above():
        yield


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Have the terminal not show what is typed; Ctrl-C and its kin work as ever."""
    try:
        terminal = sys.stdin.fileno()
        mine = os.isatty(terminal) and os.tcgetpgrp(terminal) == os.getpgrp()  # from the background it would stop us
        before = termios.tcgetattr(terminal) if mine else None
    except (OSError, ValueError, AttributeError, termios.error):
        before = None
    if before is None:
        yield
        return
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _logs_above() -> Iterator[None]:
    """Let handlers that hold the terminal itself write above the view, as all that is printed does."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    moved: list[tuple[logging.StreamHandler[Any], Any]] = []
    for handler in {h for logger in loggers for h in getattr(logger, "handlers", ())}:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.__stderr__, sys.__stdout__):
            now = sys.stderr if handler.stream is sys.__stderr__ else sys.stdout
            moved.append((handler, handler.setStream(now)))
    try:
        yield
    finally:
        for handler, before in moved:
            if before is not None:
                handler.setStream(before)
