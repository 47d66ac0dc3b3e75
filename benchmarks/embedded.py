"""Methods on the embedded streams: every rate chosen from one grid on tuning seeds, then fresh seeds once.

    python benchmarks/embedded.py tune                  # 5 rates x seeds 0-2 of every method of both pipelines
    python benchmarks/embedded.py confirm               # seeds 101-110 at the chosen rates
    python benchmarks/embedded.py time                  # trained parameters, step times side by side
    python benchmarks/embedded.py table                 # print the tables from the committed results

Runs are those of `streamcvit run PIPELINE --seeds ... --sweep learner.lr=...`, a method at a time. Each becomes one
line of benchmarks/results/embedded-streams.jsonl, and its folder is removed; what has a line is not run again, so a
command that was ended goes on when it is given again. A seed draws its own stream and the start of the adapter.
`--stream` takes other pipelines too (`my.yaml`); results of other `--set` settings have tables of their own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.config import RunConfig
from streamcvit.evaluation.paired import over_seeds
from streamcvit.learning.durable import write_text
from streamcvit.many import execute_many
from streamcvit.monitoring import RunRecord
from streamcvit.pipeline import load_config
from streamcvit.variants import Variant, variants

GRID = ("1e-4", "3e-4", "1e-3", "3e-3", "5e-3")
TUNING, CONFIRMING = "0-2", "101-110"
STREAMS = ("embedded", "embedded-hard")
RESULTS = Path(__file__).parent / "results" / "embedded-streams.jsonl"
METRICS = ("ap", "map", "bwt_first", "bwt_last", "bwt_max", "maf_best", "maf_cross", "mif")

Row = dict[str, Any]


class Book:
    """The lines of the results; a line that is there is never written again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, **facts: Any) -> bool:
        return any(all(row.get(key) == value for key, value in facts.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def of(self, **facts: Any) -> list[Row]:
        return [row for row in self.rows if all(row.get(key) == value for key, value in facts.items())]


def run(
    book: Book, phase: str, stream: str, method: str, settings: list[str], out: Path, local: bool, **several: Any
) -> None:
    """One method's runs of a phase that have no line yet."""
    folder = f"{phase}-{Path(stream).stem}-{method}"
    config = chosen(load_config(stream, settings, name=folder, out=str(out), **several), method)
    found = variants(config, lambda more: load_config(stream, [*settings, *more], name=folder, out=str(out)))
    facts = {"phase": phase, "stream": stream, "method": method, "settings": settings_of(settings)}
    todo = [v for v in found if not book.has(**facts, lr=rate_of(v.config, method), seed=v.config.seed)]
    if not todo:
        return
    print(f"{folder}: {len(todo)} of {len(found)} runs to do", flush=True)
    try:
        execute_many(config, todo, local=local, resume=(config.folder() / "config.yaml").exists())
    finally:
        for variant in todo:
            if (row := finished(variant, method)) is not None:
                book.add(facts | row)
                shutil.rmtree(variant.config.folder())
    shutil.rmtree(config.folder())


def chosen(config: RunConfig, method: str) -> RunConfig:
    return config.model_copy(update={"methods": {method: config.methods[method]}})


def settings_of(settings: Sequence[str]) -> str:
    """What differs from the pipeline and could tell in a result; methods' rates have a place of their own."""
    return " ".join(setting for setting in settings if not setting.startswith(("methods.", "cluster.", "monitor.")))


def rate_of(config: RunConfig, method: str) -> float:
    return config.methods[method].lr or config.learner.lr


def finished(variant: Variant, method: str) -> Row | None:
    """A run's line; None where it has not come to its end."""
    folder = variant.config.folder(method)
    if not (folder / "run.json").is_file() or not (record := RunRecord.load(folder)).finished:
        return None
    last = record.matrix()[-1]
    return {
        "lr": rate_of(variant.config, method),
        "seed": variant.config.seed,
        "metrics": {name: entry[0] for name in METRICS if (entry := record.metric(name)) is not None},
        "final": {task: float(value) for task, value in zip(record.tasks, last, strict=True)},
        "samples": record.total_samples,
        "chunks": record.n_chunks,
        **{key: record.run[key] for key in ("code", "machine", "started", "finished")},
    }


def best_rates(rows: Sequence[Row]) -> dict[str, float]:
    """Method -> the rate with the best mean AP on the tuning seeds, of those that all its seeds were run at."""
    aps: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        aps.setdefault(row["method"], {}).setdefault(row["lr"], []).append(row["metrics"]["ap"])
    found = {}
    for method, rates in aps.items():
        most = max(map(len, rates.values()))
        found[method] = max((lr for lr, own in rates.items() if len(own) == most), key=lambda lr: np.mean(rates[lr]))
    return found


def step_times(stream: str, methods: Sequence[str], settings: Sequence[str], steps: int = 60) -> Iterator[Row]:
    """Trained parameters, and thread CPU time of a step beside the first method's, all methods in turns on the same
    batches: the median ratio over the later two thirds, with quartiles."""
    from streamcvit.learning import OnlineLearner
    from streamcvit.run.loading import load_encoder, load_model, local_feed, routes, settle, wrap
    from streamcvit.run.ownkinds import strategy_of
    from streamcvit.run.stream import prepare_stream

    config = load_config(stream, [*settings, "stream.scenario.chunks=3", "stream.scenario.samples_per_chunk=160"])
    settle(config)
    learners = []
    spent: list[list[float]] = [[] for _ in methods]
    with tempfile.TemporaryDirectory() as folder:
        index = prepare_stream(config, Path(folder) / "stream")
        for method in methods:
            base, how = load_model(config), config.methods[method]
            encoder, strategy = load_encoder(config, base), strategy_of(config, method)
            model = wrap(base, encoder, config, method, index.tasks)
            learners.append(
                OnlineLearner(
                    base,
                    model,
                    strategy(config.seed, **how.strategy_options),
                    encoder=encoder if routes(model) else None,
                    lr=rate_of(config, method),
                    lrs=how.lrs,
                    seed=config.seed,
                )
            )
        feed = local_feed(config, str(Path(folder) / "stream"))
        for batch in itertools.islice(feed("stream", 0, 480), steps):
            for learner, own in zip(learners, spent, strict=True):
                began = time.thread_time()
                learner.learn(batch)
                own.append(time.thread_time() - began)
    times = np.array(spent)[:, steps // 3 :]
    for method, learner, own in zip(methods, learners, times, strict=True):
        low, middle, high = np.quantile(own / times[0], (0.25, 0.5, 0.75))
        trained = sum(parameter.numel() for parameter in learner.parameters)
        yield {"method": method, "trained": trained, "ratio": [middle, low, high], "step_ms": 1e3 * np.median(own)}


def tables(book: Book) -> Iterator[str]:
    """Markdown of everything in the results."""
    yield "# Results on the embedded streams\n"
    yield f"Printed by `python benchmarks/embedded.py table` from benchmarks/results/{book.path.name}.\n"
    groups = dict.fromkeys((row["stream"], row["settings"]) for row in book.rows)
    for stream, settings in groups:
        own = book.of(stream=stream, settings=settings)
        runs = [row for row in own if row["phase"] != "time"]
        title = stream + (f", {settings}" if settings else "")
        yield f"## {title}\n"
        if runs:
            where = "; ".join(sorted({f"{row['finished'][:10]} on {row['machine']}" for row in runs}))
            sizes = sorted({f"{row['chunks']} chunks, {row['samples']} samples" for row in runs})
            yield f"{'; '.join(sizes)}. One thread a run; {where}. Empty cells were not run.\n"
        yield from tuned_table([row for row in own if row["phase"] == "tune"])
        fresh = [row for row in own if row["phase"] == "confirm"]
        yield from fresh_table(fresh, own) if fresh else timed_table([row for row in own if row["phase"] == "time"])


def seeds_said(rows: Sequence[Row]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    return f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def tuned_table(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield f"Final AP by learning rate, mean over seeds {seeds_said(rows)}:\n"
    rates = sorted({row["lr"] for row in rows})
    yield "| method | " + " | ".join(f"{lr:g}" for lr in rates) + " | chosen |"
    yield "|---|" + "---|" * (len(rates) + 1)
    for method, best in best_rates(rows).items():
        by_rate = [[r["metrics"]["ap"] for r in rows if (r["method"], r["lr"]) == (method, lr)] for lr in rates]
        cells = [f"{np.mean(aps):.1f}" if aps else "" for aps in by_rate]
        yield f"| {method} | {' | '.join(cells)} | {best:g} |"
    yield ""


def fresh_table(rows: Sequence[Row], own: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield f"Seeds {seeds_said(rows)} at these rates, run once: mean, 95 % interval over seeds (Student's t):\n"
    yield "| method | " + " | ".join(METRICS) + " | of joint | trained | step of LoRA's |"
    yield "|---|" + "---|" * (len(METRICS) + 3)
    joint = {row["seed"]: row["metrics"]["ap"] for row in rows if row["method"] == "joint"}
    timed = {row["method"]: row for row in own if row["phase"] == "time"}
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == method]
        cells = [interval([r["metrics"][name] for r in found if name in r["metrics"]]) for name in METRICS]
        shares = [row["metrics"]["ap"] / joint[row["seed"]] for row in found if row["seed"] in joint]
        cells.append(interval(shares, 2) if method != "joint" else "")
        if method in timed:
            middle, low, high = timed[method]["ratio"]
            cells += [f"{timed[method]['trained']:,}", f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
        else:
            cells += ["", ""]
        yield f"| {method} | {' | '.join(cells)} |"
    yield ""


def timed_table(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "| method | trained | step of LoRA's |"
    yield "|---|---|---|"
    for row in rows:
        middle, low, high = row["ratio"]
        yield f"| {row['method']} | {row['trained']:,} | {middle:.2f} [{low:.2f}, {high:.2f}] |"
    yield ""


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and half-width of Student's 95 % interval."""
    if not values:
        return "-"
    found = over_seeds(values)
    half = "" if np.isnan(found.low) else f" ± {found.high - found.value:.{digits}f}"
    return f"{found.value:.{digits}f}{half}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "confirm", "time", "table"))
    parser.add_argument("--stream", nargs="*", default=STREAMS, help="pipelines, by name or path")
    parser.add_argument("--method", nargs="*", help="methods of theirs; all that learn, unless told")
    parser.add_argument("--rates", nargs="*", default=GRID, help="the grid")
    parser.add_argument("--seeds", help=f"{TUNING} to tune, {CONFIRMING} to confirm, unless told")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder for runs that go on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--local", action="store_true", help="one run after another, without Ray")
    given = parser.parse_args(arguments)
    book = Book(given.results)
    for stream in given.stream if given.what != "table" else ():
        methods = load_config(stream, given.set).methods
        learning = [m for m in given.method or methods if m in methods and methods[m].adapter != "none"]
        facts = {"stream": stream, "settings": settings_of(given.set)}
        best = best_rates(book.of(phase="tune", **facts))
        if given.what == "time":
            measured = list(step_times(stream, sorted(learning, key=lambda m: m != "lora"), given.set))
            book.rows = [row for row in book.rows if not (row["phase"] == "time" and facts.items() <= row.items())]
            for row in measured:
                book.add({"phase": "time", **facts, **row})
            continue
        for method in learning:
            how = {"book": book, "phase": given.what, "stream": stream, "method": method, "out": given.out}
            how |= {"local": given.local, "settings": list(given.set)}
            if given.what == "tune":
                several = {"seeds": given.seeds or TUNING, "sweep": {"learner.lr": list(given.rates)}}
                run(**how, **several)
            elif method in best:
                how["settings"].append(f"methods.{method}.lr={best[method]:g}")
                run(**how, seeds=given.seeds or CONFIRMING)
            else:
                print(f"{stream}: {method} has no rate yet; tune it first", flush=True)
    print("\n".join(tables(book)))


if __name__ == "__main__":
    main()
