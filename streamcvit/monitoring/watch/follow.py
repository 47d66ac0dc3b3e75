"""A run folder that is looked at again and again: of it only what changed is read."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamcvit.errors import UserError
from streamcvit.monitoring.alertlog import ALERTS
from streamcvit.monitoring.guarded import GO_ON
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.runs import find_runs
from streamcvit.monitoring.states import LIVE, LOCK, check_single, holder, run_folder, state_of
from streamcvit.monitoring.times import unix
from streamcvit.monitoring.watch.fresh import Fresh
from streamcvit.monitoring.watch.told import alerts_of
from streamcvit.monitoring.watch.view import lag, method_view, rounded, run_view
from streamcvit.monitoring.watch.word import newest_word

FILES = ("run.json", "config.yaml", "plan.json", "summary.json", "scores.parquet", "events.jsonl", "probes.jsonl")
LIVENESS_SECONDS = 1.5
"""Between two looks at whether a run's process lives; everything else is told by files that change."""
TAIL = 120
"""Words of the learner that are kept, for the curve of what is not in the ledger yet."""

Parts = dict[str, Any]


class _Method:
    """One method's folder, and what was read of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark: tuple[Any, ...] = ()
        self.record: RunRecord | None = None
        self.view: dict[str, Any] = {}
        self._ledger: dict[Path, pa.Table] = {}
        self._fresh = Fresh()

    def changed(self) -> bool:
        """Whether the folder is another than it was, and if so read it again."""
        folders = [self.folder / "ledger", self.folder / "predictions"]
        with contextlib.suppress(OSError):
            folders += sorted(path for path in folders[1].iterdir() if path.is_dir())[-2:]
        mark = tuple(_stamp(path) for path in (*(self.folder / name for name in FILES), *folders))
        if mark == self.mark:
            return False
        before = self.record
        if _stamp(self.folder / "run.json") is None:
            self.record, self.view = None, {}
        else:
            if before is not None and mark[2] != self.mark[2]:  # another plan: another run in a folder of this name
                self._ledger, self._fresh = {}, Fresh()
            self.record = RunRecord.load(self.folder, kept=self._ledger)
            self.view = method_view(self.record, self._fresh.scores(self.record))
        self.mark = mark
        return True


class Follower:
    """What a run folder says, part by part: `run` (which methods there are, how far each is), `now` (what changes from
    second to second), `alerts`, and `m/NAME`, a method.

    Args:
        folder: of a whole run, or of methods' runs that belong to none; it may not exist yet.
        alone: these methods' folders; none: those that lie in the run's folder.
    """

    def __init__(self, folder: Path, alone: Sequence[Path] = ()) -> None:
        self.folder, self._alone = folder, list(alone)
        self._methods: dict[str, _Method] = {}
        self._mark: tuple[Any, ...] = ()
        self._warned: tuple[Any, ...] = ()
        self._held: dict[str, Any] | None = None
        self._looked = 0.0
        self._left: float | None = None
        self._words: dict[str, list[list[float]]] = {}
        self._parts: Parts = {}

    def look(self) -> Parts:
        """Every part; one that did not change is the same object as before."""
        for path in self._alone or self._begun():
            self._methods.setdefault(path.name, _Method(path))
        changed = [name for name, one in self._methods.items() if one.changed()]
        for name in changed:
            if view := self._methods[name].view:
                self._parts[f"m/{name}"] = view
            else:
                self._parts.pop(f"m/{name}", None)
        mark = tuple(_stamp(self.folder / name) for name in (LOCK, GO_ON, "report.html", "config.yaml"))
        held = self._held
        if mark != self._mark or time.monotonic() - self._looked > LIVENESS_SECONDS:
            self._looked, held = time.monotonic(), holder(self.folder)
        if changed or mark != self._mark or held != self._held or "run" not in self._parts:
            self._mark, self._held = mark, held
            self._look_at_run()
        places = (self.folder, *(one.folder for one in self._methods.values()))
        warned = tuple(_stamp(path / ALERTS) for path in places)
        if warned != self._warned or "alerts" not in self._parts:
            self._warned = warned
            self._keep("alerts", alerts_of(places))
        self._keep("now", self._now())
        return self._parts

    def _begun(self) -> list[Path]:
        """Folders of the run's methods that have begun."""
        try:
            found = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
        except OSError:
            return []
        return [self.folder / name for name in found if _stamp(self.folder / name / "run.json") is not None]

    def _look_at_run(self) -> None:
        known = {name: one for name, one in self._methods.items() if one.record is not None}
        order = [name for name in state_of(self.folder, []).order if name in known] or list(known)
        state = state_of(self.folder, [record for name in order if (record := known[name].record)])
        self._left = state.seconds_left
        report = (self.folder / "report.html").is_file()
        self._keep("run", run_view(state, order, {name: known[name].view for name in order}, report))

    def _now(self) -> dict[str, Any]:
        """Where each method is; between two commits from the learner's newest word."""
        run = self._parts["run"]
        live = run["state"] in LIVE
        word = newest_word(self.folder) if live else {}
        if word and word["time"] < (unix((self._held or {}).get("since")) or 0.0):
            word = {}  # of an earlier life of the run
        found: dict[str, Any] = {}
        for name, one in self._methods.items():
            if (record := one.record) is None:
                continue
            events = record.chunk_events()
            position, loss, rate, step = record.position, None, None, None
            if events and rounded(events[-1].get("loss"), 4) is not None:
                loss = rounded(events[-1]["loss"], 4)
            if word.get("method") == name and word["position"] >= position:
                position, step = word["position"], word.get("step")
                loss, rate = rounded(word.get("loss"), 4), rounded(word.get("rate"))
            worst: dict[str, Any] = next((row for row in one.view["lost"] if row.get("lost") is not None), {})
            found[name] = {
                "position": position,
                "loss": loss,
                "rate": rate,
                "step": step if step is not None else (events[-1].get("step") if events else 0),
                "lag": lag(record, step),
                "worst": {"task": worst["task"], "lost": worst["lost"], "sure": worst["sure"]} if worst else None,
                "tail": self._tail(name, record.position, position, loss) if step is not None else [],
            }
        left = self._left
        if left and (rest := sum(max(0, one["total"] - found[one["name"]]["position"]) for one in run["methods"])):
            known = sum(one.record.total_samples - one.record.position for one in self._methods.values() if one.record)
            left *= rest / max(rest, known)  # what was learned since the newest commit is behind the learner too
        return {"methods": found, "left": rounded(left, 0) if live else None}

    def _tail(self, name: str, newest: int, position: int, loss: float | None) -> list[list[float]]:
        """The learner's words since the newest sample in the ledger: place in the stream, loss."""
        kept = self._words.setdefault(name, [])
        if kept and kept[-1][0] > position:
            kept.clear()  # learned again from a commit
        if loss is not None and (not kept or kept[-1][0] != position):
            kept.append([position, loss])
        kept[:] = [one for one in kept if one[0] > newest][-TAIL:]
        return list(kept)

    def _keep(self, name: str, value: Any) -> None:
        if self._parts.get(name) != value:
            self._parts[name] = value


def follower_of(name: str | Path, root: str = "runs") -> tuple[Follower, str]:
    """Follow the run of this name or path; and the method that the path named, or nothing.

    Raises:
        UserError: there is no run, or there are several.
    """
    try:
        folder = run_folder(name, root)
    except UserError:
        if not Path(name).exists():
            raise
        return Follower(Path(name), find_runs(name)), ""
    check_single(folder)
    named = Path(name).name
    inner = folder.resolve() != Path(name).resolve() and (folder / named / "run.json").is_file()
    return Follower(folder), named if inner else ""


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
