"""What who watches a run is told: read once for all, part by part, and never more than the run folder says."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from watched_runs import advance, going_on, write_watched

from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.watch import Follower
from streamcvit.monitoring.watch import follow as following
from streamcvit.monitoring.watch.hub import Hub
from streamcvit.monitoring.watch.told import alerts_of, happenings
from streamcvit.monitoring.watch.view import columns, lag, method_view
from streamcvit.monitoring.watch.word import Word, newest_word
from streamcvit.run.guard import alone
from streamcvit.run.predictions import write_predictions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_watched(tmp_path / "run")


def event(folder: Path, **values) -> None:
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": "2026-01-01T11:00:00+00:00", **values}) + "\n")


def test_what_did_not_change_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(folder)
    first = dict(follower.look())
    monkeypatch.setattr(following.RunRecord, "load", None)
    assert all(part is first[name] for name, part in follower.look().items())


def test_a_new_row_changes_its_method_and_no_other(folder: Path) -> None:
    follower = Follower(folder)
    first = dict(follower.look())
    advance(folder, "lora", 4)
    then = follower.look()
    assert then["m/smolora"] is first["m/smolora"] and then["alerts"] is first["alerts"]
    table = RunRecord.load(folder / "lora").matrix()
    assert [row[3] for row in then["m/lora"]["score"]] == [None if np.isnan(v) else round(v, 1) for v in table[3]]


def test_a_run_made_anew_under_the_same_name_is_read_anew(folder: Path) -> None:
    follower = Follower(folder)
    assert follower.look()["now"]["methods"]["lora"]["position"] == 3 * 64
    for path in (folder / "lora" / "ledger").iterdir():
        path.unlink()
    advance(folder, "lora", 2, per_chunk=32)
    assert follower.look()["now"]["methods"]["lora"]["position"] == 2 * 32
    assert len(follower.look()["m/lora"]["loss"]) == len(RunRecord.load(folder / "lora").ledger.curve(12)[0])


def test_tasks_of_a_boundary_that_is_being_scored_show_one_by_one(folder: Path) -> None:
    follower, method = Follower(folder), folder / "lora"
    event(method, event="chunk", chunk=3, step=32, digest="d", samples=64)
    task = next(
        t for t, seen in zip(RunRecord.load(method).tasks, RunRecord.load(method).seen()[3], strict=True) if seen
    )
    columns = {name: ["x"] * 4 for name in ("sample_id", "prediction", "reference")}
    columns |= {"score": [100.0, 0.0, 100.0, 100.0], "score_strcvit": [None] * 4, "follows": [True] * 4}
    for digest, shown in (("of other weights", None), ("d", 75.0)):
        path = method / "predictions" / "00000032" / f"{task}.parquet"
        write_predictions(path, columns, {"digest": digest, "chunk": 3, "task": task})
        view = follower.look()["m/lora"]
        i = view["tasks"].index(task)
        assert view["score"][i][3] == shown and view["fresh"][i][3] == (shown is not None)
    assert sum(map(sum, view["fresh"])) == 1
    assert follower.look()["now"]["methods"]["lora"]["lag"]["chunks"] == 1


def test_whether_its_process_lives_tells_running_from_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LIVENESS_SECONDS", 0.0)
    follower = Follower(folder)
    assert follower.look()["run"]["state"] == "stopped"
    with going_on(folder):
        assert follower.look()["run"]["state"] == "running"
    said = follower.look()["run"]
    assert said["state"] == "stopped" and "--resume" in said["go_on"]
    for method in ("lora", "smolora"):
        advance(folder, method, 15)
    assert follower.look()["run"]["state"] == "finished"


def test_a_look_at_the_lock_keeps_no_run_from_starting(folder: Path) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            following.holder(folder)

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for one in watchers:
        one.start()
    try:
        for _ in range(20):
            with alone(folder):
                pass
    finally:
        stop.set()
        for one in watchers:
            one.join()


def test_the_learners_word_counts_while_its_run_goes_on_and_no_longer(folder: Path) -> None:
    word = Word(folder)
    word("lora", 200, 1.25, 80.0, 27)
    with going_on(folder):  # an earlier life's word is none of this one's
        (folder / "progress.json").write_text(json.dumps({**newest_word(folder), "time": time.time() - 600}))
        assert Follower(folder).look()["now"]["methods"]["lora"]["position"] == 192
        Word(folder)("lora", 200, 1.25, 80.0, 27)
        follower = Follower(folder)
        now = follower.look()["now"]["methods"]["lora"]
        assert (now["position"], now["loss"], now["rate"], now["step"]) == (200, 1.25, 80.0, 27)
        assert now["tail"] == [[200, 1.25]] and now["lag"]["steps"] == 3
        Word(folder)("lora", 208, 1.5, 80.0, 28)
        assert follower.look()["now"]["methods"]["lora"]["tail"] == [[200, 1.25], [208, 1.5]]
        assert follower.look()["now"]["methods"]["smolora"]["position"] == 192
    assert Follower(folder).look()["now"]["methods"]["lora"]["position"] == 192
    (folder / "progress.json").write_text('{"method": "lo')
    assert newest_word(folder) == {}


def test_words_are_written_now_and_then_and_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    word = Word(tmp_path)
    for position in range(100):
        word("lora", position, None, None, position)
    assert newest_word(tmp_path)["position"] == 0
    word("smolora", 5, None, None, 5)
    assert newest_word(tmp_path)["method"] == "smolora"
    Word(tmp_path / "missing")("lora", 1, None, None, 1)


def test_forgetting_is_the_best_less_the_newest_with_its_interval_worst_first(folder: Path) -> None:
    for method in ("lora", "smolora"):
        advance(folder, method, 9)
        record = RunRecord.load(folder / method)
        rows = method_view(record, {})["lost"]
        lost = record.forgetting()
        for row in (r for r in rows if "lost" in r):
            # The summary's are the same numbers.
            assert row["lost"] == pytest.approx(lost[row["task"]], abs=0.051)
            if row["low"] is not None:
                assert row["low"] <= row["lost"] <= row["high"]
                i, (value, low, high) = row["i"], (record.matrix(column=name) for name in ("score", "low", "high"))
                below, above = value[row["at"], i] - low[row["at"], i], high[row["chunk"], i] - value[row["chunk"], i]
                assert row["low"] == pytest.approx(row["lost"] - np.hypot(below, above), abs=0.11)
                assert row["sure"] == (row["low"] > 0) or abs(row["low"]) < 0.05  # rounded to nothing
        shown = [row["lost"] for row in rows if "lost" in row]
        assert shown == sorted(shown, reverse=True) and len(rows) == len(record.tasks)


def test_of_a_long_stream_the_newest_of_the_left_out_chunks_shows(tmp_path: Path) -> None:
    assert columns(0) == [] and columns(60) == list(range(60))
    long = columns(1000)
    assert len(long) <= 60 and long[-1] == 999
    run = write_watched(tmp_path / "run", ("lora",), 70, chunks=130)
    record = RunRecord.load(run / "lora")
    view = method_view(record, {})
    table = record.matrix()
    for k, chunk in enumerate(view["cols"]):
        before = view["cols"][k - 1] if k else -1
        for i in range(len(record.tasks)):
            known = [v for v in table[before + 1 : chunk + 1, i] if not np.isnan(v)]
            assert view["score"][i][k] == (round(known[-1], 1) if known else None)
    assert len(json.dumps(view)) < 60_000


@pytest.mark.parametrize("done", [0, 1, 15])
def test_every_part_is_json_without_numbers_that_are_none(tmp_path: Path, done: int) -> None:
    run = write_watched(tmp_path / "run", ("lora", "smolora"), done) if done else write_watched(tmp_path / "run", ())
    parts = Follower(run).look()
    json.dumps(parts, allow_nan=False)
    assert {"run", "now", "alerts"} <= parts.keys()


def test_probes_and_drift_are_shown_where_a_run_has_them(folder: Path) -> None:
    advance(folder, "lora", 3)
    event(folder / "lora", event="chunk", chunk=2, step=24, drift={"visual": {"router": 0.25, "expert": None}})
    record = RunRecord.load(folder / "lora")
    task = record.tasks[int(np.flatnonzero(record.seen()[2])[0])]
    probe = {"kind": "live", "family": "strict", "task": task, "chunk": 3, "version": 28, "cursor": 3 * 64 + 32}
    record.probes.append({**probe, "score": 12.0, "low": 8.0, "high": 20.0})
    view = method_view(record, {})
    assert view["probes"][task][-1] == [3.5, 12.0, 8.0, 20.0]
    assert next(row for row in view["lost"] if row["task"] == task)["probe"] == [12.0, 8.0, 20.0]
    assert view["drift"] == {"visual": {"router": [[2, 0.25]]}}
    assert lag(record, 30)["steps"] == 2


def test_events_are_lines_in_which_repeated_ones_stand_together(folder: Path) -> None:
    method = folder / "lora"
    for position in range(3):
        event(method, event="quarantine", chunk=3, position=position, sample_id=f"s{position}", reason="image")
    event(method, event="restart", actor="learner", cause="died", detail="out of memory")
    loss = {"task": "ocr", "points": 12.5, "low": 5.0, "high": 20.0, "best_chunk": 1}
    event(method, event="guard", action="pause", what="paused", chunk=2, **loss)
    event(method, event="guard", action="of another release", task="ocr")
    event(method, event="of another release", what="<b>")
    with open(method / "events.jsonl", "a") as file:
        file.write('{"event": "torn')
    lines = happenings(RunRecord.load(method))
    assert [line["text"] for line in lines] == [
        "learning began",
        lines[1]["text"],
        "sample left out: image, s0 (and others of the chunk)",
        "learner replaced (died): out of memory",
        "guard: paused: ocr has lost 12.5 points (95 % interval 5.0 to 20.0)",
        "guard: action of another release, task ocr",
        "of another release: what <b>",
    ]
    assert lines[1]["text"].startswith("chunks 1 to 3 learned, 192 samples, loss ")
    assert [line["level"] for line in lines] == ["", "", "warn", "warn", "warn", "warn", ""]


def test_alerts_that_fire_come_first_and_one_that_is_over_is_said_so(folder: Path) -> None:
    def line(name: str, status: str, minute: int, method: str = "lora") -> str:
        time = f"2026-01-01T10:{minute:02d}:00+00:00"
        labels = {"run": "run", "method": method}
        said = {"time": time, "alertname": name, "severity": "warning", "status": status, "labels": labels}
        return json.dumps({**said, "summary": f"{name} {minute}"}) + "\n"

    written = line("A", "firing", 1) + line("B", "firing", 2) + line("A", "resolved", 3) + line("A", "firing", 4, "x")
    (folder / "alerts.jsonl").write_text(written + '{"torn')
    found = alerts_of([folder, folder / "lora"])
    assert [(a["name"], a["method"], a["firing"]) for a in found] == [
        ("A", "x", True),
        ("B", "lora", True),
        ("A", "lora", False),
    ]
    assert Follower(folder).look()["alerts"] == found


# -- one reader for all ------------------------------------------------------------------------------------------------


def hub_of_counts(seconds: float = 0.05) -> tuple[Hub, list[int]]:
    """A hub of something that changes with every look, and the looks."""
    looks: list[int] = []

    def look() -> dict:
        looks.append(len(looks))
        return {"run": len(looks), "same": "x"}

    return Hub(look, seconds), looks


def test_twenty_viewers_are_shown_what_one_reader_reads() -> None:
    hub, looks = hub_of_counts()
    told: list[list[str]] = [[] for _ in range(20)]

    def view(mine: list[str]) -> None:
        for text in hub.news():
            mine.append(text)

    viewers = [threading.Thread(target=view, args=(mine,)) for mine in told]
    for one in viewers:
        one.start()
    time.sleep(1.0)
    assert hub.viewers == 20
    hub.close()
    for one in viewers:
        one.join(timeout=5)
    # As often as for one viewer: every 0.05 s, whoever asks.
    assert 5 <= len(looks) <= 1.0 / 0.04 + 5
    assert all(len(mine) >= 5 for mine in told)


def test_nobody_watches_nothing_is_read() -> None:
    hub, looks = hub_of_counts()
    stream = hub.news()
    list(itertools.islice(stream, 3))
    stream.close()
    time.sleep(0.3)
    seen = len(looks)
    time.sleep(0.3)
    assert len(looks) == seen and hub.viewers == 0
    assert hub.state()[0] > 0 and len(looks) <= seen + 1


def test_a_viewer_that_comes_back_is_told_what_changed_and_a_strangers_number_means_nothing() -> None:
    values = {"a": 1, "b": 1}
    hub = Hub(lambda: dict(values), 0.0)
    version, parts = hub.state()
    assert parts == {"a": "1", "b": "1"}
    values["b"] = 2
    time.sleep(0.01)
    assert next(itertools.islice(hub.news(f"{hub.boot}.{version}"), 1, None)).endswith('data: {"b":2}\n\n')
    for other in ("", "x", "00000000.1", f"{hub.boot}.nan", f"{hub.boot}.-1"):
        assert next(itertools.islice(hub.news(other), 1, None)).endswith('data: {"a":1,"b":2}\n\n')
    del values["a"]
    time.sleep(0.01)
    hub.flush(0.0)
    assert hub.state(2)[1] == {"a": "null"}


def test_the_last_state_reaches_every_viewer_before_the_end() -> None:
    hub, looks = hub_of_counts(seconds=30.0)
    told: list[str] = []
    viewer = threading.Thread(target=lambda: told.extend(hub.news()))
    viewer.start()
    end = time.monotonic() + 10
    while not any('"run":1' in text for text in list(told)):
        assert time.monotonic() < end
        time.sleep(0.01)
    hub.flush(5.0)
    assert len(looks) == 2 and '"run":2' in told[-1]
    hub.close()
    viewer.join(timeout=5)


def test_the_last_look_begins_after_one_that_goes_on_has_ended() -> None:
    values, inside, go = {"a": 1}, threading.Event(), threading.Event()

    def look() -> dict:
        found = dict(values)
        inside.set()
        go.wait(10)
        return found

    hub = Hub(look, 30.0)
    earlier = threading.Thread(target=hub.state)
    earlier.start()
    assert inside.wait(10)
    values["a"] = 2
    threading.Timer(0.2, go.set).start()
    hub.flush(5.0)
    earlier.join(timeout=5)
    assert hub.state()[1] == {"a": "2"}


def test_a_look_that_fails_leaves_what_was_read_before(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([{"a": 1}, RuntimeError("a disk")])

    def look() -> dict:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    hub = Hub(look, 0.0)
    assert hub.state()[1] == {"a": "1"}
    time.sleep(0.01)
    assert hub.state()[1] == {"a": "1"} and "cannot be read" in caplog.text
