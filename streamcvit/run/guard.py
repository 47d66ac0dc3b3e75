"""One run in a folder at a time, and a run that stops when it is asked to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from streamcvit.errors import Stopped, UserError
from streamcvit.monitoring.states import LOCK
from streamcvit.run.folder import now


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[Callable[..., None]]:
    """Hold a run folder's lock; it goes with the process, so a killed run leaves none behind.

    A folder that comes about only for the lock, and stays otherwise empty, goes again.

    Yields:
        What lets others read more there than who holds it (`page=ADDRESS`).

    Raises:
        UserError: another process runs in this folder, or it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        fix = "Choose another --name or --set out=..."
        raise UserError(f"the folder cannot be made ({fault.strerror})", where=str(folder), fix=fix) from None
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                f"another process runs in this folder ({_said(owner)})",
                where=str(folder),
                fix="Wait for it, stop it, or choose another --name",
            ) from None
        except OSError:
            pass  # a file system without locks: the learners' epochs still keep two runs apart
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # its former holder removed it meanwhile
    said: dict[str, Any] = {"pid": os.getpid(), "host": platform.node(), "since": now()}

    def tell(**more: Any) -> None:
        said.update(more)
        text = json.dumps(said).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))

    try:
        tell()
        yield tell
    finally:
        if made and os.listdir(folder) == [LOCK]:
            path.unlink()
            with contextlib.suppress(OSError):
                for empty in made:
                    empty.rmdir()
        os.close(descriptor)


def _said(owner: str) -> str:
    try:
        found = json.loads(owner)
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has just begun"


class Stop:
    """Turns SIGINT and SIGTERM into a stop in good order; a second signal stops at once.

    While `patient` is false (nothing is at stake: starting, scoring) the first signal stops at once too. Use as a
    context manager in the main thread; in other threads it does nothing.

    Args:
        pauses: whether the run may stand still, so that SIGUSR1 is the word to go on.

    Attributes:
        tell: says something in a view that would be torn by a line in its midst, and whether it could; called in a
            signal's handler.
        let_go: whether that word came.
    """

    def __init__(self, pauses: bool = False) -> None:
        self.pauses, self.let_go = pauses, False
        self.tell: Callable[[str], bool] = lambda _: False
        self.signal: signal.Signals | None = None
        self.patient = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def arm(self) -> None:
        """Take the signals, also back from a library that took them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread
                before = signal.signal(number, self._come)
                self._before.setdefault(number, before)
        if self.pauses:
            with contextlib.suppress(ValueError, AttributeError):  # a system without the signal
                self._before.setdefault(signal.SIGUSR1, signal.signal(signal.SIGUSR1, self._let))

    def __enter__(self) -> Stop:
        self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def patience(self, patient: bool) -> Iterator[None]:
        """Set `patient` for a while."""
        self.patient, before = patient, self.patient
        try:
            yield
        finally:
            self.patient = before

    def _let(self, number: int, frame: FrameType | None) -> None:
        self.let_go = True

    def _come(self, number: int, frame: FrameType | None) -> None:
        second, self.signal = self.requested, signal.Signals(number)
        if second or not self.patient:
            raise Stopped
        said = "stopping after this batch; a second signal stops at once"
        if not self.tell(said):
            lead = "\n" if os.isatty(2) else ""  # behind the terminal's own ^C
            with contextlib.suppress(OSError):  # nobody reads it: Ctrl-C ended `tee` too
                os.write(2, f"{lead}{said}\n".encode())
