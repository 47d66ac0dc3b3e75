"""A stream that goes on: what arrives is noted in the journal, and closed into chunks that are learned as any others.

Nothing downstream knows of sources. After the journal has closed a chunk, the index has grown by it, and that is all.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamcvit.config import RunConfig
from streamcvit.data.sample import TaskSpec
from streamcvit.data.shards.grow import ENDED, IDENTITY, Rows, has_part, write_part
from streamcvit.data.shards.index import PARTS, StreamIndex
from streamcvit.data.sources import SOURCES, Look
from streamcvit.errors import UserError
from streamcvit.learning.durable import write_json, write_text
from streamcvit.monitoring.arriving import ARRIVALS
from streamcvit.run import journal
from streamcvit.run.arrivals import (
    Arrived,
    Refused,
    Wait,
    check_shard,
    check_tests,
    read_manifest,
    read_shard,
)
from streamcvit.run.journal import Journal

LOOK_SECONDS = 0.5
"""Between two looks at the source."""
TELL_SECONDS = 2.0
"""Between two words to who watches."""
_NUMBER = re.compile(r"(.*?)(\d+)\D*$")


class Following:
    """The arriving of one run's stream, from its journal on.

    Args:
        config: the run; `stream.follow` of it.
        folder: of the run's stream.
        clock: seconds, steady; only a test needs another.

    Attributes:
        ended: whether the journal says that nothing follows.
        chunks: closed so far.
        past, news: events of things that were set aside, in earlier lives and since; whoever tells them takes them.
        changed: whether there is a new word for who watches; whoever passes it on takes it back.

    Raises:
        UserError: there is nothing at the address, the journal is damaged, or a shard that was taken has changed.
    """

    def __init__(self, config: RunConfig, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self.how, self.folder, self.clock = config, config.stream.follow, folder, clock
        self.source = SOURCES[self.how.source](config.stream.data)
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        self.journal = Journal(folder)
        if not len(self.journal):
            self.journal.append(
                journal.BEGIN, source=self.how.source, address=config.stream.data, drawn=secrets.token_hex(8)
            )
        write_text(folder / IDENTITY, self.journal.identity)
        self.tasks: dict[str, TaskSpec] = {}
        self.tests: dict[str, Rows] = {}  # of tasks that are in no part yet
        self.open: deque[tuple[Arrived, float]] = deque()  # taken, in no chunk yet; and when
        self.chunks, self.stop, self.ended = 0, 0, False
        self.known: set[str] = set()  # names
        self.ids: set[str] = set()
        self.bytes: dict[str, str] = {}  # SHA-256 -> name
        self.held: dict[str, tuple[str, int, str]] = {}  # stamp, tasks known then, why
        self.waited: set[str] = set()  # names that were held at any time
        self.highest: dict[str, tuple[int, str]] = {}
        self.aside: Counter[str] = Counter()
        self.taken = self.waiting = 0
        learn = [name for name, method in config.methods.items() if method.adapter != "none"]
        self.done = dict.fromkeys(learn, 0)  # method -> chunks learned
        self.arrived: deque[tuple[int, float]] = deque()  # of chunks that are not learned: number, first arrival
        self.news: list[dict[str, Any]] = []
        self.changed = False
        self._index: StreamIndex | None = None
        self._told: tuple[float, Any] = (-1e9, None)
        self._looked, self._moved = -1e9, clock()
        self._replay()
        self.past, self.news = self.news, []

    # -- what the driver asks --------------------------------------------------------------------------------------

    def first(self, wait: bool = True, say: Callable[[str], None] = lambda _: None) -> StreamIndex:
        """The stream's index once its first chunk is there.

        Args:
            wait: for it; else refuse.
            say: told, once, that it is waited for.

        Raises:
            UserError: it never comes.
        """
        while not self.chunks:
            self.step()
            if self.chunks:
                break
            if self.ended or not wait:
                said = "the stream has ended before a sample of it came" if self.ended else "no whole chunk is there"
                raise UserError(f"{said}{self._why()}", where=self.config.stream.data, fix="Look at what lies there")
            say(f"waiting for the first chunk of {self.config.stream.data}")
            say = lambda _: None  # noqa: E731
            time.sleep(LOOK_SECONDS)
        return self.index()

    def index(self) -> StreamIndex:
        """The index as it is by now."""
        self._index = StreamIndex.open(self.folder) if self._index is None else self._index.grown()
        return self._index

    def learned(self, method: str, chunk: int) -> None:
        """Hear that a method has learned a chunk, and all before it."""
        self.done[method] = max(chunk + 1, self.done.get(method, 0))
        least = min(self.done.values())
        while self.arrived and self.arrived[0][0] < least:
            self.arrived.popleft()
        if self.ended:  # the run may end before there is another look
            self._tell(self.clock())

    @property
    def full(self) -> bool:
        """Whether so much waits to be learned that nothing more is taken: it stays where it lies."""
        return self.chunks - min(self.done.values(), default=self.chunks) >= self.how.ahead

    def step(self) -> None:
        """Look at the source, where it is time, and take what is there."""
        now = self.clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        look = self.source.look(self.known)
        if self.ended:
            for name in look.shards:
                self._set_aside(name, "late", "it came after the end")
        else:
            self._take_in(look)
        self.waiting = 0 if self.ended else sum(name not in self.known for name in (*look.shards, *look.waiting))
        self._tell(now)

    # -- taking ----------------------------------------------------------------------------------------------------

    def _take_in(self, look: Look) -> None:
        self._close_full()  # of what was taken before a kill
        for name, text in look.manifests.items():
            self._try(name, "", self._take_task, text)
        everything = True
        for name in look.shards:
            if self.full:
                everything = False
                break
            self._try(name, look.stamps.get(name, ""), self._take_shard)
        self.held = {name: why for name, why in self.held.items() if why[1] >= 0 or name in look.waiting}
        for name in look.waiting:
            self.held.setdefault(name, ("", -1, "it is not complete: no index, checksum or .done marker beside it"))
        now = self.clock()
        seconds = self.how.seconds_per_chunk
        if self.open and seconds and time.time() - self.open[0][1] >= seconds and not self.full:
            self._close("time")
        if not everything or self.full:
            self._moved = now  # whoever cannot take anything does not wait for anything
        elif look.ended:
            self._end("marker")
        elif self.how.idle and now - self._moved >= self.how.idle:
            self._end("idle")

    def _try(self, name: str, stamp: str, take: Callable[..., None], *more: str) -> None:
        """Take a thing in, unless it waits as it did before."""
        if stamp and self.held.get(name, ("", 0, ""))[:2] == (stamp, len(self.tasks)):
            return
        try:
            take(name, *more)
        except Wait as wait:
            if name not in self.waited:
                self.waited.add(name)
                self.journal.append(journal.HOLD, name=name, detail=str(wait)[:500])
            self.held[name] = (stamp, len(self.tasks), str(wait))
        except Refused as refused:
            self._set_aside(name, refused.reason, str(refused))

    def _take_shard(self, name: str) -> None:
        shard = read_shard(self.source, name, self.folder)
        if other := self.bytes.get(shard.note["sha256"]):
            raise Refused("duplicate", f"it holds the same bytes as {other}")
        number = _NUMBER.match(name)
        if number and name not in self.waited and self.how.out_of_order == "aside":
            highest, of = self.highest.get(number[1], (-1, ""))
            if int(number[2]) < highest:
                raise Refused("order", f"{of} was taken before it came")
        check_shard(shard, self.tasks, self.ids, self.source.stream(), self.config.stream.bad_share)
        at = time.time()
        self.journal.append(journal.TAKE, name=name, time=at, samples=len(shard.first), **shard.note)
        self._taken(shard, at)
        self.ids.update(shard.column("sample_id"))
        self._close_full()

    def _taken(self, shard: Arrived, at: float) -> None:
        self._note_shard(shard.name, shard.note["sha256"])
        self.open.append((shard, at))
        self._moved = self.clock()

    def _note_shard(self, name: str, sha256: str) -> None:
        self.held.pop(name, None)
        self.known.add(name)
        self.bytes[sha256] = name
        self.taken += 1
        if number := _NUMBER.match(name):
            self.highest[number[1]] = max(self.highest.get(number[1], (-1, "")), (int(number[2]), name))

    def _take_task(self, name: str, text: str) -> None:
        spec, test = read_manifest(text)
        if known := self.tasks.get(spec.name):
            if known != spec:
                raise Refused("redefined", f"the task {spec.name!r} is there already, and this says otherwise of it")
            raise Refused("duplicate", f"the task {spec.name!r} is there already")
        shard = read_shard(self.source, test, self.folder)
        check_tests(shard, spec, self.folder)
        line = self.journal.append(journal.TASK, name=name, test=test, task=asdict(spec), **shard.note)
        self._task_taken(line, spec, shard)
        self._moved = self.clock()

    def _task_taken(self, line: dict[str, Any], spec: TaskSpec, shard: Arrived | None) -> None:
        self.held.pop(line["name"], None)
        self.known.add(line["name"])
        self.bytes[line["sha256"]] = line["test"]  # what is asked is not learned
        self.tasks[spec.name] = spec
        if shard is not None:
            self.tests[spec.name] = (shard.table, shard.note)

    def _set_aside(self, name: str, reason: str, detail: str) -> None:
        self._aside_noted(self.journal.append(journal.ASIDE, name=name, reason=reason, detail=detail[:500]))

    def _aside_noted(self, line: dict[str, Any]) -> None:
        self.held.pop(line["name"], None)
        self.known.add(line["name"])
        self.aside[line["reason"]] += 1
        self.news.append({"what": line["name"], "reason": line["reason"], "why": line["detail"]})

    # -- chunks ----------------------------------------------------------------------------------------------------

    def _samples(self) -> int:
        return sum(len(shard.first) for shard, _ in self.open)

    def _close_full(self) -> None:
        while self.how.samples_per_chunk and self._samples() >= self.how.samples_per_chunk:
            self._close("count")

    def _close(self, why: str) -> None:
        """End a chunk: in the journal first, then in the index."""
        count = self._samples()
        if why == "count":
            count = min(count, self.how.samples_per_chunk)
        self.stop += count
        self.journal.append(journal.CLOSE, chunk=self.chunks, stop=self.stop, why=why)
        self._write_chunk(count)

    def _write_chunk(self, count: int) -> None:
        began, rows = self.open[0][1], self._cut(count)
        within = {task for table, _ in rows for task in table["task"].unique().to_pylist()}
        tasks = {name: spec for name, spec in self.tasks.items() if name in within or name in self.tests}
        write_part(self.folder, self.chunks, rows, tasks, self.tests)
        self.tests = {}
        self._chunk_noted(began)

    def _chunk_noted(self, began: float) -> None:
        self.arrived.append((self.chunks, began))
        self.chunks += 1

    def _cut(self, count: int) -> list[Rows]:
        """The first so many open samples, shard by shard."""
        rows: list[Rows] = []
        while count:
            shard, at = self.open.popleft()
            there = len(shard.first)
            if there > count:
                self.open.appendleft((_slice(shard, count, there), at))
                shard = _slice(shard, 0, count)
            rows.append((shard.table, shard.note))
            count -= min(count, there)
        return rows

    def _end(self, why: str) -> None:
        for name, (_, _, detail) in list(self.held.items()):
            reason = "task" if "manifest of the task" in detail else "damaged"
            self._set_aside(name, reason, f"the stream has ended: {detail}")
        if self.open:
            self._close("end")
        self.journal.append(journal.END, why=why)
        self._ended_noted()

    def _ended_noted(self) -> None:
        self.ended = True
        if self.chunks:
            (self.folder / ENDED).touch()

    # -- from the journal ------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Take the state up where the journal leaves it; parts that were not written to the end are written now."""
        written = 0
        while has_part(self.folder, written):
            written += 1
        at = 0  # samples taken before a line
        base = max((line["stop"] for line in self._lines(journal.CLOSE) if line["chunk"] < written), default=0)
        for line in self.journal.lines:
            match line["what"]:
                case journal.TASK:
                    old = self.chunks < written  # a chunk that is there has closed behind it
                    shard = None if old else self._again(line, line["test"])
                    self._task_taken(line, TaskSpec(**line["task"]), shard)
                case journal.HOLD:
                    self.waited.add(line["name"])
                case journal.TAKE:
                    at += line["samples"]
                    if at > base:
                        shard = self._again(line, line["name"])
                        self._taken(_slice(shard, max(0, base - at + line["samples"]), line["samples"]), line["time"])
                        self.ids.update(shard.column("sample_id"))
                    else:
                        self._note_shard(line["name"], line["sha256"])
                        began = line["time"]
                case journal.ASIDE:
                    self._aside_noted(line)
                case journal.CLOSE:
                    count, self.stop = line["stop"] - self.stop, line["stop"]
                    if line["chunk"] < written:
                        self._chunk_noted(began if not self.open else self.open[0][1])
                    else:
                        self._write_chunk(count)
                case journal.END:
                    self._ended_noted()
        if written:
            self.ids.update(self.index().sample_id_of)
        self._moved = self.clock()

    def _lines(self, what: str) -> list[dict[str, Any]]:
        return [line for line in self.journal.lines if line["what"] == what]

    def _again(self, line: dict[str, Any], name: str) -> Arrived:
        """A shard that was taken before, unchanged."""
        try:
            shard = read_shard(self.source, name, self.folder)
            if shard.note["sha256"] == line["sha256"]:
                return shard
            said = "its bytes are others"
        except (Wait, Refused) as fault:
            said = str(fault)
        where = f"{self.config.stream.data}: {name}"
        raise UserError(f"was taken and has changed since: {said}", where=where, fix="Restore it from a copy")

    # -- telling ---------------------------------------------------------------------------------------------------

    def _why(self) -> str:
        told = [f"{name}: {detail}" for name, (_, _, detail) in self.held.items()]
        told += [f"{one['what']}: {one['why']}" for one in self.news]
        return f" ({told[0]}{f'; and {len(told) - 1} more' if len(told) > 1 else ''})" if told else ""

    def _tell(self, now: float) -> None:
        """Leave word of how things stand, for the metrics."""
        oldest = self.arrived[0][1] if self.arrived else (self.open[0][1] if self.open else None)
        word = {
            "taken": self.taken,
            "aside": dict(self.aside),
            "waiting": self.waiting,
            "held": sorted(self.held),
            "full": bool(self.full and not self.ended),
            "open": self._samples(),
            "oldest": oldest,
            "ended": self.ended,
        }
        told, before = self._told
        if word != before and (now - told >= TELL_SECONDS or self.ended):
            self._told = now, word
            write_json(self.folder / ARRIVALS, word)
            self.changed = True


def _slice(shard: Arrived, start: int, stop: int) -> Arrived:
    """Samples [start, stop) of a shard."""
    ends = [*shard.first.tolist(), len(shard.table)]
    table: pa.Table = shard.table.slice(ends[start], ends[stop] - ends[start])
    return replace(shard, table=table)
