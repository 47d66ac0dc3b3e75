"""How ranks find each other, and what the first tells the others to do: a small store on the machine of rank 0.

Rank 0 opens a store and says where it is; the others come, and a wire is made between all of them. From then on rank 0
leads: each step, and whatever else changes what is learned, is a numbered word in the store, which the others take up
one by one. A rank that is lost breaks the wire; whoever notices lets go of it, so that all do, and they meet anew at
another store, the lost rank's successor among them.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from streamcvit.errors import Stopped, UserError
from streamcvit.learning.group import Group
from streamcvit.learning.wires import GroupBroken, reaching, wire

LOOK_SECONDS = 1.0  # between two looks whether what is waited for still comes


@dataclass(frozen=True)
class Meeting:
    """Where a group meets.

    Attributes:
        host, port: of the store.
        number: which meeting of this group it is; none has another's.
    """

    host: str
    port: int
    number: int


class Lead(Group):
    """Rank 0.

    Args:
        ranks: of the group.
        exact, seed: as `Group`.
        host: this machine's address, as the other ranks reach it.
        seconds: that it waits for the result of a rank that is there.
        alive: called while it waits for ranks that are not there yet.
        stopped: whether it is to wait no longer.
        patience: groups that may break in a row before a step is taken.
    """

    def __init__(
        self,
        ranks: int,
        exact: bool = True,
        seed: int = 0,
        *,
        host: str = "127.0.0.1",
        seconds: float = 600,
        alive: Callable[[], None] = lambda: None,
        stopped: Callable[[], bool] = lambda: False,
        patience: int = 5,
    ) -> None:
        super().__init__(0, ranks, exact, seed)
        self.host, self.seconds, self.alive, self.stopped, self.patience = host, seconds, alive, stopped, patience
        self.meeting: Meeting | None = None
        self.fruitless = 0
        self._store: Any = None
        self._number = time.time_ns()  # a successor's meetings are others
        self._words, self._said = 0, deque[tuple[int, int]]()

    def meet(self, device: torch.device) -> None:
        """Have the group whole: open a meeting, and wait until every rank is there.

        Raises:
            GroupBroken: one came, and is gone again.
            Stopped: it is to wait no longer.
        """
        if self.wire is not None:
            return
        self.close()
        with reaching():
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listener = socket.create_server((self.host, 0), family=family)
            port = listener.getsockname()[1]
            # A socket of ours: torch's own would listen on all interfaces.
            self._store = distributed.TCPStore(
                self.host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=self.seconds),
                master_listen_fd=listener.detach(),
                use_libuv=False,
            )
        self._number += 1
        self._words, self._said = 0, deque()
        self.meeting = Meeting(self.host, port, self._number)
        for rank in range(1, self.ranks):
            while not _there(self._store, f"here/{rank}"):
                self.alive()
                if self.stopped():
                    raise Stopped
        with reaching():
            self._store.set("go", b"go")
        self.wire = wire(self._store, 0, self.ranks, device, self.host, self.seconds)

    def tell(self, do: str, **values: Any) -> None:
        """Say what the others are to do next."""
        with reaching():
            self._store.set(f"word/{self._words}", json.dumps({"do": do, **values}))
            # A sum of gradients that came after a word shows that every rank has read it.
            self._said.append((self._words, self.exchanges))
            while self._said and self._said[0][1] < self.exchanges:
                self._store.delete_key(f"word/{self._said.popleft()[0]}")
        self._words += 1

    def answers(self) -> list[Any]:
        """What the others answer to the last word, in the order of ranks; JSON values.

        Raises:
            GroupBroken: a rank is gone, or does not answer.
        """
        found, end = [], time.monotonic() + self.seconds
        for rank in range(1, self.ranks):
            key = f"answer/{self._words - 1}/{rank}"
            while not _there(self._store, key):
                self.alive()
                if time.monotonic() > end:
                    raise GroupBroken(f"rank {rank} does not answer")
            with reaching():
                found.append(json.loads(self._store.get(key)))
                self._store.delete_key(key)
        return found

    def broke(self, error: GroupBroken) -> None:
        """Let go of a broken group.

        Raises:
            UserError: it broke again and again before a step was taken.
        """
        self.fruitless = 0 if self.exchanges else self.fruitless + 1
        self.close()
        if self.fruitless > self.patience:
            raise UserError(
                f"the group of {self.ranks} learners broke {self.fruitless} times before a step was taken, "
                f"the last time: {error}",
                where="cluster.learners",
                fix="See that the ranks' machines reach each other, then continue with --resume",
            )

    def close(self) -> None:
        """Let go of the group."""
        super().close()
        self.meeting, self._store, self.exchanges = None, None, 0


class Member(Group):
    """Any other rank.

    Args:
        rank, ranks, exact, seed: as `Group`.
        where: says where the group meets now; None: nowhere yet.
        host: this machine's address.
        seconds: that it waits for the result of a rank that is there.
        alive: called while it waits.
    """

    def __init__(
        self,
        rank: int,
        ranks: int,
        exact: bool = True,
        seed: int = 0,
        *,
        where: Callable[[], Meeting | None],
        host: str = "127.0.0.1",
        seconds: float = 600,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(rank, ranks, exact, seed)
        self.where, self.host, self.seconds, self.alive = where, host, seconds, alive
        self.meeting: Meeting | None = None
        self._store: Any = None
        self._heard = 0
        self._left = -1

    def meet(self, device: torch.device) -> None:
        """Wait for a meeting that this rank has not left yet, and come to it.

        Raises:
            GroupBroken: it was over before it began.
        """
        while (meeting := self.where()) is None or meeting.number == self._left:
            self.alive()
            time.sleep(LOOK_SECONDS / 5)
        self.meeting, self._heard = meeting, 0
        with reaching():
            self._store = distributed.TCPStore(
                meeting.host,
                meeting.port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=self.seconds),
                use_libuv=False,
            )
            self._store.set(f"here/{self.rank}", b"here")
        self._await("go")
        self.wire = wire(self._store, self.rank, self.ranks, device, self.host, self.seconds)

    def hear(self) -> dict[str, Any]:
        """The next word of rank 0, whenever it comes.

        Raises:
            GroupBroken: rank 0 is gone, or meets elsewhere by now.
        """
        self._await(f"word/{self._heard}")
        with reaching():
            word: dict[str, Any] = json.loads(self._store.get(f"word/{self._heard}"))
        self._heard += 1
        return word

    def answer(self, value: Any) -> None:
        """Answer the word that was heard last."""
        with reaching():
            self._store.set(f"answer/{self._heard - 1}/{self.rank}", json.dumps(value))

    def close(self) -> None:
        """Leave the meeting for good."""
        super().close()
        if self.meeting is not None:
            self._left = self.meeting.number
        self.meeting, self._store = None, None

    def _await(self, key: str) -> None:
        while not _there(self._store, key):
            self.alive()
            if self.where() != self.meeting:
                raise GroupBroken("rank 0 meets elsewhere")


def _there(store: Any, key: str) -> bool:
    """Whether a key is there, now or within `LOOK_SECONDS`.

    Raises:
        GroupBroken: the store is not there.
    """
    began = time.monotonic()
    try:
        store.wait([key], timedelta(seconds=LOOK_SECONDS))
        return True
    except (RuntimeError, OSError) as error:  # too late, or nobody is there to wait for
        if time.monotonic() - began < LOOK_SECONDS / 2:
            raise GroupBroken(" ".join(str(error).split())[:300]) from error
    return False
