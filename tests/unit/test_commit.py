"""Commits and ledger: whole or not there, durable, and honest about damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.learning import Ledger, commit, read_ledger
from streamcvit.models.batch import Batch


def fill(folder: Path, text: str = "weights") -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "w").write_text(text)
    (folder / commit.RESUME).mkdir()
    (folder / commit.RESUME / "o").write_text("optimizer")


def test_a_commit_reads_back_with_checksums(tmp_path: Path) -> None:
    folder = commit.write_commit(tmp_path, 7, fill, {"cursor": 56})
    state = commit.read_state(folder)
    assert folder.name == "00000007"
    assert state["cursor"] == 56
    assert set(state["files"]) == {"adapter/w", "resume/o"}


def test_a_commit_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    commit.write_commit(tmp_path, 7, fill, {"cursor": 56})
    commit.write_commit(tmp_path, 7, lambda folder: fill(folder, "other"), {"cursor": 99})
    assert commit.read_state(tmp_path / "00000007")["cursor"] == 56


def test_a_fault_while_writing_leaves_no_commit(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        commit.write_commit(tmp_path, 7, fails, {})
    assert commit.list_commits(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "state"])
def test_a_damaged_newest_commit_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    commit.write_commit(tmp_path, 1, fill, {"cursor": 8})
    newest = commit.write_commit(tmp_path, 2, fill, {"cursor": 16})
    victim = newest / "adapter" / "w"
    if damage == "flip":
        victim.write_text("weighty")
    elif damage == "truncate":
        victim.write_text("")
    elif damage == "remove":
        victim.unlink()
    else:
        (newest / "state.json").write_text("{")
    found = commit.newest_resumable(tmp_path)
    assert found is not None
    folder, state, damaged = found
    assert (folder.name, state["cursor"]) == ("00000001", 8)
    assert len(damaged) == 1
    assert "00000002" in damaged[0]


def test_pruning_keeps_every_adapter_and_the_newest_resumable(tmp_path: Path) -> None:
    for step in range(1, 6):
        commit.write_commit(tmp_path, step, fill, {"cursor": 8 * step})
    commit.prune(tmp_path, keep=2)
    there = {c.name: (c / commit.RESUME).is_dir() for c in commit.list_commits(tmp_path)}
    assert list(there.values()) == [False, False, False, True, True]
    for folder in commit.list_commits(tmp_path):
        assert commit.read_state(folder)["cursor"] == 8 * int(folder.name)


def test_pruning_drops_old_commits_inside_a_chunk_whole(tmp_path: Path) -> None:
    for step in range(1, 9):
        commit.write_commit(tmp_path, step, fill, {"boundary": step % 4 == 0})
        commit.prune(tmp_path, keep=2)
    there = {c.name: (c / commit.RESUME).is_dir() for c in commit.list_commits(tmp_path)}
    assert there == {"00000004": False, "00000007": True, "00000008": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(there)


def batch_of(start: int, n: int) -> Batch:
    samples = tuple(Sample(f"s{start + i}", "task", "q", "i", ("a",), b"") for i in range(n))
    return Batch(start, start + n, 0, tuple(range(start, start + n)), samples, None)


def test_the_ledger_has_one_row_a_sample_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for step in range(1, 4):
        ledger.add(batch_of(4 * step, 4), step, torch.arange(4.0), torch.tensor([True, False, True, False]))
        ledger.flush(step)
    rows = read_ledger(tmp_path / "ledger")
    assert rows["position"].to_pylist() == list(range(4, 16))
    assert rows["correct"].to_pylist()[:4] == [True, False, True, False]


def test_rewinding_drops_rows_after_the_commit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for step in range(1, 4):
        ledger.add(batch_of(4 * step, 4), step, torch.zeros(4), torch.zeros(4, dtype=torch.bool))
        ledger.flush(step)
    ledger.rewind(2)
    assert read_ledger(tmp_path / "ledger")["step"].to_pylist() == [1] * 4 + [2] * 4


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    folder = commit.write_commit(tmp_path, 1, fill, {"cursor": 8})
    json.loads((folder / "state.json").read_text())
    with pytest.raises(UserError, match="damaged commit"):
        commit.read_state(tmp_path)
