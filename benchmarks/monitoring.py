"""What watching costs the learner: its speed with everything on against everything off, run after run in turns.

    python benchmarks/monitoring.py [--rounds 5] [--chunks 6] [--samples 480] [--only NAME ...]
    python benchmarks/monitoring.py --learner [--chunks 6] [--samples 480]

Both are the same run with actors (LoRA on the embedded stream). Off: nobody asks for anything. On: probes where there
are any, all sinks whose packages are here (TensorBoard, W&B offline, MLflow in files), traces into files, alerts posted
to a receiver, `/metrics` scraped every second, and twenty viewers with the live page open. Each round runs every
variant in an order drawn anew. From the end of the first chunk to that of the last it takes

    wall      seconds of the learner's work (`busy_s`: all but waiting for batches and for the driver)
    cpu       seconds of processor that the learner's process took

per sample; a ratio is the median over rounds of on over off of that round, with its quartiles. `cpu` says what the
learner itself does more, whatever else the machine is busy with; `wall` has in it that the monitor, the evaluators and
the viewers want processors too, which on a machine with few of them is most of it. `monitor` is the processor time of
the monitor's process. --only takes parts of "on" one by one: sinks, traces, notify, page, probes.
--learner leaves Ray, the viewers and the webhook out: two learners in one process take turns chunk by chunk, one with
all sinks and traces, one with neither. Its `cpu` is the processor time of the learner's thread, `beside` that of the
threads that feed sinks and send spans; neither counts waiting, so that it can be measured on a busy machine.
Writes benchmarks/results/monitoring.json, of --learner monitoring-learner.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from streamcvit.config import RunConfig
from streamcvit.monitoring.sinks import SINKS
from streamcvit.run.folder import machine, versions

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "monitoring.json"
LEARNER = RESULT.with_name("monitoring-learner.json")
VIEWERS = 20
PARTS = ("sinks", "traces", "notify", "page", "probes")
GOAL = 1.02


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """A webhook that takes everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def settings(parts: tuple[str, ...], hook: str) -> list[str]:
    """What switches parts of watching on."""
    words = []
    if "sinks" in parts:
        here = [name for name, sink in SINKS.items() if importlib.util.find_spec(sink.package)]
        words += [f"monitor.sinks=[{', '.join(here)}]"]
        words += ["monitor.sink_options.wandb.mode=offline"] if "wandb" in here else []
    if "traces" in parts:
        words += ["monitor.traces=file"]
    if "notify" in parts:
        words += [f"monitor.notify={hook}"]
    evaluation = RunConfig.model_fields["evaluation"].annotation
    if "probe_samples" in evaluation.model_fields:  # type: ignore[union-attr]
        words += [f"evaluation.probe_samples={16 if 'probes' in parts else 0}"]
    return [word for setting in words for word in ("--set", setting)]


def watch(url: str, end: threading.Event) -> list[threading.Thread]:
    """A Prometheus and twenty viewers, until the end."""

    def scrape() -> None:
        while not end.wait(1.0):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
                answer.read()

    def view() -> None:
        page = url.removesuffix("metrics")
        while not end.is_set():
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(page, timeout=10) as answer:
                    answer.read()
                with urllib.request.urlopen(f"{page}events", timeout=10) as answer:
                    while not end.is_set() and answer.readline():
                        pass
            end.wait(5.0)

    threads = [threading.Thread(target=one, daemon=True) for one in (scrape, *[view] * VIEWERS)]
    for thread in threads:
        thread.start()
    return threads


def actors(driver: psutil.Process) -> dict[str, psutil.Process]:
    """The run's actors that matter here, by class."""
    found = {}
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            for name in ("LearnerActor", "MonitorActor"):
                if name in title:
                    found[name] = process
    return found


def seconds(process: psutil.Process | None) -> float:
    """Processor time of a process so far."""
    if process is None:
        return float("nan")
    try:
        times = process.cpu_times()
    except psutil.Error:
        return float("nan")
    return times.user + times.system


def measure(options: argparse.Namespace, parts: tuple[str, ...], cwd: Path, hook: str) -> dict[str, float]:
    """One run: seconds a sample, by what they are of."""
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "watched", "--method", "lora"]
    words += ["--set", f"stream.scenario.chunks={options.chunks}"]
    words += ["--set", f"stream.scenario.samples_per_chunk={options.samples}", "--set", "stream.test_samples=20"]
    words += ["--set", "evaluation.draws=100", *settings(parts, hook)]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamcvit", *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    driver, end, printed = psutil.Process(process.pid), threading.Event(), []
    marks: list[tuple[float, float]] = []
    found: dict[str, psutil.Process] = {}
    threads: list[threading.Thread] = []
    for line in process.stdout:
        printed.append(line)
        if (address := re.search(r"metrics: (http://\S+)", line)) and "page" in parts:
            threads = watch(address[1], end)
        if re.search(r"chunk \d+/\d+ learned", line):
            found = found or actors(driver)
            marks.append((seconds(found.get("LearnerActor")), seconds(found.get("MonitorActor"))))
    code = process.wait()
    end.set()
    for thread in threads:
        thread.join(15)
    if code:
        raise SystemExit("".join(printed))
    folder = cwd / "runs" / "watched" / "lora"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    chunks = [event for event in events if event["event"] == "chunk"][1:]
    samples = sum(event["samples"] for event in chunks)
    return {
        "wall": sum(event["busy_s"] for event in chunks) / samples,
        "cpu": (marks[-1][0] - marks[0][0]) / samples,
        "monitor": (marks[-1][1] - marks[0][1]) / samples,
    }


def learners(options: argparse.Namespace) -> dict[str, Any]:
    """Two learners side by side in this process: processor seconds a sample of each chunk but the first."""
    from streamcvit.learning import commit as commits
    from streamcvit.monitoring import traces
    from streamcvit.pipeline import load_config
    from streamcvit.run.drive import task_counts
    from streamcvit.run.evaluating import EvaluatorWorker
    from streamcvit.run.feeding import Feeder
    from streamcvit.run.folder import RunFolder
    from streamcvit.run.loading import local_feed
    from streamcvit.run.stream import prepare_stream
    from streamcvit.run.workers import LearnerWorker

    shape = [f"stream.scenario.chunks={options.chunks}", f"stream.scenario.samples_per_chunk={options.samples}"]
    shape += ["stream.test_samples=4", "evaluation.draws=10"]
    rows: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory() as out:
        workers, feeders, folders = {}, {}, {}
        for name in rows:
            watched = [word for word in settings(("sinks",) if name == "on" else (), "") if word != "--set"]
            config = load_config(ROOT / "pipelines/embedded.yaml", [*shape, *watched], name=name, out=out)
            config = config.model_copy(update={"methods": {"lora": config.methods["lora"]}})
            stream = config.folder() / "stream"
            index = prepare_stream(config, stream, lambda line: None)
            tell = feeders[name] = Feeder(config) if config.monitor.sinks else None
            feed = local_feed(config, str(stream))
            workers[name] = LearnerWorker(config, str(stream), feed, tell.word if tell else lambda word: None)
            counts = task_counts(config, index, "lora")
            folders[name] = RunFolder(config, "lora", index, counts, workers[name].base.digest)
        evaluator = EvaluatorWorker(config, str(stream))
        for chunk in range(options.chunks):
            for name in list(rows)[:: 1 if chunk % 2 else -1]:
                if name == "on":
                    traces.begin("file", "on", "local", Path(out) / "on")
                thread, process = time.thread_time(), time.process_time()
                report = workers[name].learn_chunk("lora", chunk)
                own, all_ = time.thread_time() - thread, time.process_time() - process
                rows[name].append({"cpu": own / options.samples, "beside": (all_ - own) / options.samples})
                traces.end()
                folders[name].chunk_done(report)
                if name == "on":  # what a boundary adds
                    for job in folders[name].missing(report):
                        folders[name].add(evaluator.evaluate(job))
                    folders[name].write_scores()
                    feeders[name].changed(folders[name].path)
                told = ", ".join(f"{key} {1e3 * value:.2f} ms" for key, value in rows[name][-1].items())
                print(f"chunk {chunk + 1}: {name:3} {told}", flush=True)
        digests = {
            name: commits.read_note(commits.list_commits(f.path / "commits")[-1])["digest"]
            for name, f in folders.items()
        }
        assert len(set(digests.values())) == 1, "watching has changed what is learned"
        feeders["on"].close()
        assert not feeders["on"].faults, feeders["on"].faults
    of = [on["cpu"] / off["cpu"] for on, off in zip(rows["on"][1:], rows["off"][1:], strict=True)]
    low, median, high = (float(q) for q in np.quantile(of, (0.25, 0.5, 0.75)))
    print(f"on      cpu  ratio {median:.3f}  [{low:.3f}, {high:.3f}]")
    return {"seconds_a_sample": rows, "ratios": {"on": {"cpu": {"median": median, "quartiles": [low, high]}}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--samples", type=int, default=480)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[], help="these parts too, one by one")
    parser.add_argument("--learner", action="store_true", help="the learner alone, in this process")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = learners(options) if options.learner else runs(options)
    met = found["ratios"]["on"]["cpu"]["median"] <= GOAL
    print(f"the learner's own cost is {'within' if met else 'past'} the goal of {GOAL - 1:.0%}")
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "load": list(os.getloadavg()),
        "chunks": options.chunks,
        "samples": options.samples,
        **found,
    }
    (LEARNER if options.learner else RESULT).write_text(json.dumps(facts, indent=1) + "\n")


def runs(options: argparse.Namespace) -> dict[str, Any]:
    """Whole runs in turns: seconds a sample of each, and their ratios."""
    variants: dict[str, tuple[str, ...]] = {"off": (), "on": PARTS, **{part: (part,) for part in options.only}}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    draw = np.random.default_rng(options.seed)
    with receiver() as hook:
        for number in range(options.rounds):
            for name in draw.permutation(list(variants)).tolist():
                with tempfile.TemporaryDirectory() as cwd:
                    rows[name].append(measure(options, variants[name], Path(cwd), hook))
                told = ", ".join(f"{key} {1e3 * value:.2f} ms" for key, value in rows[name][-1].items())
                print(f"round {number + 1}: {name:7} {told}", flush=True)
    ratios = {}
    for name in variants:
        if name == "off":
            continue
        ratios[name] = {}
        for key in ("wall", "cpu"):
            of = [on[key] / off[key] for on, off in zip(rows[name], rows["off"], strict=True)]
            low, median, high = (float(q) for q in np.quantile(of, (0.25, 0.5, 0.75)))
            ratios[name][key] = {"median": median, "quartiles": [low, high]}
            print(f"{name:7} {key:4} ratio {median:.3f}  [{low:.3f}, {high:.3f}]")
    return {"viewers": VIEWERS, "seconds_a_sample": rows, "ratios": ratios}


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
