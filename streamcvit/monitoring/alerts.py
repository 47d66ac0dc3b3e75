"""The alerts of deploy/prometheus/rules.yaml without a Prometheus: told from the same values, under the same names.

What needs a history (rates, minutes) is kept as a few earlier readings; what needs the run to be gone is told by
whoever ends it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from streamcvit.monitoring.definitions import PREFIX

Series = Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]
"""Metric without prefix -> labels -> value, as `values_of` gives them."""
Found = Iterator[tuple[dict[str, str], float]]

FORGOTTEN_POINTS = 10.0
STARVED_SHARE, STARVED_SECONDS = 0.3, 300.0
LAGGING_CHUNKS = 2
COMMIT_SECONDS = 1800.0
COLLAPSED_SHARE = 0.1
DRIFTED_SHARE = 0.25
QUARANTINED_SHARE = 0.01
SKIPPED_STEPS = 3
RESTARTS = 2
KEPT_EVERY = 30.0
"""Seconds between two readings that are kept for those to come."""


@dataclass(frozen=True)
class Reading:
    """All values at one moment.

    Attributes:
        at: Unix time.
        series: the values.
    """

    at: float
    series: Series


@dataclass(frozen=True)
class Alert:
    """One that fires.

    Attributes:
        name: that of the rule.
        severity: `warning` or `critical`.
        labels: of the series that it is about.
        summary: one line for a person.
    """

    name: str
    severity: str
    labels: Mapping[str, str]
    summary: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two the same one."""
        return self.name, *sorted(self.labels.items())


@dataclass(frozen=True)
class Rule:
    """When an alert fires.

    Attributes:
        severity: of its alerts.
        lasting: seconds that it must hold before it is told.
        find: the series (labels and value) that it holds of, by the newest reading and an earlier one.
        window: seconds that the earlier reading lies back.
        summary: for one of them, with `{run}`, other labels and `{value}` (or its `{minutes}` and `{seconds}`) in it.
    """

    severity: str
    find: Callable[[Reading, Reading], Found]
    summary: str
    lasting: float = 0.0
    window: float = 0.0


def values_of(families: Iterable[Any]) -> Series:
    """What a collector gives, by metric and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix(PREFIX), {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _rows(reading: Reading, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return dict(reading.series.get(name, {}))


def _sums(reading: Reading, name: str, without: str) -> dict[tuple[tuple[str, str], ...], float]:
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for labels, value in _rows(reading, name).items():
        key = tuple(pair for pair in labels if pair[0] != without)
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _rise(now: Mapping[Any, float], before: Mapping[Any, float]) -> dict[Any, float]:
    """How much counters rose; one that began again counts from 0, and so does one that was not there."""
    return {key: value - (old if (old := before.get(key, 0.0)) <= value else 0.0) for key, value in now.items()}


def _forgotten(now: Reading, _: Reading) -> Found:
    low = _rows(now, "task_forgetting_low_points")
    for labels, value in _rows(now, "task_forgetting_points").items():
        if value > FORGOTTEN_POINTS and low.get(labels, 0.0) > 0:
            yield dict(labels), value


def _starved(now: Reading, before: Reading) -> Found:
    seconds = now.at - before.at
    name = "learner_wait_seconds_total"
    for labels, waited in _rise(_rows(now, name), _rows(before, name)).items():
        if dict(labels)["reason"] == "ingest" and seconds > 0 and waited / seconds > STARVED_SHARE:
            yield dict(labels), waited / seconds


def _lagging(now: Reading, _: Reading) -> Found:
    scored = _rows(now, "chunks_scored")
    for labels, learned in _rows(now, "chunks_completed_total").items():
        if learned - scored.get(labels, learned) > LAGGING_CHUNKS:
            yield dict(labels), learned - scored[labels]


def _uncommitted(now: Reading, _: Reading) -> Found:
    lag, finished = _rows(now, "stream_lag_samples"), _rows(now, "run_finished")
    for labels, written in _rows(now, "last_commit_timestamp_seconds").items():
        if now.at - written > COMMIT_SECONDS and lag.get(labels, 0) > 0 and not finished.get(labels, 0):
            yield dict(labels), now.at - written


def _collapsed(now: Reading, _: Reading) -> Found:
    experts: dict[tuple[tuple[str, str], ...], int] = {}
    for labels in _rows(now, "router_expert_share_ratio"):
        key = tuple(pair for pair in labels if pair[0] != "expert")
        experts[key] = experts.get(key, 0) + 1
    for labels, entropy in _rows(now, "router_entropy_nats").items():
        count = experts.get(labels, 0)
        if count > 1 and entropy < COLLAPSED_SHARE * math.log(count):
            yield dict(labels), entropy


def _drifted(now: Reading, _: Reading) -> Found:
    for labels, share in _rows(now, "router_drift_ratio").items():
        if share > DRIFTED_SHARE:
            yield dict(labels), share


def _quarantined(now: Reading, before: Reading) -> Found:
    names = ("samples_quarantined_total", "reason"), ("samples_learned_total", "task")
    lost, learned = (_rise(_sums(now, *name), _sums(before, *name)) for name in names)
    for labels, count in lost.items():
        share = count / (count + learned.get(labels, 0.0)) if count else 0.0
        if share > QUARANTINED_SHARE:
            yield dict(labels), share


def _skipped(now: Reading, before: Reading) -> Found:
    name = ("steps_skipped_total", "reason")
    for labels, count in _rise(_sums(now, *name), _sums(before, *name)).items():
        if count > SKIPPED_STEPS:
            yield dict(labels), count


def _restarted(now: Reading, before: Reading) -> Found:
    name = "actor_restarts_total"
    for labels, count in _rise(_rows(now, name), _rows(before, name)).items():
        if count > RESTARTS:
            yield dict(labels), count


RUN_STOPPED = "StreamcvitRunStopped"
RULES: dict[str, Rule] = {
    "StreamcvitTaskForgotten": Rule(
        "warning", _forgotten, "{run}/{method} has forgotten {value:.0f} points of {task}"
    ),
    "StreamcvitLearnerStarved": Rule(
        "warning", _starved, "the learner of {run}/{method} waits {value:.0%} of its time for batches",
        lasting=300.0, window=STARVED_SECONDS,
    ),
    "StreamcvitEvaluationLags": Rule(
        "warning", _lagging, "scores of {run}/{method} are {value:.0f} chunks behind", lasting=300.0
    ),
    "StreamcvitNoCommit": Rule("critical", _uncommitted, "{run}/{method} has not committed for {minutes}m {seconds}s"),
    "StreamcvitExpertBankCollapsed": Rule(
        "warning", _collapsed, "nearly all routes of the {bank} bank of {run}/{method} go to one expert",
        lasting=1800.0,
    ),
    "StreamcvitRoutesDrifted": Rule(
        "warning", _drifted,
        "{value:.0%} of the routes of earlier tasks have moved in the {bank} bank of {run}/{method}",
    ),
    "StreamcvitQuarantine": Rule(
        "warning", _quarantined, "{value:.0%} of the newest samples of {run}/{method} cannot be learned",
        window=3600.0,
    ),
    "StreamcvitStepsSkipped": Rule(
        "warning", _skipped, "{run}/{method} skipped {value:.0f} steps in 15 minutes", window=900.0
    ),
    "StreamcvitActorRestarts": Rule(
        "warning", _restarted, "{actor} of {run} was replaced {value:.0f} times in half an hour", window=1800.0
    ),
}  # fmt: skip
"""By name; `StreamcvitRunStopped` is told by whoever ends the run."""


@dataclass
class Watch:
    """Which alerts are new and which are over, reading after reading.

    Attributes:
        rules: by name.
        before: alerts that fired when an earlier watch last looked; they are told only once they are over.
        ended: those that were over with the newest reading.
    """

    rules: Mapping[str, Rule] = field(default_factory=lambda: RULES)
    before: InitVar[Iterable[Alert]] = ()
    ended: list[Alert] = field(default_factory=list)
    _past: deque[Reading] = field(default_factory=deque)
    _since: dict[tuple[Any, ...], float] = field(default_factory=dict)
    _told: dict[tuple[Any, ...], Alert] = field(default_factory=dict)
    _inherited: set[tuple[Any, ...]] = field(default_factory=set)

    def __post_init__(self, before: Iterable[Alert]) -> None:
        self._told = {alert.key: alert for alert in before if alert.name in self.rules}
        self._inherited = set(self._told)

    def look(self, now: Reading) -> list[Alert]:
        """Those that have begun to fire with this reading; one that ends and comes again is told again."""
        if not self._past or now.at - self._past[-1].at >= KEPT_EVERY:
            self._past.append(now)
        longest = max((rule.window for rule in self.rules.values()), default=0.0)
        while len(self._past) > 1 and self._past[1].at <= now.at - longest:
            self._past.popleft()
        fires, new = set(), []
        for name, rule in self.rules.items():
            for labels, value in rule.find(now, self._before(now.at - rule.window)):
                minutes, seconds = divmod(int(value), 60)
                said = rule.summary.format(value=value, minutes=minutes, seconds=seconds, **labels)
                alert = Alert(name, rule.severity, labels, said)
                fires.add(alert.key)
                since = self._since.setdefault(alert.key, now.at)
                if now.at - since >= rule.lasting and alert.key not in self._told:
                    self._told[alert.key] = alert
                    new.append(alert)
        self._since = {key: since for key, since in self._since.items() if key in fires}
        self.ended = [alert for key, alert in self._told.items() if key not in fires and self._is_over(alert, now)]
        for alert in self.ended:
            del self._told[alert.key]
        self._inherited &= self._told.keys()
        return new

    def _is_over(self, alert: Alert, now: Reading) -> bool:
        """Whether one that no longer fires has ended, or cannot be judged yet.

        A watch that began a moment ago has neither read every run yet, nor a past to tell a rate from.
        """
        if alert.key in self._inherited and now.at - self._past[0].at < self.rules[alert.name].window:
            return False
        of = {(name, alert.labels[name]) for name in ("run", "method") if name in alert.labels}
        return any(of <= set(labels) for rows in now.series.values() for labels in rows)

    def _before(self, at: float) -> Reading:
        """The newest reading that is at least so old; the oldest where none is."""
        old = [reading for reading in self._past if reading.at <= at]
        return old[-1] if old else self._past[0]
