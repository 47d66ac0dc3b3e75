"""The alerts of a run in its folder: written without a webhook, once each, whoever is killed and starts again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from streamcvit.errors import Stopped, UserError
from streamcvit.monitoring import notify
from streamcvit.monitoring.alertlog import ALERTS, FIRING, RESOLVED, AlertLog, read_alerts
from streamcvit.monitoring.alerts import RUN_STOPPED, Alert, Reading, Watch
from streamcvit.monitoring.notify import Teller, told_of_its_end

LORA = {"run": "r", "method": "lora"}
FORGOTTEN = Alert("StreamcvitTaskForgotten", "warning", {**LORA, "task": "digit"}, "r/lora has forgotten 30 points")


class Values:
    """What a store collects: the forgetting of each task of r/lora."""

    def __init__(self, **points: float) -> None:
        self.points = points

    def collect(self) -> Iterator[Metric]:
        for name, less in (("task_forgetting_points", 0.0), ("task_forgetting_low_points", 5.0)):
            family = GaugeMetricFamily(f"streamcvit_{name}", "x", labels=[*LORA, "task"])
            for task, value in self.points.items():
                family.add_metric([*LORA.values(), task], value - less)
            yield family


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LOOK_SECONDS", 0.02)


def statuses(folder: Path) -> list[tuple[str, str]]:
    return [(row["labels"].get("task", ""), row["status"]) for row in read_alerts(folder)]


def test_what_begins_to_fire_and_what_ends_is_written_without_a_webhook(tmp_path: Path) -> None:
    values = Values(digit=30.0, ocr=0.0)
    teller = Teller(values, tmp_path)
    until(lambda: statuses(tmp_path) == [("digit", FIRING)])
    values.points = {"digit": 2.0, "ocr": 0.0}
    until(lambda: statuses(tmp_path) == [("digit", FIRING), ("digit", RESOLVED)])
    teller.close()
    first = json.loads((tmp_path / ALERTS).read_text().splitlines()[0])
    assert list(first) == ["time", "alertname", "severity", "status", "labels", "summary"]
    assert first["labels"] == {**LORA, "task": "digit"} and first["alertname"] == "StreamcvitTaskForgotten"
    assert first["summary"] == "r/lora has forgotten 30 points of digit" and first["time"].endswith("+00:00")


def test_a_watcher_that_starts_again_tells_nothing_twice_and_ends_what_its_forerunner_told(tmp_path: Path) -> None:
    Teller(Values(digit=30.0), tmp_path).close()
    Teller(Values(), tmp_path).close()  # it has not read the run yet: nothing is over
    values = Values(digit=30.0)
    teller = Teller(values, tmp_path)
    time.sleep(0.2)
    assert statuses(tmp_path) == [("digit", FIRING)]
    values.points = {"digit": 0.0}
    until(lambda: len(statuses(tmp_path)) == 2)
    teller.close()
    assert statuses(tmp_path) == [("digit", FIRING), ("digit", RESOLVED)]


def test_a_rate_that_an_earlier_watch_told_is_not_over_before_there_is_a_past_to_tell_it_from() -> None:
    told = Alert("StreamcvitQuarantine", "warning", LORA, "x")
    watch = Watch(before=[told])
    key = tuple(sorted({**LORA, "reason": "image"}.items()))
    for minute, over in ((0, []), (30, []), (59, []), (60, [told]), (61, [])):
        watch.look(Reading(60.0 * minute, {"samples_quarantined_total": {key: 4.0}}))
        assert watch.ended == over


def test_a_line_cut_short_by_a_kill_costs_that_line_alone(tmp_path: Path) -> None:
    kept = AlertLog(tmp_path)
    kept.write(FORGOTTEN, FIRING, 0.0)
    with open(tmp_path / ALERTS, "a") as file:
        file.write('{"time": "2026-01-01T')
    assert kept.firing() == [FORGOTTEN]
    kept.write(FORGOTTEN, RESOLVED, 1.0)
    assert statuses(tmp_path) == [("digit", FIRING), ("digit", RESOLVED)] and kept.firing() == []


def test_a_folder_that_takes_nothing_or_a_look_that_fails_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Teller(Values(digit=30.0), tmp_path / "gone").close()
    assert "alerts.jsonl cannot be written" in caplog.text
    values = Values(digit=30.0)
    whole, values.points = values.points, None  # type: ignore[assignment]
    teller = Teller(values, tmp_path)
    until(lambda: "the alerts cannot be told" in caplog.text)
    values.points = whole
    until(lambda: statuses(tmp_path) == [("digit", FIRING)])
    teller.close()


def test_a_run_that_ended_before_its_end_is_noted_until_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(UserError), told_of_its_end("", "mine", tmp_path):
        raise UserError("the disk is full")
    with pytest.raises(Stopped), told_of_its_end("", "mine", tmp_path):
        raise Stopped(2)  # its person stopped it
    rows = [(row["alertname"], row["status"], row["summary"]) for row in read_alerts(tmp_path)]
    said = "mine is gone before its end: the disk is full."
    assert rows == [(RUN_STOPPED, FIRING, said), (RUN_STOPPED, RESOLVED, said)]
