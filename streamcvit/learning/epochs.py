"""One writer at a time: which learner's work counts, and up to where.

A learner that was given up for dead may come back. No lock can hold it off (a stopped process keeps its locks, and a
new learner must not wait for the dead), and a check before a rename leaves a moment between the two. So the fence
stands where work is *read*:

- Whoever begins to write a run takes the next epoch, a number, by creating its file; two cannot take the same one.
- Everything a learner writes carries its epoch in its name, so no learner ever replaces or removes a newer one's work.
- Before it writes anything, a learner notes in its epoch's file the commit it goes on from: its base. From the newest
  epoch the bases lead back to the first. A commit or ledger part counts if its epoch is on this path and its step is
  not after the commit that the next epoch on the path went on from.

So what an old learner writes in the moment between its check and its rename is there, but never counts: the newer
epoch's base was noted before, or the base is that very commit. (Kafka's replicas agree on their log by the same rule:
KIP-101.) The checks only stop an old learner early.

A learner that was given up for dead must not become the newest either, or the run would lose its rightful one. Whoever
starts learners gives each its turn, and an epoch is refused to a turn that is over.

A path with a hole would cut off what was learned before it. So an epoch that another one goes on from, or that work
shows of, must have its base noted, under a checksum: else nothing is decided, and nobody may write.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcvit.errors import UserError
from streamcvit.learning.durable import fsync_folder, read_sealed, write_sealed

FOLDER = "epochs"
_NAME = re.compile(r"(\d{8})(?:-(\d+))?")


Turn = tuple[int, int]
"""Which start of the run, and which life of its learner; the larger is the later."""


class Fenced(UserError):
    """A newer learner has taken over; this one must write nothing more."""

    def __init__(self, where: str, own: int, newest: int) -> None:
        super().__init__(
            f"a newer learner took over this run (epoch {newest}; this one's is {own or 'none'})",
            where=where,
            fix="Nothing is lost: the newer one goes on; this one stops",
        )
        self.own, self.newest = own, newest

    def __reduce__(self) -> tuple:
        return (Fenced, (self.where, self.own, self.newest))


def name_of(step: int, epoch: int) -> str:
    """Name of what a learner writes for a step; epoch 0 is a learner outside a run (a notebook)."""
    return f"{step:08d}-{epoch}" if epoch else f"{step:08d}"


def parse_name(name: str) -> tuple[int, int] | None:
    """(step, epoch) of a commit's or ledger part's name; None for any other name."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2] or 0)) if found else None


@dataclass(frozen=True)
class History:
    """Whose work counts.

    Attributes:
        limits: epoch -> last step that counts of it (None: all its steps). None: a folder without epochs, all counts.
    """

    limits: dict[int, int | None] | None

    def holds(self, step: int, epoch: int) -> bool:
        """Whether what `epoch` wrote for `step` counts."""
        if self.limits is None:
            return True
        if epoch not in self.limits:
            return False
        limit = self.limits[epoch]
        return limit is None or step <= limit


def newest_epoch(run: Path) -> int:
    """The newest epoch that anyone took in a run folder; 0 where there is none."""
    try:
        names = os.listdir(run / FOLDER)
    except FileNotFoundError:
        return 0
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()), default=0)


def epochs_in(folder: Path) -> set[int]:
    """Epochs that commits or ledger parts in a folder are of; 0 is none."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {place[1] for name in names if (place := parse_name(name.removesuffix(".parquet")))} - {0}


def history(run: Path, seen: Collection[int] = ()) -> History:
    """What counts in a run folder: the path of bases from the newest epoch that has one.

    Args:
        run: folder of one method's run.
        seen: epochs of work that the caller has found there, before it asks.

    Raises:
        UserError: the record of an epoch on the path, or of a newer one that was seen at work, is lost.
    """
    for newest in range(max(newest_epoch(run), *seen, 0), 0, -1):
        record = _read(run, newest)
        if record is None:
            if newest in seen:  # its base was noted before it wrote anything
                raise _lost(run, newest)
            continue  # taken, and not begun
        limits: dict[int, int | None] = {newest: None}
        base = record["base"]
        while base is not None:
            step, epoch = base
            limits[epoch] = step
            record = _read(run, epoch) if epoch else {"base": None}
            if record is None:
                raise _lost(run, epoch)
            base = record["base"]
        return History(limits)
    return History(None)


def last_turn(run: Path) -> Turn:
    """The turn of the newest epoch that was taken in turn; (0, 0) where there is none."""
    for epoch in range(newest_epoch(run), 0, -1):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # of one that had not begun: any bytes
            start, life = json.loads(_path(run, epoch).read_text(encoding="utf-8"))["turn"]
            return int(start), int(life)
    return 0, 0


def _path(run: Path, epoch: int) -> Path:
    return run / FOLDER / f"{epoch:08d}.json"


def _read(run: Path, epoch: int) -> dict[str, Any] | None:
    """An epoch's record once it has begun; None before that, when its taker was killed, or where it is lost."""
    try:
        return read_sealed(_path(run, epoch))
    except (OSError, ValueError):
        return None


def _lost(run: Path, epoch: int) -> UserError:
    return UserError(
        "missing or damaged; without it nobody can tell which commits count, and nothing was touched",
        where=str(_path(run, epoch)),
        fix="Restore it from a copy, or start another run",
    )


class Epoch:
    """The right to write a run folder, until someone takes a newer one.

    Args:
        run: folder of one method's run.
        number: the epoch; 0 stands for no epoch and is never checked.
        turn: of the learner that took it.
    """

    def __init__(self, run: Path, number: int, turn: Turn | None = None) -> None:
        self.run, self.number, self.turn = run, number, turn

    @classmethod
    def take(cls, run: Path, turn: Turn | None = None) -> Epoch:
        """Take the next epoch: from now on every older learner's `check` fails.

        Args:
            run: folder of one method's run.
            turn: the learner's; None for one that nobody started in turn (a notebook).

        Raises:
            Fenced: a learner of a later turn was here.
        """
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        while True:
            number = newest_epoch(run) + 1
            if turn is not None and turn < last_turn(run):
                raise Fenced(str(run), 0, number - 1)
            try:
                with open(_path(run, number), "x", encoding="utf-8") as file:
                    json.dump(_owner(turn), file)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                continue
            fsync_folder(run / FOLDER)
            return cls(run, number, turn)

    def begin(self, base: tuple[int, int] | None) -> None:
        """Note the commit that this epoch goes on from, as (step, epoch); None: from the start.

        Raises:
            Fenced: someone took a newer epoch meanwhile.
        """
        self.check()
        write_sealed(_path(self.run, self.number), {**_owner(self.turn), "base": base})
        self.check()

    def check(self) -> None:
        """Go on only as the newest.

        Raises:
            Fenced: someone took a newer epoch.
        """
        if self.number and (newest := newest_epoch(self.run)) > self.number:
            raise Fenced(str(self.run), self.number, newest)


def _owner(turn: Turn | None) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "time": now, "turn": turn}
