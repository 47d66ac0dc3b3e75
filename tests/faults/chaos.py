"""Kill anything at any moment, and show that a run leaves behind what an undisturbed one leaves.

    python tests/faults/chaos.py --kills 50 --seed 7 [--nodes 0] [--learners 2] [--local-reference]

The embedded scenario is run once undisturbed (with --local-reference without Ray) and once under fire: kill -9 of
ingest, learner, evaluator, monitor, the driver (then --resume), a whole Ray node (without --nodes the learner instead),
the learner while a commit is being written, anything once more while it comes back; and SIGSTOP, which only heartbeats
find. The seed draws who is hit and after which learned batch. Exit code 1 where anything differs in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nodes import Cluster, kill, tree
from running import ROOT, command, environment

from streamcvit.learning import commit, read_ledger

DECK = ("learner", "commit", "ingest", "evaluator", "stop", "again", "learner", "monitor", "driver", "node")
"""What ten kills consist of; each ten is shuffled."""
KINDS = {
    "learner": "LearnerActor",
    "rank": "RankActor",
    "ingest": "IngestActor",
    "evaluator": "EvaluatorActor",
    "monitor": "MonitorActor",
}
CUT_OFF = "the learner's node, cut off"
PATIENCE = 600.0  # seconds: until a victim is there, or the run goes on
SETTINGS = [
    "learner.commit_every=1",  # so that recovery is seen batch by batch, and a commit is often under way
    "cluster.silent_seconds=15",
    "cluster.restarts=100000",
]


@dataclass
class Hit:
    """One kill: who, when, whether a commit was being written, and seconds until the next batch was committed."""

    victim: str
    at: float
    learner: bool
    inside: bool = False
    recovered: float | None = None


class Fire:
    """A run under fire.

    Args:
        words: of `streamcvit run`, without --name and --resume.
        folder: where the run goes; its last part is the run's name.
        total: optimizer steps of all methods together.
        kills: how many.
        seed: draws victims and moments.
        nodes: Ray nodes besides the head; 0: a private Ray on this machine.
        victims: who is hit, in this order; None: drawn.
        learners: that share each batch under fire; every other kill of a learner is then of one beside the first.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path,
        total: int,
        kills: int,
        seed: int,
        nodes: int = 0,
        victims: list[str] | None = None,
        learners: int = 1,
    ) -> None:
        rng = random.Random(seed)
        self.folder, self.rng = folder, rng
        deck: list[str] = []
        while len(deck) < kills:
            deck += rng.sample(DECK, len(DECK))
        self.victims = victims or [("learner" if v == "node" and not nodes else v) for v in deck[:kills]]
        if learners > 1:
            places = [place for place, victim in enumerate(self.victims) if victim == "learner"]
            self.victims = ["rank" if place in places[1::2] else v for place, v in enumerate(self.victims)]
        self.moments = sorted(rng.sample(range(1, max(kills + 2, int(total * 0.9))), kills))
        self.cluster = Cluster(nodes) if nodes else None
        self.words = [*words, "--name", folder.name, "--set", f"out={folder.parent}"]
        for setting in [
            *SETTINGS,
            f"cluster.learners={learners}",
            *([f"cluster.address={self.cluster.address}"] if self.cluster else []),
        ]:
            self.words += ["--set", setting]
        self.log = folder.parent / f"{folder.name}.log"
        self.began = time.monotonic()
        self.hits: list[Hit] = []
        self.stopped: list[psutil.Process] = []
        self.at_hit = 0
        self.driver = self._start()

    # -- what there is to see --------------------------------------------------------------------------------------

    def _start(self, *more: str) -> subprocess.Popen:
        with open(self.log, "a") as file:
            return subprocess.Popen(
                command("run", *self.words, *more),
                env=environment() | (self.cluster.environment if self.cluster else {}),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[psutil.Process]:
        roots = [self.driver]
        if self.cluster:  # the monitor is beside the driver, on the head
            roots += [self.cluster.head, *self.cluster.nodes.values()]
        return [process for root in roots for process in tree(root)]

    def actors(self, kind: str) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            try:
                if (process.cmdline() or [""])[0].startswith(f"ray::{KINDS[kind]}"):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def learned(self) -> int:
        """Optimizer steps that are committed, of all methods together."""
        steps = 0
        for commits in self.folder.glob("*/commits"):
            steps += max((int(name.split("-")[0]) for name in os.listdir(commits) if name[0].isdigit()), default=0)
        return steps

    def drafts(self) -> list[str]:
        """Commits that are being written."""
        return [
            name
            for commits in self.folder.glob("*/commits")
            for name in os.listdir(commits)
            if name.startswith(".tmp-")
        ]

    def over(self) -> bool:
        return self.driver.poll() is not None

    def until(self, what, seconds: float = PATIENCE, pause: float = 0.02) -> bool:  # type: ignore[no-untyped-def]
        """Wait for something, or the run's end; meanwhile see who has recovered."""
        deadline = time.monotonic() + seconds
        while not (found := what()) and not self.over() and time.monotonic() < deadline:
            self._look()
            time.sleep(pause)
        self._look()
        return bool(found)

    def _look(self) -> None:
        waiting = [hit for hit in self.hits if hit.learner and hit.recovered is None]
        if waiting and self.learned() > self.at_hit:
            for hit in waiting[-1:]:
                hit.recovered = time.monotonic() - hit.at
            for hit in waiting[:-1]:
                hit.learner = False  # hit again before it had recovered: that one counts

    # -- what is done ----------------------------------------------------------------------------------------------

    def burn(self) -> list[str]:
        """Kill all there is to kill, let the run end; returns what went wrong."""
        wrong: list[str] = []
        try:
            for number, (victim, moment) in enumerate(zip(self.victims, self.moments, strict=True)):
                if victim == "again":
                    pause, last = self.rng.uniform(0.3, 3.0), self.hits[-1].victim if self.hits else ""
                    victim = last if last in KINDS else "learner"
                    self.until(lambda: False, pause)
                else:
                    self.until(lambda m=moment: self.learned() >= m)  # type: ignore[misc]
                if self.over():
                    wrong.append(f"the run ended after {number} of {len(self.victims)} kills")
                    break
                if (fault := self._hit(number, victim)) is not None:
                    wrong.append(fault)
            self.until(self.over, 900)
            if left := [process for process in self.stopped if process.is_running() and process.status() == "stopped"]:
                wrong.append(f"{len(left)} stopped processes were left behind")
                kill(left)
            if self.driver.poll() != 0:
                wrong.append(f"the run ended with {self.driver.poll()}: {self.log.read_text()[-600:]}")
        finally:
            kill(self.processes())
            if self.cluster:
                self.cluster.close()
        return wrong

    def _hit(self, number: int, victim: str) -> str | None:
        if victim == "driver":
            kill(tree(self.driver)[-1:])
            self._note(number, victim, learner=True)
            self.driver.wait()
            time.sleep(1.0)
            self.driver = self._start("--resume")
            return None
        if victim in ("node", "the learner's node", CUT_OFF):
            assert self.cluster is not None
            self.until(lambda: self.actors("learner"))
            nodes = list(self.cluster.nodes)
            homes = [node for node in nodes if self._on(node, "learner")]
            node = self.rng.choice(nodes if victim == "node" or not homes else homes)
            if victim == CUT_OFF:
                return self._cut_off(number, node)
            self.cluster.kill(node)
            self._note(number, f"node {node}" + (" (with the learner)" if node in homes else ""), learner=node in homes)
            self.cluster.add(node, wait=False)
            return None
        kind = {"commit": "learner", "stop": self.rng.choice(("learner", "ingest", "evaluator"))}.get(victim, victim)
        signum = signal.SIGSTOP if victim == "stop" else signal.SIGKILL
        while True:
            self.until(lambda: self.actors(kind))
            if not (there := self.actors(kind)):
                return f"no {kind} came back within {PATIENCE:.0f} s"
            target = self.rng.choice(there)
            try:
                if victim == "commit" and not self._freeze_in_commit(target):
                    return f"no learner committed anything within {PATIENCE:.0f} s"
                target.send_signal(signum)
                break
            except psutil.NoSuchProcess:  # it fell to something else in this moment
                time.sleep(0.1)
        inside = kind == "learner" and bool(self.drafts())
        self._note(
            number, f"{kind}, stopped" if victim == "stop" else kind, learner=kind in ("learner", "rank"), inside=inside
        )
        if victim == "stop":
            self.stopped.append(target)
        return None

    def _freeze_in_commit(self, learner: psutil.Process) -> bool:
        """Stop a learner while it writes a commit: what is seen of a stopped process stays so until it is killed."""
        deadline, left_behind = time.monotonic() + PATIENCE, set(self.drafts())
        while time.monotonic() < deadline:
            while not set(self.drafts()) - left_behind and learner.is_running() and time.monotonic() < deadline:
                time.sleep(0.0005)
            learner.send_signal(signal.SIGSTOP)
            if set(self.drafts()) - left_behind:
                return True
            learner.send_signal(signal.SIGCONT)
        return False

    def _cut_off(self, number: int, node: int) -> str | None:
        """Stop all of a node, and let it go on when its learner's successor has learned."""
        assert self.cluster is not None
        there = tree(self.cluster.nodes[node])
        for process in there:
            process.send_signal(signal.SIGSTOP)
        self._note(number, f"node {node}, cut off", learner=True)
        replaced = self.until(lambda: self.learned() > self.at_hit)
        for process in reversed(there):  # the learner first, before its node hears that it was given up
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        return None if replaced or self.over() else "nobody took a cut off learner's place"

    def _on(self, node: int, kind: str) -> bool:
        assert self.cluster is not None
        return bool({p.pid for p in self.actors(kind)} & {p.pid for p in tree(self.cluster.nodes[node])})

    def _note(self, number: int, victim: str, learner: bool, inside: bool = False) -> None:
        now = time.monotonic()
        recovering = any(hit.learner and hit.recovered is None for hit in self.hits)
        if learner:
            self.at_hit = self.learned()
        self.hits.append(Hit(victim, now, learner, inside))
        moment = f"after step {self.learned()}" + ", in a commit" * inside + ", while recovering" * recovering
        print(f"{now - self.began:7.1f} s  kill {number + 1:2d}: {victim} {moment}", flush=True)


def differences(reference: Path, folder: Path, methods: list[str]) -> list[str]:
    """Where a run's results are not those of the reference: weights, ledger, predictions, scores."""
    found = []

    def check(what: str, ours: object, theirs: object) -> None:
        if ours != theirs:
            found.append(f"{what} differs")

    for method in methods:
        ours, theirs = folder / method, reference / method
        finished = json.loads((ours / "run.json").read_text())["finished"] if (ours / "run.json").exists() else None
        if not finished:
            found.append(f"{method} is not finished")
            continue
        check(f"{method}: digest of a chunk boundary", boundaries(ours), boundaries(theirs))
        ledgers = [read_ledger(path / "ledger") for path in (ours, theirs)]
        positions = Counter(ledgers[0]["position"].to_pylist())
        planned = sum(map(sum, json.loads((theirs / "plan.json").read_text())["chunks"]))
        if positions != Counter(range(planned)):
            missing, twice = set(range(planned)) - set(positions), [p for p, n in positions.items() if n > 1]
            found.append(f"{method}: the ledger lacks {sorted(missing)[:5]}, has twice {twice[:5]}")
        check(f"{method}: ledger", *(ledger.to_pylist() for ledger in ledgers))
        files = [sorted(str(p.relative_to(r)) for p in r.glob("predictions/*/*.parquet")) for r in (ours, theirs)]
        check(f"{method}: set of evaluations", *files)
        for file in sorted(set(files[0]) & set(files[1])):
            check(f"{method}: {file}", pq.read_table(ours / file), pq.read_table(theirs / file))
        check(f"{method}: scores", *(scores(path) for path in (ours, theirs)))
        check(f"{method}: summary", *(json.loads((path / "summary.json").read_text()) for path in (ours, theirs)))
    return found


def boundaries(folder: Path) -> list[tuple[int, int, str]]:
    """(chunk, step, digest) of every chunk boundary; damaged commits raise."""
    states = [commit.read_state(path) for path in commit.list_commits(folder / "commits")]
    return [(state["chunk"], state["step"], state["digest"]) for state in states if state.get("boundary")]


def scores(folder: Path) -> list[dict]:
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def restarts(folder: Path) -> Counter:
    """(actor, cause) -> how often, as events.jsonl has it."""
    found: Counter = Counter()
    for path in folder.glob("*/events.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        found.update((e["actor"].split("-")[0], e["cause"]) for e in events if e["event"] == "restart")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=2, help="Ray nodes on this machine; 0: a private Ray")
    parser.add_argument("--learners", type=int, default=1, help="that share each batch in the run under fire")
    parser.add_argument("--local-reference", action="store_true", help="the undisturbed run goes without Ray")
    parser.add_argument("--methods", default="smolora,replay,joint")
    parser.add_argument("--chunks", type=int, default=15)
    parser.add_argument("--samples", type=int, default=96, help="a chunk")
    args = parser.parse_args()
    methods = args.methods.split(",")
    place = Path(tempfile.mkdtemp(prefix="scv-chaos-"))
    words = [str(ROOT / "pipelines" / "embedded.yaml")]
    for method in methods:
        words += ["--method", method]
    sizes = (f"scenario.chunks={args.chunks}", f"scenario.samples_per_chunk={args.samples}", "test_samples=12")
    parts = ["learner.micro_batch=4"] if args.learners > 1 else []
    for setting in (*(f"stream.{size}" for size in sizes), "evaluation.draws=100", *parts):
        words += ["--set", setting]
    began = time.monotonic()
    local = ["--local"] if args.local_reference else []
    calm = command("run", *words, *local, "--name", "calm", "--set", f"out={place}")
    subprocess.run(calm, env=environment(), check=True, stdout=subprocess.DEVNULL)
    total = len(methods) * args.chunks * -(-args.samples // 8)
    print(f"undisturbed{' (local)' if local else ''}: {total} steps in {time.monotonic() - began:.0f} s", flush=True)
    fire = Fire(words, place / "fire", total, args.kills, args.seed, args.nodes, learners=args.learners)
    wrong = fire.burn()
    wrong += differences(place / "calm", place / "fire", methods)
    seconds = [hit.recovered for hit in fire.hits if hit.recovered is not None]
    plain = [hit.recovered for hit in fire.hits if hit.recovered is not None and hit.victim == "learner"]
    for name, times in (("learner", plain), ("learner, its node, the driver, SIGSTOP", seconds)):
        if times:
            middle, most = statistics.median(times), max(times)
            print(f"kill of {name} to the next committed batch: median {middle:.1f} s, max {most:.1f} s, {len(times)}")
    print("replaced:", ", ".join(f"{a} {c} {n}x" for (a, c), n in sorted(restarts(place / "fire").items())))
    inside = sum(hit.inside for hit in fire.hits)
    print(f"{inside} kills while a commit was being written")
    if "commit" in fire.victims and not inside:
        wrong.append("no kill hit a commit")
    for line in wrong:
        print("WRONG:", line)
    print(f"{'DIFFERENT' if wrong else 'EQUAL'} after {len(fire.hits)} kills, seed {args.seed}: {place}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
