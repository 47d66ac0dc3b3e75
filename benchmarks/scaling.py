"""Samples a second that a group of learners learns, by number of ranks, and what travels between them a step.

    python benchmarks/scaling.py [--ranks 1 2 4] [--adapter smolora] [--batch 16] [--micro 4] [--json FILE]

Each rank is a process with one thread and the embedded base of its own; all learn the same batches, collated before.
Every round measures every number of ranks in both modes, in an order drawn anew, so that other work on the machine
meets all of them alike. "efficiency" is the median over rounds of a row's samples a second over ranks times that
round's of one rank; a machine with fewer cores than ranks cannot tell it. "sent" are bytes that all ranks together send
a step, by count, also as a multiple of what the adapter's trained weights take.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from streamcvit.adapters import InstructionEncoder, attach
from streamcvit.embedded.tasks import TASKS, train_samples
from streamcvit.learning import OnlineLearner
from streamcvit.learning.meeting import Lead, Meeting, Member
from streamcvit.models.base import load_base
from streamcvit.models.batch import Batch
from streamcvit.models.snapshot import adapter_state, load_adapter_state
from streamcvit.models.vision import vision_dim
from streamcvit.run.folder import machine

WARM_UP = 2  # steps before the clock starts


def learner_of(options: argparse.Namespace) -> OnlineLearner:
    """The embedded base with a fresh adapter, the same in every process."""
    base = load_base("embedded", device="cpu", dtype="float32")
    encoder = InstructionEncoder.load("tokens", base.model, base.tokenizer)
    sizes = {"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)}
    model = attach(base.model, options.adapter, seed=0, sizes=sizes)
    return OnlineLearner(base, model, encoder=encoder, micro_batch=options.micro)


def batches_of(learner: OnlineLearner, options: argparse.Namespace) -> list[Batch]:
    """Batches of all tasks in turn."""
    count = (options.steps + WARM_UP) * options.batch
    each = -(-count // len(TASKS))
    rows = [row for group in zip(*(train_samples(task, each, 0) for task in TASKS), strict=True) for row in group]
    found = []
    for start in range(0, count, options.batch):
        samples = tuple(rows[start : start + options.batch])
        micro = learner.base.collator.micro_batches(samples, options.micro)
        stop = start + options.batch
        found.append(Batch(start, stop, 0, tuple(range(start, stop)), samples, None, micro=micro))
    return found


def measure(learner: OnlineLearner, batches: list[Batch]) -> float:
    """Seconds of all steps but those before the clock starts."""
    began = 0.0
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            began = time.perf_counter()
        learner.learn(batch)
    return time.perf_counter() - began


def work(rank: int, options: argparse.Namespace, plan: list[tuple[int, int, str]], folder: str) -> None:
    """What each process does: its part of every measurement in turn; rank 0 writes what came of it."""
    torch.set_num_threads(1)
    learner = learner_of(options)
    batches, start = batches_of(learner, options), adapter_state(learner.model)
    for number, (_, ranks, mode) in enumerate(plan):
        if rank >= ranks:
            continue
        load_adapter_state(learner.model, start)
        learner.optimizer.state.clear()
        learner.step, learner.cursor, learner.chunk, learner.group = 0, 0, -1, None
        place = Path(folder) / f"{number}"
        row: dict[str, Any] = {"ranks": ranks, "mode": mode}
        if ranks == 1:
            seconds, sent = measure(learner, batches), 0
        elif rank == 0:
            lead = Lead(ranks, mode == "exact")
            lead.alive = lambda place=place, lead=lead: tell(place, lead.meeting)  # type: ignore[misc]
            lead.meet(torch.device("cpu"))
            learner.group = lead
            seconds = measure(learner, batches)
            lead.tell("sent")
            sent = lead.sent + sum(lead.answers())
            row["overlapped"] = 0.0 if lead._buckets is None else lead._buckets.overlapped
            lead.tell("end")
            lead.answers()
            lead.close()
        else:
            group = Member(rank, ranks, mode == "exact", where=partial(meeting_at, place))
            group.meet(torch.device("cpu"))
            learner.group = group
            measure(learner, batches)
            for _ in range(2):
                group.hear()
                group.answer(group.sent)
            group.close()
            continue
        row |= {"seconds": seconds, "sent": sent / len(batches)}
        row["adapter_bytes"] = sum(p.nbytes for p in learner.parameters)
        write(Path(folder) / f"{number}.row", row)


def tell(place: Path, meeting: Meeting | None) -> None:
    """Let the other processes know where the group meets."""
    if meeting is not None and not place.exists():
        write(place, [meeting.host, meeting.port, meeting.number])


def meeting_at(place: Path) -> Meeting | None:
    """Where the group meets, as soon as it is known."""
    return Meeting(*json.loads(place.read_text())) if place.exists() else None


def write(path: Path, value: Any) -> None:
    """A file that is there whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value))
    draft.rename(path)


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure; one row a number of ranks and mode."""
    modes = [(ranks, mode) for ranks in options.ranks for mode in (("exact", "fast") if ranks > 1 else ("alone",))]
    rng, plan = np.random.default_rng(options.seed), []
    for round_ in range(options.rounds):
        plan += [(round_, *modes[place]) for place in rng.permutation(len(modes))]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (options, plan, folder), nprocs=max(options.ranks))
        found = [json.loads((Path(folder) / f"{number}.row").read_text()) for number in range(len(plan))]
    samples = options.steps * options.batch
    rates: dict[tuple[int, int, str], float] = {
        key: samples / row["seconds"] for key, row in zip(plan, found, strict=True)
    }
    return [summary(options, ranks, mode, rates, found) for ranks, mode in modes]


def summary(
    options: argparse.Namespace,
    ranks: int,
    mode: str,
    rates: dict[tuple[int, int, str], float],
    found: list[dict[str, Any]],
) -> dict[str, Any]:
    """One row over all rounds."""
    own = [rates[round_, ranks, mode] for round_ in range(options.rounds)]
    mine = [row for row in found if (row["ranks"], row["mode"]) == (ranks, mode)]
    row = {"ranks": ranks, "mode": mode, "samples_per_second": [float(q) for q in np.quantile(own, (0.5, 0.25, 0.75))]}
    row |= {"sent_bytes": mine[0]["sent"], "adapter_bytes": mine[0]["adapter_bytes"]}
    row["sent_of_adapter"] = row["sent_bytes"] / row["adapter_bytes"]
    if "overlapped" in mine[0]:
        row["buckets_sent_in_backward"] = mine[0]["overlapped"]
    alone = [rates.get((round_, 1, "alone")) for round_ in range(options.rounds)]
    if ranks <= (os.cpu_count() or 1) and all(alone):
        ratios = [rate / (ranks * one) for rate, one in zip(own, alone, strict=True) if one]
        row["efficiency"] = [float(q) for q in np.quantile(ratios, (0.5, 0.25, 0.75))]
    return row


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The rows as a Markdown table."""
    yield "| ranks | mode | samples/s | efficiency | sent a step, KiB | of the adapter |"
    yield "|---|---|---|---|---|---|"
    for row in facts["rows"]:
        middle, low, high = row["samples_per_second"]
        told = "{:.2f} [{:.2f}, {:.2f}]".format(*row["efficiency"]) if "efficiency" in row else "-"
        yield (
            f"| {row['ranks']} | {row['mode']} | {middle:.1f} [{low:.1f}, {high:.1f}] | {told} | "
            f"{row['sent_bytes'] / 1024:.0f} | {row['sent_of_adapter']:.2f} |"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--adapter", default="smolora")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of the ranks: torch warns of every second that one waits
    today = datetime.date.today().isoformat()
    facts = {"machine": machine(), "torch": torch.__version__, "date": today, "settings": {}, "rows": rows_of(options)}
    facts["settings"] = {key: value for key, value in vars(options).items() if key != "json"}
    print(
        f"{options.adapter} on the embedded base, batches of {options.batch} in micro-batches of {options.micro}, "
        f"{facts['rows'][0]['adapter_bytes'] / 1024:.0f} KiB of trained weights; {machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {options.rounds} rounds of {options.steps} steps, {today}\n"
    )
    print("\n".join(lines(facts)))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
