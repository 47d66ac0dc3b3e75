"""Commits and ledger: whole or not there, durable, and honest about damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.learning import Ledger, commit, read_ledger
from streamcvit.learning.epochs import Epoch
from streamcvit.learning.ledger import check_coverage, check_parts
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


def flipped(whole: bytes, stride: int = 1) -> Iterator[bytes]:
    """The bytes with one bit turned over: each bit, or every `stride`-th."""
    for bit in range(0, 8 * len(whole), stride):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def test_no_bit_of_state_json_can_flip_and_be_read_as_another_state(tmp_path: Path) -> None:
    info = {"loss": 1.25, "correct": 0.5, "tiny": 1e-7, "name": "ä", "expert_share": {"bank": [0.25, 0.75]}}
    folder = commit.write_commit(tmp_path, 7, fill, {"cursor": 32, "chunk": 1, "boundary": False, "info": info})
    state, found, same = commit.read_note(folder), 0, 0
    for damaged in flipped((folder / "state.json").read_bytes(), stride=3):
        (folder / "state.json").write_bytes(damaged)
        try:
            assert commit.read_note(folder) == state  # 1e-07 is 1E-07
            same += 1
        except UserError:
            found += 1
    assert found > 1000 and same < 5


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
    samples = tuple(Sample(f"s{start + i}", "task", "q", "i", ("a",)) for i in range(n))
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


def learned(run: Path, lives: int, steps: int) -> Path:
    """A run folder that several learners wrote one after another, each so many steps of 4 samples."""
    step = 0
    for _ in range(lives):
        epoch, _ = commit.take_over(run / "commits")
        ledger = Ledger(run / "ledger", epoch)
        ledger.rewind(step)
        for _ in range(steps):
            ledger.add(batch_of(4 * step, 4), step + 1, torch.arange(4.0), torch.tensor([True, False, True, False]))
            step += 1
            state = {"cursor": 4 * step, "ledger": ledger.flush(step)}
            commit.write_commit(run / "commits", step, fill, state, epoch)
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_part_of_the_ledger_damages_the_commits_that_vouch_for_it(tmp_path: Path, damage: str) -> None:
    run = learned(tmp_path, lives=2, steps=2)
    part = run / "ledger" / "00000003-2.parquet"
    whole = part.read_bytes()
    part.unlink()
    if damage != "missing":
        part.write_bytes({"flipped": next(flipped(whole[::-1]))[::-1], "cut": whole[:-20], "empty": b""}[damage])
    epoch, found = commit.take_over(run / "commits")
    assert found is not None
    assert found[0].name == "00000002-1"
    assert ["00000003-2.parquet: damaged" in what for what in found[2]] == [True, True]
    Ledger(run / "ledger", epoch).rewind(2)
    assert read_ledger(run / "ledger")["position"].to_pylist() == list(range(8))
    assert (run / "ledger" / ".aside-00000004-2.parquet").exists()


def test_no_bit_of_a_ledger_part_can_flip_unnoticed(tmp_path: Path) -> None:
    folder = learned(tmp_path, lives=1, steps=2) / "ledger"
    state = commit.read_note(tmp_path / "commits" / "00000002-1")
    for part in folder.iterdir():
        whole = part.read_bytes()
        for damaged in flipped(whole, stride=61):
            part.write_bytes(damaged)
            with pytest.raises(UserError, match=f"{part.name}: damaged"):
                check_parts(folder, 2, state["ledger"])
        part.write_bytes(whole)
    check_parts(folder, 2, state["ledger"])


def test_a_part_that_no_commit_vouches_for_is_named(tmp_path: Path) -> None:
    run = learned(tmp_path, lives=1, steps=3)
    shutil.copy(run / "ledger" / "00000003-1.parquet", run / "ledger" / "00000000-1.parquet")
    with pytest.raises(UserError, match=r"none of 3 .*00000000-1.parquet: damaged \(no commit vouches for it\)"):
        commit.newest_resumable(run / "commits")


def test_a_damaged_part_is_said_by_name_when_the_ledger_is_read(tmp_path: Path) -> None:
    run = learned(tmp_path, lives=1, steps=2)
    part = run / "ledger" / "00000001-1.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match="00000001-1.parquet: damaged"):
        read_ledger(run / "ledger")


def test_a_position_that_was_not_learned_or_learned_twice_is_named(tmp_path: Path) -> None:
    folder = learned(tmp_path, lives=1, steps=3) / "ledger"
    check_coverage(folder, 12, ())
    check_coverage(folder, 14, (12, 13))
    with pytest.raises(UserError, match="lacks 2 positions of the stream's 14, the first is 12"):
        check_coverage(folder, 14, ())
    with pytest.raises(UserError, match="holds too often 1 positions of the stream's 11, the first is 11"):
        check_coverage(folder, 11, ())
    shutil.copy(folder / "00000001-1.parquet", folder / "00000004-1.parquet")
    with pytest.raises(UserError, match="holds too often 4 positions of the stream's 12, the first is 0"):
        check_coverage(folder, 12, ())


@pytest.mark.parametrize("damage", ["flipped", "empty", "missing"])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_record_of_an_epoch_is_named_and_nothing_is_touched(tmp_path: Path, lost: int, damage: str) -> None:
    run = learned(tmp_path, lives=3, steps=2)
    path = run / "epochs" / f"{lost:08d}.json"
    whole = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text(whole.replace('"base": [\n  2', '"base": [\n  3') if damage == "flipped" and lost == 2 else "")
    before = content(run)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{path.name}: missing or damaged.*nothing was touched"):
            commit.take_over(run / "commits")
        with pytest.raises(UserError, match=path.name):
            commit.newest_resumable(run / "commits")
        with pytest.raises(UserError, match=path.name):
            read_ledger(run / "ledger")
    assert content(run) == before
    path.write_text(whole)
    _, found = commit.take_over(run / "commits")
    assert found is not None and found[0].name == "00000006-3"


def test_an_epoch_whose_taker_was_killed_before_it_noted_its_base_is_passed_over(tmp_path: Path) -> None:
    run = learned(tmp_path, lives=2, steps=2)
    Epoch.take(run)
    (run / "epochs" / "00000004.json").touch()  # killed before its first byte
    assert len(read_ledger(run / "ledger")) == 16
    epoch, found = commit.take_over(run / "commits")
    assert found is not None and (found[0].name, epoch.number) == ("00000004-2", 5)


def test_a_learner_whose_own_record_is_lost_hides_none_of_its_commits(tmp_path: Path) -> None:
    run = learned(tmp_path, lives=2, steps=2)
    epoch, _ = commit.take_over(run / "commits")
    commit.write_commit(run / "commits", 5, fill, {}, epoch)
    (run / "epochs" / "00000003.json").unlink()
    with pytest.raises(UserError, match=r"00000003\.json: missing or damaged"):
        commit.prune(run / "commits", 2, epoch)
    assert (run / "commits" / "00000005-3").is_dir()


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    folder = commit.write_commit(tmp_path, 1, fill, {"cursor": 8})
    json.loads((folder / "state.json").read_text())
    with pytest.raises(UserError, match="damaged commit"):
        commit.read_state(tmp_path)
