"""A real learner's commit, to be killed or failed at any file-system operation.

A warmed process is forked for every fault: loading a model again would take seconds each time.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamcvit.adapters.build import attach
from streamcvit.adapters.targets import target_modules
from streamcvit.embedded import tasks as embedded
from streamcvit.learning import STRATEGIES, Ledger, OnlineLearner, commit, read_ledger
from streamcvit.learning.epochs import Epoch, Fenced
from streamcvit.models.base import load_base
from streamcvit.models.batch import Batch

SIZE = 4
NO_FAULT, FENCED = 99, 98
# What Python says of itself before it changes a folder; of an open it says with which flags. Of fsync it says nothing.
CHANGES = frozenset(("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"))


class Writer:
    """A learner with two commits behind it, about to write its third.

    Args:
        root: an empty folder; `before` and `after` are made in it: run folders that hold two and three commits.
    """

    def __init__(self, root: Path) -> None:
        base = load_base("embedded", device="cpu")
        names = target_modules(base.model)
        model = attach(base.model, "lora", names, seed=3, options={"r": 1})
        self.learner = OnlineLearner(base, model, STRATEGIES["replay"](3, memory=8), seed=3)
        samples = embedded.train_samples("colour", 3 * SIZE, seed=5)
        self.before, self.after = root / "before", root / "after"
        epoch, _ = commit.take_over(self.before / "commits")
        self.ledger = Ledger(self.before / "ledger", epoch)
        for start in range(0, 3 * SIZE, SIZE):
            chosen = samples[start : start + SIZE]
            batch = Batch(
                start, start + SIZE, 0, tuple(range(start, start + SIZE)), tuple(chosen), base.collator.train(chosen)
            )
            report = self.learner.learn(batch)
            assert report is not None
            self.ledger.add(batch, report.step, report.loss, report.correct)
            if start < 2 * SIZE:
                self.commit(self.before, 1)
        copy(self.before, self.after)
        assert in_child(lambda: self.commit(self.after, 1)) == 0
        commits = commit.list_commits(self.after / "commits")
        self.files = [commit.read_state(path)["files"] for path in commits]

    def commit(self, run: Path, epoch: int) -> None:
        """What the learner of a run does: commit with the ledger's flush, then prune."""
        self.ledger.epoch, self.ledger.folder = Epoch(run, epoch), run / "ledger"
        self.learner.commit(
            run / "commits",
            before=lambda: self.ledger.flush(self.learner.step),
            epoch=self.ledger.epoch,
            boundary=True,
        )
        commit.prune(run / "commits", 2, self.ledger.epoch)

    def check(self, run: Path, *, damaged: int = 0) -> int:
        """A run folder holds whole commits, the newest equal to the bit to what it was to be; how many there are."""
        found = commit.newest_resumable(run / "commits")
        assert found is not None
        assert len(found[2]) == damaged, found[2]
        there = commit.list_commits(run / "commits")
        for path in there[: len(there) - damaged]:
            commit.read_state(path)  # older ones are whole too, also in the midst of being pruned
        number = found[1]["step"]
        assert found[1]["files"] == self.files[number - 1]
        return number

    def check_taken_over(self, run: Path) -> int:
        """The same for the next learner, which finds exactly the ledger's rows of its commit, and no leftovers."""
        number = self.check(run)
        epoch, found = commit.take_over(run / "commits")
        assert found is not None and found[1]["step"] == number
        Ledger(run / "ledger", epoch).rewind(number)
        resumable = [path for path in commit.list_commits(run / "commits") if (path / commit.RESUME).is_dir()]
        assert len(resumable) >= 2
        commit.prune(run / "commits", 2, epoch)
        assert read_ledger(run / "ledger")["position"].to_pylist() == list(range(number * SIZE))
        assert leftovers(run) == []
        return number


def leftovers(run: Path) -> list[str]:
    """Hidden files and folders, but for the ledger's parts that are kept aside."""
    found = [str(path.relative_to(run)) for path in run.rglob(".*")]
    return [name for name in found if not name.startswith("ledger/.aside-")]


def copy(source: Path, target: Path) -> Path:
    """A copy of a run folder by hard links: what is committed is never written to again."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def in_child(work: Callable[[], Any]) -> int:
    """Do something in a forked process; its exit code (1: an exception), or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def fork(work: Callable[[], Any]) -> int:
    """Begin something in a forked process; its id."""
    drawn, child = random.getstate(), os.fork()
    if child == 0:
        code = 1
        try:
            random.setstate(drawn)  # Python seeds a forked process anew
            work()
            code = 0
        except OSError as error:
            code = error.errno or 1
        except Fenced:
            code = FENCED
        finally:
            os._exit(code)
    return child


def _changes(event: str, args: tuple) -> bool:
    if event == "open":
        return bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in CHANGES


def kill() -> None:
    """The end that leaves no time for anything."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Stand still until someone sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _with_fault(work: Callable[[], Any], act: Callable[[], None], left: int) -> None:
    """Only for a process that ends with it: what it puts into Python stays there."""

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            act()

    real = os.fsync
    os.fsync = lambda *args: (count(), real(*args))[1]
    sys.addaudithook(lambda event, args: count() if _changes(event, args) else None)
    work()
    if left > 0:
        os._exit(NO_FAULT)


def each_operation(
    work: Callable[[], Any], act: Callable[[], None], meanwhile: Callable[[], Any] = lambda: None
) -> Iterator[int]:
    """Do something again and again in a new process, with a fault right before its first, second ... last operation
    that changes the file system (a fault before one that reads is a fault before the next that changes).

    Args:
        work: what to do.
        act: the fault.
        meanwhile: done while the process stands still, where the fault is `stop`.

    Yields:
        The process's exit code, for each fault.
    """
    for number in range(1, 10_000):
        child = fork(lambda n=number: _with_fault(work, act, n))  # type: ignore[misc]
        status = os.waitpid(child, os.WUNTRACED)[1]
        if os.WIFSTOPPED(status):
            meanwhile()
            os.kill(child, signal.SIGCONT)
            status = os.waitpid(child, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        if code == NO_FAULT:
            return
        yield code
