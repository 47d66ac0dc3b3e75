"""The monitor answers whoever asks, however long a stream's folder takes to read and however often it changes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from streamcvit.monitoring import store as stores
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.store import RunStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


def chunks(store: RunStore) -> float | None:
    """What `chunks_completed_total` is by now; None before anything was read."""
    found = {sample.name: sample.value for metric in store.collect() for sample in metric.samples}
    return found.get("streamcvit_chunks_completed_total")


def learned(record: RunRecord, number: int) -> RunRecord:
    record.run, record.events = {"method": "lora"}, [{"event": "chunk", "chunk": n} for n in range(number)]
    return record


def test_a_folder_that_changes_faster_than_it_is_read_keeps_nobody_waiting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = RunStore([folder]), []

    def load(path: Path, rows: object) -> RunRecord:
        read.append(path)
        store.changed(path)
        return learned(RunRecord(path), len(read))

    monkeypatch.setattr(stores.RunRecord, "load", load)
    assert [chunks(store) for _ in range(3)] == [1, 2, 3]


def test_who_asks_while_a_folder_is_read_gets_what_was_read_before_and_the_new_next_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, go, number = RunStore([folder]), threading.Event(), 1

    def load(path: Path, rows: object) -> RunRecord:
        if number > 1:
            go.wait(60)
        return learned(RunRecord(path), number)

    monkeypatch.setattr(stores.RunRecord, "load", load)
    assert chunks(store) == 1
    monkeypatch.setattr(stores, "READ_SECONDS", 0.05)
    number = 2
    store.changed(folder)
    assert [chunks(store) for _ in range(2)] == [1, 1]
    go.set()
    until = time.monotonic() + 30
    while chunks(store) == 1 and time.monotonic() < until:
        pass
    assert chunks(store) == 2


def test_a_folder_that_takes_long_to_read_is_read_a_tenth_of_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read, clock = RunStore([folder]), [], [100.0]

    def load(path: Path, rows: object) -> RunRecord:
        read.append(path)
        clock[0] += 5
        return RunRecord(path)

    monkeypatch.setattr(stores.RunRecord, "load", load)
    monkeypatch.setattr(stores.time, "monotonic", lambda: clock[0])
    for seconds, times in ((0, 1), (44, 1), (2, 2), (1, 2)):
        clock[0] += seconds
        store.changed(folder)
        list(store.collect())
        assert len(read) == times


def test_a_folder_that_cannot_be_read_keeps_the_others_from_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "run.json").write_text("{}")
    store = RunStore([bad, folder])

    def load(path: Path, rows: object) -> RunRecord:
        if path == bad:
            raise ZeroDivisionError
        return learned(RunRecord(path), 7)

    monkeypatch.setattr(stores.RunRecord, "load", load)
    assert [chunks(store) for _ in range(2)] == [7, 7]
