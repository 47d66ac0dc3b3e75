"""AP over the share of replay in what a step learns, for each kind of memory, on the embedded stream.

    python benchmarks/replay_share.py [--seeds 0-2] [--shares 0.1 0.25 0.5 0.75] [--only replay ...] [--full-size]
    python benchmarks/replay_share.py --table    # print it again, and draw it, from the committed results

LoRA without replay, with each kind of memory at each share, and joint training learn a seed's stream, each in a run of
its own, which is one line of results/replay_share.jsonl; one that is there is not run again. Draws
docs/images/replay_share.png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.evaluation.paired import over_seeds
from streamcvit.launch import execute
from streamcvit.monitoring.record import RunRecord
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.folder import machine
from streamcvit.variants import parse_seeds

RESULTS = Path(__file__).parent / "results" / "replay_share.jsonl"
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "replay_share.png"
LORA: dict[str, Any] = {"adapter": "lora", "options": {"r": 16, "lora_alpha": 32}, "lr": 1e-3}
KINDS = ("replay", "replay-balanced", "replay-loss")
SHOWN = ("ap", "bwt_last", "maf_best")
DEMO = ("stream.scenario.samples_per_chunk=180", "stream.test_samples=40")
"""The demo's part of the benchmark."""
MEMORY = 64


def methods_of(kinds: Sequence[str], shares: Sequence[float]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Kind, share of replay and settings of each method."""
    yield "lora", 0.0, LORA
    for share in shares:
        for kind in kinds:
            yield kind, share, LORA | {"strategy": kind, "strategy_options": {"memory": MEMORY, "share": share}}
    yield "joint", 0.0, LORA | {"order": "joint", "lr": 3e-3}


def learn(seed: int, kind: str, share: float, settings: dict[str, Any], size: str) -> dict[str, Any]:
    """The row of one method, of a run in this process; a seed's stream is the same in all of them."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"methods={json.dumps({'mine': settings})}", f"seed={seed}", f"out={folder}", "evaluation.draws=100"]
        config = load_config(builtin("embedded"), [*given, "name=run", *(DEMO if size == "demo" else ())])
        execute(config, local=True)
        record = RunRecord.load(config.folder("mine"))
    metrics = {key: round(entry[0], 3) for key in SHOWN if (entry := record.metric(key))}
    busy = round(sum(event["busy_s"] for event in record.chunk_events()), 2)
    when = {"machine": machine(), "date": datetime.date.today().isoformat()}
    return {"kind": kind, "share": share, "seed": seed, "size": size, "busy_s": busy, **metrics, **when}


def load() -> list[dict[str, Any]]:
    """The committed rows."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Kinds by shares: mean over seeds with Student's 95 % interval, and time to learn as a ratio to plain LoRA's."""
    for size in dict.fromkeys(row["size"] for row in rows):
        groups: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["size"] == size:
                groups[row["kind"], row["share"]].append(row)
        plain = {row["seed"]: row["busy_s"] for row in groups["lora", 0.0]}
        yield f"{size} size, memory {MEMORY}, {', '.join(sorted({row['machine'] for row in rows}))}"
        yield ""
        yield "| memory | share | seeds | AP | BWT last | MAF best | learning time / LoRA |"
        yield "|---|---|---|---|---|---|---|"
        for (kind, share), own in sorted(groups.items(), key=lambda item: _place(*item[0])):
            cells = [_said([row[name] for row in own if name in row]) for name in SHOWN]
            ratio = np.mean([row["busy_s"] / plain[row["seed"]] for row in own if row["seed"] in plain])
            yield f"| {kind} | {share:g} | {len(own)} | {' | '.join(cells)} | {ratio:.2f} |"
        yield ""


def _place(kind: str, share: float) -> tuple[int, float]:
    return ("lora", *KINDS, "joint").index(kind), share


def _said(values: list[float]) -> str:
    if not values:
        return ""
    mean, low, high = over_seeds(values)
    return f"{mean:.1f}" if math.isnan(low) else f"{mean:.1f} ± {(high - low) / 2:.1f}"


def draw(rows: list[dict[str, Any]]) -> None:
    """The curve of AP: a line a kind, share 0 being plain LoRA, and joint training as a bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()

    def mean(kind: str, share: float) -> tuple[float, float, float]:
        middle, low, high = over_seeds([r["ap"] for r in rows if (r["kind"], r["share"]) == (kind, share)])
        return (middle, middle, middle) if math.isnan(low) else (middle, low, high)

    for place, kind in enumerate(kind for kind in KINDS if any(r["kind"] == kind for r in rows)):
        shares = sorted({r["share"] for r in rows if r["kind"] == kind})
        points = np.array([mean("lora", 0.0), *(mean(kind, share) for share in shares)])
        x = np.array([0.0, *shares]) + 0.006 * (place - 1)
        around = np.abs(points[:, 1:].T - points[:, 0])
        axes.errorbar(x, points[:, 0], around, marker="os^"[place], markersize=4, capsize=2, linewidth=1.2, label=kind)
    axes.axhline(mean("joint", 0.0)[0], color="#555", linestyle="--", linewidth=1, label="joint training")
    axes.set(xlabel="share of replay in what a step learns (0: plain LoRA)", ylabel="AP, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--shares", nargs="*", type=float, default=(0.1, 0.25, 0.5, 0.75))
    parser.add_argument("--only", nargs="*", default=KINDS, choices=KINDS, help="kinds of memory")
    parser.add_argument("--full-size", action="store_true", help="all samples and test questions of the benchmark")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    size = "full" if given.full_size else "demo"
    for seed in () if given.table else parse_seeds(given.seeds):
        there = {(row["kind"], row["share"]) for row in load() if (row["seed"], row["size"]) == (seed, size)}
        for kind, share, settings in methods_of(given.only, given.shares):
            if (kind, share) not in there:
                row = learn(seed, kind, share, settings, size)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    rows = load()
    if not any(row["size"] == size for row in rows):
        raise SystemExit(f"no results of {size} size in {RESULTS.name}: run it without --table first")
    print("\n".join(table(rows)))
    draw([row for row in rows if row["size"] == size])


if __name__ == "__main__":
    main()
