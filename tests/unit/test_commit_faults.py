"""A commit is never half, whatever happens at whichever operation of it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulty import FENCED, SIZE, Writer, copy, each_operation, in_child, kill, leftovers, stop

from streamcvit.errors import UserError
from streamcvit.learning import Ledger, commit, read_ledger
from streamcvit.learning.epochs import Fenced


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a thousand fsyncs cost nothing there."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="streamcvit-", dir=place) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def writer(memory: Path) -> Writer:
    torch.set_num_threads(1)
    return Writer(memory)


@pytest.fixture
def run(memory: Path) -> Iterator[Path]:
    """Where a copy of the writer's run folder goes."""
    yield memory / "run"
    shutil.rmtree(memory / "run", ignore_errors=True)


def test_killed_at_any_operation_of_a_commit_the_folder_holds_the_old_or_the_new_one(writer: Writer, run: Path) -> None:
    seen = []

    def work() -> None:
        writer.commit(run, 1)

    copy(writer.before, run)
    for code in each_operation(work, kill):
        assert code == -signal.SIGKILL
        seen.append(writer.check_taken_over(run))
        shutil.rmtree(run)
        copy(writer.before, run)
    assert len(seen) > 25, "a real commit has many operations"
    assert seen == sorted(seen) and set(seen) == {2, 3}


def test_killed_at_any_operation_of_taking_over_the_next_learner_goes_on_from_the_same_commit(
    writer: Writer, run: Path
) -> None:
    count = 0

    def litter() -> None:
        copy(writer.after, run)
        newest = commit.list_commits(run / "commits")[-1]
        (newest / "state.json").unlink()  # damaged: to be set aside
        shutil.copytree(newest, run / "commits" / f".tmp-{9:08d}-1")

    litter()
    for code in each_operation(lambda: commit.take_over(run / "commits"), kill):
        assert code == -signal.SIGKILL
        epoch, found = commit.take_over(run / "commits")
        assert found is not None and found[1]["step"] == 2
        assert writer.check(run) == 2
        assert [name for name in leftovers(run) if ".tmp-" in name] == []
        shutil.rmtree(run)
        litter()
        count += 1
    assert count > 10


def test_a_full_disk_at_any_operation_of_a_commit_leaves_the_old_or_the_new_one(writer: Writer, run: Path) -> None:
    seen = []

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    copy(writer.before, run)
    for code in each_operation(lambda: writer.commit(run, 1), fail):
        assert code in (errno.ENOSPC, 0)  # 0: some calls may fail
        seen.append(writer.check_taken_over(run))
        shutil.rmtree(run)
        copy(writer.before, run)
    assert len(seen) > 25
    assert set(seen) == {2, 3}


def content(run: Path) -> dict[str, object]:
    """What a reader finds: commits that count, and rows of the ledger."""
    states = {path.name: commit.read_state(path) for path in commit.list_commits(run / "commits")}
    return {"states": states, "rows": read_ledger(run / "ledger").to_pylist()}


def test_an_older_learner_stopped_at_any_operation_and_continued_changes_nothing_of_the_newer_ones(
    writer: Writer, run: Path
) -> None:
    newer: list[dict[str, object]] = []

    def take_over_and_commit() -> None:
        epoch, found = commit.take_over(run / "commits")
        assert found is not None
        Ledger(run / "ledger", epoch).rewind(found[1]["step"])
        if found[1]["step"] == 2:
            assert in_child(lambda: writer.commit(run, epoch.number)) == 0
        newer.append(content(run))

    copy(writer.before, run)
    codes = []
    for code in each_operation(lambda: writer.commit(run, 1), stop, take_over_and_commit):
        codes.append(code)
        assert content(run) == newer[-1]
        assert writer.check(run) == 3
        assert read_ledger(run / "ledger")["position"].to_pylist() == list(range(3 * SIZE))
        shutil.rmtree(run)
        copy(writer.before, run)
    assert len(codes) == len(newer) > 25
    assert codes.count(FENCED) > 20 and set(codes) <= {FENCED, 0}  # 0: stopped where nothing was left to write


def damages(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every way to damage each of a commit's files and its part of the ledger: named, and done by the time it is given.

    Of `state.json`, which says what the other files are to be, every eleventh bit is flipped; of the others one.
    """
    part = folder.parents[1] / "ledger" / f"{folder.name}.parquet"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()) + [part]:
        whole = path.read_bytes()
        ways: list[tuple[str, bytes | None]] = [("cut", whole[:-1]), ("empty", b""), ("missing", None)]
        inner = path == folder / "state.json"
        for bit in range(0, 8 * len(whole), 11) if inner else (4 * len(whole),):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            ways.append((f"bit {bit} flipped", bytes(flipped)))
        for how, damaged in ways:
            path.unlink(missing_ok=True)
            if damaged is not None:
                path.write_bytes(damaged)
            yield how, path
            path.write_bytes(whole)


def test_any_damage_to_the_newest_commit_is_named_and_the_one_before_it_used(writer: Writer, run: Path) -> None:
    shutil.copytree(writer.before, run)  # not by links: the damage is to this copy alone
    assert in_child(lambda: writer.commit(run, 1)) == 0
    newest, count = commit.list_commits(run / "commits")[-1], 0
    for how, path in damages(newest):
        assert writer.check(run, damaged=1) == 2, (how, path)
        found = commit.newest_resumable(run / "commits")
        assert found is not None and newest.name in found[2][0]
        count += 1
    assert count > 4 * 6 + 500
    assert writer.check(run) == 3


def test_after_damage_the_chunk_is_committed_again_beside_what_is_kept_aside(writer: Writer, run: Path) -> None:
    shutil.copytree(writer.before, run)
    assert in_child(lambda: writer.commit(run, 1)) == 0
    (commit.list_commits(run / "commits")[-1] / "state.json").write_text("")
    epoch, found = commit.take_over(run / "commits")
    assert found is not None and found[1]["step"] == 2
    Ledger(run / "ledger", epoch).rewind(2)
    assert in_child(lambda: writer.commit(run, epoch.number)) == 0
    assert writer.check(run) == 3
    assert [path.name for path in commit.list_commits(run / "commits")][-1] == "00000003-2"
    assert (run / "commits" / ".aside-00000003-1").is_dir()


def test_a_run_with_no_whole_commit_is_refused_and_not_begun_again(writer: Writer, run: Path) -> None:
    shutil.copytree(writer.before, run)
    for path in commit.list_commits(run / "commits"):
        (path / "state.json").write_text("")
    with pytest.raises(UserError, match="none of 2 commits can be resumed"):
        commit.take_over(run / "commits")
    assert len(commit.list_commits(run / "commits")) == 2


def test_two_learners_that_take_over_at_once_get_different_epochs(tmp_path: Path) -> None:
    (tmp_path / "commits").mkdir()
    first, _ = commit.take_over(tmp_path / "commits")
    second, _ = commit.take_over(tmp_path / "commits")
    assert (first.number, second.number) == (1, 2)
    second.check()
    with pytest.raises(Fenced, match="epoch 2; this one's is 1"):
        first.check()
    with pytest.raises(Fenced):
        first.begin(None)
