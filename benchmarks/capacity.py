"""Where a cluster saturates: ingest, learning, evaluation or commits, from measured costs, by a discrete-event model.

    python benchmarks/capacity.py measure              # costs of the embedded stream on this machine: two runs
    python benchmarks/capacity.py check                # two other runs, predicted, run, compared
    python benchmarks/capacity.py table [--samples 1e9] [--chunks 1000] [--tasks 1000] [--test-samples 500]
                                        [--costs FILE] [--full-every 1] [--probe-share 0.1] [--price 3.0]

The model: ingest actors prepare pieces of a chunk, at most `look_ahead` ahead of the learner; the learner (ranks that
share a batch; of their speed `--overhead` is lost at every doubling) takes them in order, commits, and goes on; every
boundary puts one job a seen task into a queue that evaluators take from. Nothing waits for evaluation. On one machine
all processes share its processors evenly, and what driver, monitor and Ray take is taken from them.

`measure` runs the embedded stream at two sizes and takes the processor seconds of each kind of process; differences
are the costs of a sample and of an answer, what does not grow is the start. `check` predicts runs of other sizes and
other numbers of evaluators, runs them, and says how far off the wall time was (the goal is 15 %). `table` splits 1 to
64 GPUs between learners and evaluators, each split simulated, and prints the fastest of each number: time, GPU hours,
how busy each stage is, which one binds, and how far evaluation is behind when learning ends. One GPU alone is shared
evenly. With --full-every K all test samples of all tasks are answered after each K-th chunk, after others
`--probe-share` of them. Writes benchmarks/results/capacity.json.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import heapq
import json
import math
import sys
import tempfile
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "capacity.json"
GOAL = 0.15
UNITS = 60  # at most so many pieces of a chunk are followed one by one
GPUS = (1, 2, 4, 8, 16, 32, 64)
MEASURED = ((6, 120, 30), (6, 360, 90))  # chunks, samples of each, test samples of a task
CHECKED = ((8, 300, 40, 1), (5, 480, 60, 2))  # and evaluators


@dataclass(frozen=True)
class Costs:
    """Seconds of one processor or GPU: of a sample read, of one learned, of a test sample answered, of a commit.

    `background` is what driver, monitor and Ray take of the machine's processors all the time, `start` the seconds from
    the command to the first batch and from the last score to the end.
    """

    ingest: float
    learn: float
    answer: float
    commit: float = 0.0
    job: float = 0.0
    background: float = 0.0
    start: float = 0.0


@dataclass(frozen=True)
class Work:
    """A stream: samples of each chunk, and after each chunk the test samples of every task seen."""

    chunks: list[int]
    tests: list[list[float]]


@dataclass(frozen=True)
class Machines:
    """Who works: `processors` that all share (inf: each has its own), and the speed of the group of learners."""

    ingest: int = 2
    evaluators: int = 1
    speed: float = 1.0
    processors: float = math.inf
    look_ahead: int = 8


@dataclass
class Outcome:
    """Seconds until the last score, until the last chunk was learned, and how much of the time each stage worked."""

    end: float = 0.0
    learned: float = 0.0
    busy: dict[str, float] = field(default_factory=lambda: {"ingest": 0.0, "learner": 0.0, "evaluators": 0.0})


def simulate(work: Work, costs: Costs, machines: Machines, batch: int = 8) -> Outcome:
    """The run, event by event.

    All that works advances at one rate, min(1, processors left / how many work): an event queue over the work that
    each has done since the start ("virtual time") holds for any number of processors.
    """
    units = deque(
        (chunk, size / n, place == n - 1)
        for chunk, size in enumerate(work.chunks)
        for n in [max(1, min(UNITS, math.ceil(size / batch)))]
        for place in range(n)
    )
    ahead = max(1, machines.look_ahead)
    queue: list[tuple[float, int, str, Any]] = []  # (virtual end, number, stage, what)
    out, number, virtual, now = Outcome(), 0, 0.0, 0.0
    ready: dict[int, tuple[int, float, bool]] = {}  # prepared units by place
    given, taken, learning, answering, reading = 0, 0, False, 0, 0
    jobs: deque[float] = deque()
    left = max(machines.processors - costs.background, 1e-9)

    def begin(stage: str, seconds: float, what: Any) -> None:
        nonlocal number
        number += 1
        heapq.heappush(queue, (virtual + seconds, number, stage, what))
        out.busy[stage] += seconds

    def hand_out() -> None:
        nonlocal given, taken, learning, answering, reading
        while units and reading < machines.ingest and given - taken < ahead:
            unit = units.popleft()
            begin("ingest", costs.ingest * unit[1], (given, unit))
            given, reading = given + 1, reading + 1
        if not learning and taken in ready:
            unit = ready.pop(taken)
            taken, learning = taken + 1, True
            begin("learner", costs.learn * unit[1] / machines.speed + costs.commit * unit[2], unit)
        while jobs and answering < machines.evaluators:
            begin("evaluators", jobs.popleft(), None)
            answering += 1

    hand_out()
    while queue:
        end, _, stage, what = heapq.heappop(queue)
        now += (end - virtual) / min(1.0, left / (len(queue) + 1))
        virtual = end
        if stage == "ingest":
            ready[what[0]] = what[1]
            reading -= 1
        elif stage == "learner":
            learning = False
            if what[2]:
                out.learned = now
                jobs.extend(costs.answer * samples + costs.job for samples in work.tests[what[0]])
        else:
            answering -= 1
        hand_out()
    out.end = now
    servers = {"ingest": machines.ingest, "learner": 1, "evaluators": machines.evaluators}
    out.busy = {stage: seconds / servers[stage] / out.end if out.end else 0.0 for stage, seconds in out.busy.items()}
    return out


def stream_of(chunks: int, samples: float, tasks: int, tests: int, full_every: int, share: float) -> Work:
    """Tasks that come one after another, each as early as chunks allow; all samples evenly over the chunks."""
    seen = [max(1, math.ceil(tasks * (chunk + 1) / chunks)) for chunk in range(chunks)]
    of = [tests if (chunk + 1) % full_every == 0 or chunk == chunks - 1 else tests * share for chunk in range(chunks)]
    return Work([round(samples / chunks)] * chunks, [[n] * known for n, known in zip(of, seen, strict=True)])


@functools.cache
def embedded(chunks: int, samples: int, tests: int) -> Work:
    """The embedded stream's own chunks and tasks."""
    from streamcvit.pipeline import builtin, load_config
    from streamcvit.run.stream import prepare_stream

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(builtin("embedded"), shape(chunks, samples, tests), name="capacity", out=folder)
        index = prepare_stream(config, Path(folder) / "stream", lambda line: None)
        seen: set[str] = set()
        held: list[list[float]] = []
        for chunk in range(chunks):
            seen |= set(index.task_of[index.chunk_of == chunk].tolist())
            held.append([float(tests)] * len(seen))
        return Work([samples] * chunks, held)


def shape(chunks: int, samples: int, tests: int) -> list[str]:
    """Settings of a run of this size, without what takes evaluators' time as it comes."""
    return [
        f"stream.scenario.chunks={chunks}",
        f"stream.scenario.samples_per_chunk={samples}",
        f"stream.test_samples={tests}",
        "evaluation.probe_samples=0",
        "evaluation.audit=0",
        "evaluation.zero_shot=false",
        "evaluation.unseen=never",
        "learner.drift_samples=0",
    ]


def run(chunks: int, samples: int, tests: int, evaluators: int = 1) -> dict[str, Any]:
    """Wall and processor seconds of a real run with Ray actors."""
    from demo import measure

    words = ["run", "embedded", "--method", "smolora", "--name", "capacity"]
    for word in (*shape(chunks, samples, tests), f"cluster.evaluators={evaluators}", "cluster.ingest_actors=1"):
        words += ["--set", word]
    return measure([sys.executable, "-m", "streamcvit", *words])


def measured() -> tuple[Costs, list[dict[str, Any]]]:
    """Costs of the embedded stream on this machine, from runs of two sizes; the runs too."""
    runs = []
    for size in MEASURED:
        seen, work = run(*size), embedded(*size)
        answers, jobs = sum(map(sum, work.tests)), sum(map(len, work.tests))
        runs.append({**seen, "samples": sum(work.chunks), "answers": answers, "jobs": jobs, "size": size})
        print(
            f"{size[0]} chunks of {size[1]}, {size[2]} tests a task: {seen['wall']:.0f} s; CPU {seen['cpu']}",
            flush=True,
        )
    small, large = runs

    def slope(role: str, per: str) -> float:
        used = large["cpu"].get(role, 0.0) - small["cpu"].get(role, 0.0)
        return max(0.0, used / (large[per] - small[per]))

    others = [role for role in large["cpu"] if role not in ("LearnerActor", "EvaluatorActor", "IngestActor")]
    beside = sum(large["cpu"][role] - small["cpu"].get(role, 0.0) for role in others)
    costs = Costs(
        ingest=slope("IngestActor", "samples"),
        learn=slope("LearnerActor", "samples"),
        answer=slope("EvaluatorActor", "answers"),
        background=max(0.0, beside / (large["wall"] - small["wall"])),
    )
    # What a run takes beside what is followed: imports, the model, writing the stream, the report.
    rest = [one["wall"] - outcome(costs, *one["size"], 1).end for one in runs]
    return replace(costs, start=sum(rest) / len(rest)), runs


def outcome(costs: Costs, chunks: int, samples: int, tests: int, evaluators: int) -> Outcome:
    """A run of the embedded stream on this machine as the model has it."""
    import psutil

    there = Machines(ingest=1, evaluators=evaluators, processors=float(psutil.cpu_count() or 1))
    return simulate(embedded(chunks, samples, tests), costs, there)


def table(options: argparse.Namespace, costs: Costs) -> list[dict[str, Any]]:
    """The fastest split of each number of GPUs between learners and evaluators."""
    tests, tasks = options.test_samples, options.tasks
    work = stream_of(options.chunks, options.samples, tasks, tests, options.full_every, options.probe_share)
    rows = []
    for gpus in GPUS:
        best: dict[str, Any] = {}
        for learners in sorted({max(1, min(gpus - 1, round(gpus * part / 8))) for part in range(1, 8)}):
            speed = learners * (1 - options.overhead) ** math.log2(learners)
            if gpus == 1:
                there, asked = Machines(look_ahead=64, processors=1.0), replace(costs, ingest=0.0, background=0.0)
            else:
                there, asked = Machines(options.ingest * learners, gpus - learners, speed, look_ahead=64), costs
            found = simulate(work, asked, there, batch=32)
            if not best or found.end < best["seconds"]:
                best = {"gpus": gpus, "learners": learners, "evaluators": gpus - learners, "seconds": found.end}
                best |= {"behind": found.end - found.learned, "busy": found.busy}
        best["gpu_hours"] = best["seconds"] * gpus / 3600
        best["binds"] = max(best["busy"], key=best["busy"].__getitem__)
        rows.append(best)
    return rows


def show(rows: list[dict[str, Any]], price: float) -> None:
    """Rows of `table`, for people."""
    head = ("GPUs", "learn + score", "hours", "GPU hours", "cost", "behind")
    print("{:>4} {:>14} {:>9} {:>10} {:>10} {:>7}".format(*head), " busy: ingest, learner, evaluators")
    for row in rows:
        busy = ", ".join(f"{part:.0%}{' <-' if stage == row['binds'] else ''}" for stage, part in row["busy"].items())
        split = f"{row['learners']} + {row['evaluators']}"
        hours, behind = row["seconds"] / 3600, row["behind"] / row["seconds"]
        print(
            f"{row['gpus']:>4} {split:>14} {hours:>9.1f} {row['gpu_hours']:>10.0f} {price * row['gpu_hours']:>10.0f} "
            f"{behind:>7.0%}  {busy}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "check", "table"])
    parser.add_argument("--samples", type=float, default=1e9)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--test-samples", type=int, default=500)
    parser.add_argument("--full-every", type=int, default=1)
    parser.add_argument("--probe-share", type=float, default=0.1)
    parser.add_argument("--overhead", type=float, default=0.05, help="of a group's speed, lost at each doubling")
    parser.add_argument("--ingest", type=int, default=2, help="ingest actors a learner")
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU hour")
    parser.add_argument("--costs", type=Path, help="a JSON file with seconds: ingest, learn, answer, commit, job")
    options = parser.parse_args()
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if options.what == "measure":
        from streamcvit.run.folder import machine

        costs, runs = measured()
        kept = {"date": datetime.date.today().isoformat(), "machine": machine(), "costs": asdict(costs), "runs": runs}
        print("\n".join(f"{name}: {1e3 * value:.2f} ms" for name, value in asdict(costs).items()))
    elif not (options.costs or kept):
        sys.exit(f"{RESULT} is not there: run `python benchmarks/capacity.py measure` first, or give --costs")
    else:
        costs = Costs(**(json.loads(options.costs.read_text()) if options.costs else kept["costs"]))
    if options.what == "check":
        kept["checked"] = []
        for size in CHECKED:
            told, seen = outcome(costs, *size).end + costs.start, run(*size)["wall"]
            off = told / seen - 1
            kept["checked"].append({"size": size, "predicted": told, "seconds": seen, "off": off})
            print(f"{size[0]} chunks of {size[1]}, {size[2]} tests a task, {size[3]} evaluators: ", end="")
            print(
                f"predicted {told:.0f} s, took {seen:.0f} s, {off:+.0%}{'' if abs(off) <= GOAL else ' (past the goal)'}"
            )
    elif options.what == "table":
        rows = table(options, costs)
        show(rows, options.price)
        name = f"{options.samples:.0e} samples, {options.tasks} tasks, full every {options.full_every}"
        kept.setdefault("tables", {})[name] = rows
    if options.costs is None:
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
