"""What twenty open tabs cost a learner: steps of learning beside a live page that nobody, or everybody, watches.

    python benchmarks/watching.py [--viewers 20] [--rounds 12] [--seconds 2]

A small network learns in this process; one of its own serves a run's page, as the monitor does, while the run's folder
changes twice a second, and one holds the tabs. Rounds with and without viewers come in turn, so that whatever else the
machine does falls on both. The ratio is that of the rates' medians; 1.00 is no cost. Page and viewers compete with the
learner for cores, and for nothing else: learning waits for neither.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "unit")]


def serve_page(folder: str, pipe: Connection) -> None:
    """Serve a run's page until told to end; answers with the looks and the processor's seconds so far."""
    from streamcvit.monitoring.exporter import serve
    from streamcvit.monitoring.watch import Follower, Site

    site = Site(Follower(Path(folder)))
    with serve(None, site=site) as server:
        pipe.send(server.port)
        while pipe.recv():
            pipe.send((site.hub.looks, time.process_time()))


def view(port: int, ended: threading.Event, told: list[int]) -> None:
    """One tab: load the page, then hear what changes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/")
    connection.getresponse().read()
    connection.request("GET", "/events")
    answer = connection.getresponse()
    while not ended.is_set() and (line := answer.readline()):
        told[0] += line.startswith(b"data")
    connection.close()


def viewing(port: int, viewers: int, pipe: Connection) -> None:
    """A process of tabs: `True` opens them, `False` closes them, `None` ends; answers with what they were told."""
    while (wanted := pipe.recv()) is not None:
        ended, told = threading.Event(), [0]
        tabs = [threading.Thread(target=view, args=(port, ended, told)) for _ in range(viewers if wanted else 0)]
        for tab in tabs:
            tab.start()
        pipe.send(len(tabs))
        pipe.recv()
        ended.set()
        for tab in tabs:
            tab.join()
        pipe.send(told[0])


def learner() -> Callable[[], None]:
    """A step of learning on a small network, as a function."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 256) for _ in range(6)]
    model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.GELU())))
    rule = torch.optim.AdamW(model.parameters(), 1e-3)
    rows = torch.randn(256, 256)

    def step() -> None:
        rule.zero_grad()
        model(rows).square().mean().backward()
        rule.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12, help="of each kind")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    asked = parser.parse_args()

    from watched_runs import write_watched

    from streamcvit.monitoring.watch.word import Word

    step = learner()
    with tempfile.TemporaryDirectory() as place:
        folder = write_watched(Path(place) / "run", ("lora", "smolora"), 12, chunks=25)
        context = multiprocessing.get_context("spawn")
        (page, page_end), (tabs, tabs_end) = context.Pipe(), context.Pipe()
        server = context.Process(target=serve_page, args=(str(folder), page_end), daemon=True)
        server.start()
        port = page.recv()
        audience = context.Process(target=viewing, args=(port, asked.viewers, tabs_end), daemon=True)
        audience.start()

        def change(k: int) -> None:
            event = {"time": "2026-01-01T12:00:00+00:00", "event": "of the benchmark", "number": k}
            with open(folder / "lora" / "events.jsonl", "a") as file:
                file.write(json.dumps(event) + "\n")
            Word(folder)("lora", 800 + k, 1.0, 100.0, 100 + k)

        def learn(seconds: float) -> float:
            steps, changes, began = 0, 0, time.perf_counter()
            while (spent := time.perf_counter() - began) < seconds:
                step()
                steps += 1
                if spent > 0.5 * (changes + 1):
                    changes += 1
                    change(changes)
            return steps / spent

        learn(1.0)
        rates: dict[bool, list[float]] = {False: [], True: []}
        looks: dict[bool, int] = {False: 0, True: 0}
        busy: dict[bool, float] = {False: 0.0, True: 0.0}
        told = 0
        for turn in range(2 * asked.rounds):
            watched = turn % 4 in (1, 2)  # without, with, with, without: a drift falls on both
            tabs.send(watched)
            tabs.recv()
            time.sleep(0.3)
            page.send(True)
            before = page.recv()
            rates[watched].append(learn(asked.seconds))
            page.send(True)
            after = page.recv()
            looks[watched] += after[0] - before[0]
            busy[watched] += after[1] - before[1]
            tabs.send(True)
            told += tabs.recv()
        tabs.send(None)
        page.send(False)
        for process in (audience, server):
            process.join(10)

    seconds = asked.rounds * asked.seconds
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {asked.rounds} rounds of {asked.seconds:g} s each way"
    )
    for watched in (False, True):
        print(
            f"{asked.viewers if watched else 0:3d} viewers: {statistics.median(rates[watched]):8.1f} steps/s, "
            f"{looks[watched] / seconds:.2f} looks/s, page's process {100 * busy[watched] / seconds:.1f} % of a core"
        )
    print(f"events told to viewers: {told}")
    ratio = statistics.median(rates[True]) / statistics.median(rates[False])
    print(f"ratio of the medians (with viewers / without): {ratio:.3f}")


if __name__ == "__main__":
    main()
