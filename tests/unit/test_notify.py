"""Alerts without a Prometheus: the same ones as its rules give, posted however slow or broken their receiver is."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamcvit.errors import Stopped, UserError
from streamcvit.monitoring import alerts
from streamcvit.monitoring.alerts import RULES, RUN_STOPPED, Alert, Reading, Watch
from streamcvit.monitoring.definitions import PREFIX
from streamcvit.monitoring.notify import Notifier, told_of_its_end

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
CASES = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
MINUTE = 60


def expanded(values: str) -> list[float | None]:
    """promtool's notation: `a`, `_`, `axN`, `a+bxN`."""
    found: list[float | None] = []
    for word in values.split():
        start, by, times = re.fullmatch(r"(-?[\d.]+|_)(\+[\d.]+)?(?:x(\d+))?", word).groups()  # type: ignore[union-attr]
        step, count = float(by or 0), int(times or 0) + 1
        found += [None if start == "_" else float(start) + step * n for n in range(count)]
    return found


def readings(case: dict[str, Any]) -> list[Reading]:
    """A case's series minute by minute; what is no more holds its last value, as a run's own does."""
    series: dict[str, dict] = {}
    length = 0
    for row in case["input_series"]:
        name, labels = re.fullmatch(r"(\w+)\{(.*)\}", row["series"]).groups()  # type: ignore[union-attr]
        key = tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))
        values = expanded(row["values"])
        series.setdefault(name.removeprefix(PREFIX), {})[key] = values
        length = max(length, len(values))
    return [
        Reading(
            float(MINUTE * minute),
            {n: {k: v[min(minute, len(v) - 1)] for k, v in rows.items()} for n, rows in series.items()},
        )
        for minute in range(length)
    ]


def without_numbers(summary: str) -> str:
    """Prometheus says the value of the moment it is asked at, a message that of the moment it was posted."""
    return re.sub(r"\b\d+", "N", summary)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_alerts_are_those_of_the_rules(case: dict[str, Any]) -> None:
    tests = [test for test in case["alert_rule_test"] if test["alertname"] != RUN_STOPPED]
    if not tests:
        pytest.skip("told by whoever ends the run")
    watch, told = Watch(), []
    for reading in readings(case):
        told += [(reading.at, alert) for alert in watch.look(reading)]
        for test in tests:
            if MINUTE * int(test["eval_time"].removesuffix("m")) != reading.at:
                continue
            expected = [
                (alert["exp_labels"], without_numbers(alert["exp_annotations"]["summary"]))
                for alert in test["exp_alerts"]
            ]
            found = [
                ({"severity": alert.severity, **alert.labels}, without_numbers(alert.summary))
                for _, alert in told
                if alert.name == test["alertname"]
            ]
            assert found == expected


def seconds(time: str) -> int:
    """Of Prometheus's notation of a time."""
    return int(time[:-1]) * {"s": 1, "m": 60, "h": 3600}[time[-1]]


THRESHOLDS = {
    "StreamcvitTaskForgotten": alerts.FORGOTTEN_POINTS,
    "StreamcvitLearnerStarved": alerts.STARVED_SHARE,
    "StreamcvitEvaluationLags": alerts.LAGGING_CHUNKS,
    "StreamcvitNoCommit": alerts.COMMIT_SECONDS,
    "StreamcvitExpertBankCollapsed": alerts.COLLAPSED_SHARE,
    "StreamcvitRoutesDrifted": alerts.DRIFTED_SHARE,
    "StreamcvitQuarantine": alerts.QUARANTINED_SHARE,
    "StreamcvitStepsSkipped": alerts.SKIPPED_STEPS,
    "StreamcvitActorRestarts": alerts.RESTARTS,
}


def test_every_rule_of_prometheus_is_there_with_its_severity_threshold_and_times() -> None:
    rules = {r["alert"]: r for r in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"][0]["rules"]}
    severities = {name: rule["labels"]["severity"] for name, rule in rules.items()}
    assert severities == {name: rule.severity for name, rule in RULES.items()} | {RUN_STOPPED: "critical"}
    assert THRESHOLDS.keys() == RULES.keys()
    for name, rule in RULES.items():
        said = rules[name]["expr"]
        assert re.search(rf"[<>] {THRESHOLDS[name]:g}\b", said), name
        assert seconds(rules[name].get("for", "0s")) == rule.lasting, name
        assert {seconds(window) for window in re.findall(r"\[(\w+)\]", said)} == {rule.window} - {0.0}, name


def test_one_that_ends_and_comes_again_is_told_again() -> None:
    key = (("method", "lora"), ("run", "r"), ("task", "digit"))
    watch, told = Watch(), []
    for minute, points in enumerate((0.0, 30.0, 30.0, 2.0, 40.0)):
        series = {"task_forgetting_points": {key: points}, "task_forgetting_low_points": {key: points - 5}}
        told.append([alert.summary for alert in watch.look(Reading(60.0 * minute, series))])
    first, again = "r/lora has forgotten 30 points of digit", "r/lora has forgotten 40 points of digit"
    assert told == [[], [first], [], [], [again]]


class Hook:
    """A webhook that answers with the given codes, then 200.

    Attributes:
        url: its address.
        got: what was posted.
    """

    def __init__(self, *codes: int, seconds: float = 0.0) -> None:
        answers, got = list(codes), self.__dict__.setdefault("got", [])

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                time.sleep(seconds)
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(answers.pop(0) if answers else 200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hooks() -> Iterator[list[Hook]]:
    found: list[Hook] = []
    yield found
    for hook in found:
        hook.server.shutdown()
        hook.server.server_close()


ALERT = Alert("StreamcvitTaskForgotten", "warning", {"run": "r", "task": "digit"}, "r/lora has forgotten 30 points")


def test_an_alert_is_posted_as_slack_takes_it_and_again_where_the_receiver_fails(hooks: list[Hook]) -> None:
    hooks.append(hook := Hook(500, 429))
    notifier = Notifier(hook.url, pauses=(0.01, 0.01))
    notifier.send(ALERT)
    notifier.close(10)
    assert len(hook.got) == 3
    assert hook.got[-1] == {
        "text": ":warning: r/lora has forgotten 30 points (StreamcvitTaskForgotten)",
        "alertname": "StreamcvitTaskForgotten",
        "severity": "warning",
        "labels": {"run": "r", "task": "digit"},
        "summary": "r/lora has forgotten 30 points",
    }


def test_one_that_refuses_is_not_asked_again_and_one_that_is_slow_keeps_nobody_waiting(hooks: list[Hook]) -> None:
    hooks += [refusing := Hook(404), slow := Hook(seconds=1.0)]
    notifier = Notifier(refusing.url, pauses=(0.01,))
    notifier.send(ALERT)
    notifier.close(10)
    assert len(refusing.got) == 1
    notifier, began = Notifier(slow.url), time.monotonic()
    for _ in range(200):
        notifier.send(ALERT)
    assert time.monotonic() - began < 0.5


def test_what_is_no_answer_costs_that_alert_alone(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        notifier = Notifier(f"http://127.0.0.1:{server.getsockname()[1]}/", pauses=())
        heard = []
        for alert in (ALERT, replace(ALERT, summary="another one")):
            notifier.send(alert)
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(10_000))
                connection.sendall(b"garbage\r\n\r\n")
        notifier.close(10)
    assert b"POST" in heard[0] and len(heard) == 2
    assert caplog.text.count("could not be posted") == 2


def test_nobody_there_is_no_reason_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier("http://127.0.0.1:9/", pauses=(0.01,))
    notifier.send(ALERT)
    notifier.close(10)
    assert "could not be posted to monitor.notify" in caplog.text


def test_a_run_that_fails_is_told_of_and_one_that_its_person_stops_is_not(hooks: list[Hook], tmp_path: Path) -> None:
    hooks.append(hook := Hook())
    with pytest.raises(UserError), told_of_its_end(hook.url, "mine", tmp_path):
        raise UserError("the disk is full")
    with pytest.raises(Stopped), told_of_its_end(hook.url, "mine", tmp_path):
        raise Stopped(2)
    assert [(said["alertname"], said["summary"]) for said in hook.got] == [
        (RUN_STOPPED, "mine is gone before its end: the disk is full.")
    ]
