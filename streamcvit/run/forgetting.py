"""What a run does when forgetting is confirmed: it pauses, goes back, or rehearses.

A boundary is judged when all of it is scored, and before the next chunk begins. What the next chunk is learned under
(an `Order`) is a function of the scores so far and of the order before, which the commits hold: a run that was killed,
or that Ray's actors learn, decides the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.evaluation.lost import Loss, loss_of
from streamcvit.guarding import GuardConfig
from streamcvit.learning.durable import write_json
from streamcvit.monitoring.guarded import BACK, GO_ON, LOST, LOWERED, PAUSED, RAISED, RECOVERED, RESUMED, told_of
from streamcvit.monitoring.terminal import LiveView
from streamcvit.run.folder import RunFolder, now
from streamcvit.run.guard import Stop
from streamcvit.run.messages import ChunkReport, Order
from streamcvit.run.scores import ZERO

NEAR = 0.5
"""Of `guard.points`: a task that stands no lower below its best has recovered."""


@dataclass(frozen=True)
class Boundary:
    """The end of a learned chunk.

    Attributes:
        version, digest: of its weights.
    """

    version: int
    digest: str


def line_of(chunk: int, orders: Mapping[int, Order]) -> list[int]:
    """The chunks before `chunk` that its weights come from, in order: those that were undone are not among them."""
    line: list[int] = []
    while chunk > 0:
        back = orders[chunk].boundary if chunk in orders else None
        chunk = chunk - 1 if back is None else back
        line.append(chunk)
    return line[::-1]


def losses(folder: RunFolder, chunk: int, line: Sequence[int], held: Collection[str] = ()) -> dict[str, Loss]:
    """What tasks lost at a boundary, `best` being the chunk of the best one.

    Of tasks that are held, and of those that stand more than `guard.points` below their best. What was undone is no
    loss: the best is looked for among the boundaries that the weights come from.

    Args:
        folder: of the method.
        chunk: whose end it is.
        line: the chunks that its weights come from (`line_of`).
        held: tasks that are looked at in any case.
    """
    config, found = folder.config, {}
    seen = np.cumsum(folder.counts[:chunk], axis=0) > 0  # [chunk, tasks]
    for number, task in enumerate(folder.tasks):
        points = folder.scores.points(task, chunk)
        there = ~np.isnan(points).all(axis=1)
        rows = [one for one in line if seen[one, number] and there[one]]
        if not rows or not there[chunk]:
            continue
        below = np.nanmean(points[rows], axis=1).max() - np.nanmean(points[chunk])
        if below > config.guard.points or task in held:
            loss = loss_of(points[[*rows, chunk]], config.evaluation.draws, (config.seed, number))
            found[task] = loss._replace(best=rows[loss.best])
    return found


def decide(
    guard: GuardConfig, found: Mapping[str, Loss], before: Order, ends: Mapping[int, Boundary], last: bool
) -> tuple[Order, list[dict[str, Any]]]:
    """What the next chunk is learned under, and what there is to tell of it.

    A task whose loss was acted on is held until it has recovered: the same loss is not acted on twice, whatever the
    action did for it.

    Args:
        guard: the settings.
        found: what tasks lost (`losses`).
        before: the order that the chunk was learned under.
        ends: the boundaries so far, by chunk.
        last: whether no chunk follows.
    """
    told = []
    back = [task for task in before.held if task in found and found[task].points <= NEAR * guard.points]
    lost = [
        task for task, loss in found.items() if task not in before.held and loss.decided and loss.points > guard.points
    ]
    told += [_event(RECOVERED, task, found[task]) for task in back]
    told += [_event(LOST, task, found[task]) for task in lost]
    if last:
        return Order(), told
    order = Order(tuple(sorted(({*before.held} - {*back}) | {*lost})))
    worst = max(lost, key=lambda task: found[task].points, default="")
    if worst and guard.action == "pause":
        told.append(_event(PAUSED, worst, found[worst]))
    if worst and guard.action == "rollback":
        best = found[worst].best
        order = Order(order.held, 0.0, ends[best].version, ends[best].digest, best)
        versions = {"to_version": ends[best].version, "version": ends[max(ends)].version + 1}
        told.append(_event(BACK, worst, found[worst]) | versions | {"digest": ends[best].digest})
    if guard.action == "replay":
        order = Order(order.held, guard.share if order.held else 0.0)
        if order.share != before.share:
            what = RAISED if order.share else LOWERED
            told.append({"what": what, "share": order.share, "tasks": list(order.held)})
    return order, told


def _event(what: str, task: str, loss: Loss) -> dict[str, Any]:
    ends = {"points": round(loss.points, 2), "low": round(loss.low, 2), "high": round(loss.high, 2)}
    return {"what": what, "task": task, **ends, "best_chunk": loss.best}


class Guard:
    """The driver's part: judges boundaries, holds chunks back until their order is known, and tells what was done.

    Args:
        config: the run.
        folders: its methods' folders.
        view: what a person sees meanwhile.
        stop: the signals that come, the word to go on among them.
    """

    def __init__(self, config: RunConfig, folders: Mapping[str, RunFolder], view: LiveView, stop: Stop) -> None:
        self.config, self.view, self.stop, self.on = config, view, stop, config.guard.on
        self.mark = config.folder() / GO_ON
        self.orders: dict[str, dict[int, Order]] = {name: {} for name in folders}
        self.ends: dict[str, dict[int, Boundary]] = {name: {} for name in folders}
        self.judged: set[tuple[str, int]] = set()
        self.paused: dict[tuple[str, int], RunFolder] = {}
        for folder in folders.values() if config.guard.action != "pause" else ():
            for chunk in _paused(folder):
                self._tell(folder, chunk, {"what": RESUMED, "why": f"guard.action is {config.guard.action}"})

    @property
    def standing(self) -> bool:
        """Whether the run stands still until somebody lets it go on."""
        return bool(self.paused)

    def given(self, method: str) -> tuple[dict[int, Order], ...]:
        """What a learner is given with a chunk of the method; nothing where there is no guard."""
        return (dict(self.orders[method]),) if self.on else ()

    def learned(self, folder: RunFolder, report: ChunkReport) -> None:
        """A chunk was learned, in this life or an earlier one."""
        if self.on:
            self.ends[folder.method][report.chunk] = Boundary(report.version, report.digest)
            self._note(folder.method, report.chunk, Order.from_json(report.info.get("guard")))

    def scored(self, folder: RunFolder, chunk: int) -> None:
        """All of a boundary is scored: judge it, unless what follows was learned already."""
        method, ends = folder.method, self.ends[folder.method]
        if not self.on or chunk == ZERO:
            return
        self.judged.add((method, chunk))
        if chunk + 1 in ends:
            return
        before, last = self.orders[method].get(chunk, Order()), chunk == folder.n_chunks - 1 and not folder.goes_on
        found = losses(folder, chunk, line_of(chunk, self.orders[method]), before.held)
        order, told = decide(self.config.guard, found, before, ends, last)
        self._note(method, chunk + 1, order)
        known = _paused(folder)
        for event in told:
            if event["what"] == PAUSED:
                if chunk in _resumed(folder):
                    continue
                if chunk not in known:
                    self._forget()  # a word that was meant for another pause
                self.paused[method, chunk] = folder
            self._tell(folder, chunk, event)
        if chunk in known and (method, chunk) not in self.paused:
            self._tell(folder, chunk, {"what": RESUMED, "why": "the guard's settings changed"})

    def may_learn(self, method: str, chunk: int) -> bool:
        """Whether a chunk's order is known, and nobody has to let the run go on first."""
        if not self.on or chunk == 0:
            return True
        if (method, chunk - 1) in self.paused and not self._goes_on(method, chunk - 1):
            return False
        return (method, chunk - 1) in self.judged

    def _goes_on(self, method: str, chunk: int) -> bool:
        if not self.stop.let_go and not self.mark.exists():
            return False
        self._tell(self.paused.pop((method, chunk)), chunk, {"what": RESUMED})
        self._forget()
        self.view.notice("")
        return True

    def _forget(self) -> None:
        self.stop.let_go = False
        self.mark.unlink(missing_ok=True)

    def _note(self, method: str, chunk: int, order: Order) -> None:
        self.orders[method].pop(chunk, None)
        if order:
            self.orders[method][chunk] = order

    def _tell(self, folder: RunFolder, chunk: int, event: dict[str, Any]) -> None:
        folder.event("guard", action=self.config.guard.action, chunk=chunk, **event)
        said = f"{folder.method}: {told_of({**event, 'chunk': chunk})}"
        if event["what"] == PAUSED:
            said += f"; it goes on with: streamcvit resume {self.config.folder()}"
            self.view.notice(said)
        self.view.message(said)


def _paused(folder: RunFolder) -> list[int]:
    """Chunks after which a method paused and did not go on."""
    gone_on = _resumed(folder)
    there = [event.get("chunk") for event in folder.guarded if event.get("what") == PAUSED]
    return [chunk for chunk in there if isinstance(chunk, int) and chunk not in gone_on]


def _resumed(folder: RunFolder) -> set[Any]:
    """Chunks after which it went on."""
    return {event.get("chunk") for event in folder.guarded if event.get("what") == RESUMED}


def let_go_on(folder: Path) -> None:
    """Leave word in a run's folder that a paused run may go on; it takes the word away."""
    try:
        write_json(folder / GO_ON, {"time": now()})
    except OSError as fault:
        fix = "Look at the folder's rights"
        raise UserError(f"nothing can be written there ({fault.strerror})", where=str(folder), fix=fix) from None
