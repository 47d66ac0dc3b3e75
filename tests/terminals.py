"""A terminal for tests: a process in it, what its screen shows, keys typed into it, and its size."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from rich.cells import cell_len

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|([\r\n\b\x07])|([^\x1b\r\n\b\x07]+)")


class Screen:
    """What an xterm shows of the codes that a program sends; a code that it does not know fails the test.

    Attributes:
        history: lines that went out at the top.
        lines: those in sight, from the top.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.history: list[str] = []
        self.lines = [""] * rows
        self.row = self.column = 0
        self._rest = ""

    def resize(self, columns: int, rows: int) -> None:
        """As a terminal that folds anew what is longer than a line."""
        folded: list[str] = []
        for line in self.lines[: self.row + 1]:
            folded += [line[k : k + columns] for k in range(0, max(1, len(line.rstrip())), columns)]
        self.columns, self.rows = columns, rows
        self.history += folded[:-rows]
        self.lines = (folded[-rows:] + [""] * rows)[:rows]
        self.row, self.column = min(rows, len(folded)) - 1, min(self.column, columns - 1)

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                assert len(text) - place < 40, f"an unknown code: {text[place:][:20]!r}"
                self._rest = text[place:]
                return
            numbers, code, control, plain = found.groups()
            if code:
                self._code(numbers, code)
            elif control == "\n":
                self._down()
            elif control == "\r":
                self.column = 0
            elif control == "\b":
                self.column = max(0, self.column - 1)
            for sign in plain or "":
                self._put(sign)
            place = found.end()

    def _put(self, sign: str) -> None:
        if self.column + cell_len(sign) > self.columns:
            self.column = 0
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + sign + line[self.column + 1 :]
        self.column += 1

    def _down(self) -> None:
        if self.row == self.rows - 1:
            self.history.append(self.lines.pop(0))
            self.lines.append("")
        else:
            self.row += 1

    def _code(self, numbers: str, code: str) -> None:
        if code in "mhl":
            return
        count = int(numbers or 1)
        if code == "A":
            self.row = max(0, self.row - count)
        elif code == "K" and numbers == "2":
            self.lines[self.row] = ""
        elif code == "J" and numbers == "2":
            self.lines = [""] * self.rows
        elif code == "H" and not numbers:
            self.row = self.column = 0
        else:
            raise AssertionError(f"an unknown code: {numbers}{code}")

    @property
    def text(self) -> str:
        """All that can be read, what has gone out at the top included."""
        return "\n".join(line.rstrip() for line in [*self.history, *self.lines]).replace("\u00a0", " ").rstrip()


class Terminal:
    """A process that has a terminal of its own."""

    def __init__(self, words: Sequence[str], columns: int, rows: int, env: dict[str, str], cwd: Path) -> None:
        self.screen = Screen(columns, rows)
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)

        def take() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        env = {key: value for key, value in env.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env={**env, "TERM": "xterm"}, preexec_fn=take
        )
        os.close(slave)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(columns, rows)
        self._set_size(columns, rows)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self, seconds: float) -> bool:
        """Show what comes for a while; whether more may come."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._master], [], [], left)[0]:
                break
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                return False
            if not data:
                return False
            self.screen.feed(data.decode(errors="replace"))
        return True

    def until(self, true: Callable[[str], object], seconds: float = 60) -> None:
        """Until the screen's text is as it should be."""
        deadline = time.monotonic() + seconds
        while not true(self.screen.text):
            more = self.read(0.1)
            assert true(self.screen.text) or (more and time.monotonic() < deadline), self.screen.text

    def end(self, seconds: float = 60) -> int:
        """The process's exit code, with all it said on the screen."""
        deadline = time.monotonic() + seconds
        while self.read(0.2):
            assert time.monotonic() < deadline, self.screen.text
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
