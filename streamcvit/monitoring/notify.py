"""Tell alerts: in the run's folder, and to a webhook in the JSON that Slack and its kin take; never in anyone's way."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import queue
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.registry import Collector

from streamcvit.monitoring.alertlog import FIRING, RESOLVED, AlertLog
from streamcvit.monitoring.alerts import RUN_STOPPED, Alert, Reading, Watch, values_of

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at what may fire, at least
SPARING = 30.0
"""A pause is so many times as long as the look before it: looks at a long stream take 3 % of the time at most."""
LAST_SECONDS = 20.0  # that a webhook may take at the end
TIMEOUT_SECONDS = 5.0
PAUSES = (1.0, 5.0, 30.0)
"""Seconds before each further try."""
MOST = 100
"""Alerts that wait; where a receiver is slower than they come, further ones are dropped."""
MARKS = {"warning": ":warning:", "critical": ":rotating_light:"}


def message(alert: Alert) -> dict[str, object]:
    """What is posted: `text` for Slack, Mattermost and Rocket.Chat, the parts beside it for whoever reads programs."""
    return {
        "text": f"{MARKS[alert.severity]} {alert.summary} ({alert.name})",
        "alertname": alert.name,
        "severity": alert.severity,
        "labels": dict(alert.labels),
        "summary": alert.summary,
    }


class Notifier:
    """Posts alerts in the order they come.

    Args:
        url: of the webhook.
        pauses: seconds before each further try.
    """

    def __init__(self, url: str, pauses: tuple[float, ...] = PAUSES) -> None:
        self.url, self.pauses = url, pauses
        self._waiting: queue.Queue[Alert] = queue.Queue(MOST)
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Post an alert, soon; returns at once."""
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            log.warning("alert %s is not posted: %d others wait", alert.summary, MOST)

    def close(self, seconds: float) -> None:
        """Wait for what is still to be posted, so long at most."""
        until = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.05)

    def _work(self) -> None:
        while True:
            alert = self._waiting.get()
            try:
                self._post(message(alert))
            finally:
                self._waiting.task_done()

    def _post(self, content: Mapping[str, object]) -> None:
        body = json.dumps(content).encode()
        for pause in (*self.pauses, None):
            request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                    return
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = error
                refused = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code != 429
            if pause is None or refused:
                break
            time.sleep(pause)
        log.warning("an alert could not be posted to monitor.notify (%s)", reason)


class Teller:
    """Looks at a run's values again and again, notes in its folder what begins to fire and what ends, posts the former.

    Args:
        store: the values.
        folder: of the whole run.
        url: of the webhook; empty: nobody is told.
    """

    def __init__(self, store: Collector, folder: Path, url: str = "") -> None:
        self.store, self.kept, self.notifier = store, AlertLog(folder), Notifier(url) if url else None
        self.watch = Watch(before=self.kept.firing())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look a last time, and wait for what is still to be posted."""
        self._end.set()
        self._thread.join()
        if self.notifier is not None:
            self.notifier.close(LAST_SECONDS)

    def _work(self) -> None:
        ending, pause = False, LOOK_SECONDS
        while not ending:
            ending = self._end.wait(pause)
            began = time.monotonic()
            try:
                self._look()
            except Exception:  # what is wrong with one look is no reason to look no more
                log.exception("the alerts cannot be told")
            pause = max(LOOK_SECONDS, SPARING * (time.monotonic() - began))

    def _look(self) -> None:
        now = time.time()
        new = self.watch.look(Reading(now, values_of(self.store.collect())))
        for alert in self.watch.ended:
            self.kept.write(alert, RESOLVED, now)
        for alert in new:
            self.kept.write(alert, FIRING, now)
            if self.notifier is not None:
                self.notifier.send(alert)


@contextlib.contextmanager
def told_of_its_end(url: str, run: str, folder: Path) -> Iterator[None]:
    """Note and post that a run ends before its end, unless the person at it ended it; that it goes on again ends that.

    Args:
        url: of the webhook; empty: nobody is told, and it is only noted.
        run: its name.
        folder: of the whole run.
    """
    kept = AlertLog(folder)
    for alert in kept.firing():
        if alert.name == RUN_STOPPED:
            kept.write(alert, RESOLVED, time.time())
    try:
        yield
    except BaseException as error:
        if getattr(error, "number", None) != signal.SIGINT:
            why = getattr(error, "how", "") or str(error) or type(error).__name__
            alert = Alert(RUN_STOPPED, "critical", {"run": run}, f"{run} is gone before its end: {why}")
            kept.write(alert, FIRING, time.time())
            if url:
                notifier = Notifier(url)
                notifier.send(alert)
                notifier.close(LAST_SECONDS)
        raise
