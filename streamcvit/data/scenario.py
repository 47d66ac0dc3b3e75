"""Scenarios: published and generated chunk plans, fitted to the samples there are, and the order they give."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources

import numpy as np

from streamcvit.data.plan import Plan
from streamcvit.errors import UserError

_GROUP = "+"


def strcvit_25() -> Plan:
    """The published StrCVIT stream: 25 chunks of 2,000, mixture and order as recovered from its repository.

    Four tasks share one instruction there and are one column, `ad+gqa+rs+vqav2` (see `resolve_groups`).
    """
    record = json.loads(resources.files(__package__).joinpath("strcvit_25.json").read_text())
    labels = [np.frombuffer(chunk.encode(), dtype=np.uint8) - ord("0") for chunk in record["labels"]]
    counts = [np.bincount(chunk, minlength=len(record["tasks"])) for chunk in labels]
    return Plan(tuple(record["tasks"]), np.array(counts), np.concatenate(labels))


def cut(plan: Plan, how: str, chunks: int) -> Plan:
    """An ordered plan shortened to its `first` chunks, or its whole order cut anew (`recut`) into so many.

    Raises:
        UserError: it has not so many chunks, or samples, or no order.
    """
    if plan.labels is None:
        raise UserError("a plan without an order cannot be cut", fix="Choose another preset")
    if not 1 <= chunks <= (len(plan) if how == "first" else len(plan.labels)):
        there = f"{len(plan)} chunks" if how == "first" else f"{len(plan.labels)} samples"
        raise UserError(
            f"{chunks} chunks are asked for; the stream has {there}",
            where="stream.scenario.preset",
            fix="Ask for others",
        )
    if how == "first":
        counts = plan.counts[:chunks]
        return Plan(plan.tasks, counts, plan.labels[: counts.sum()])
    parts = np.array_split(plan.labels, chunks)
    return Plan(plan.tasks, np.array([np.bincount(part, minlength=len(plan.tasks)) for part in parts]), plan.labels)


PRESETS: dict[str, Callable[[], Plan]] = {
    "strcvit-25": strcvit_25,
    "strcvit-15-first": lambda: cut(strcvit_25(), "first", 15),
    "strcvit-20-first": lambda: cut(strcvit_25(), "first", 20),
    "strcvit-15-recut": lambda: cut(strcvit_25(), "recut", 15),
    "strcvit-20-recut": lambda: cut(strcvit_25(), "recut", 20),
}
"""Plans by name. Only `strcvit-25` is published: the papers print results after 15 and 20 chunks but no such split,
so the others are ours: the first 15 or 20 of the 25 chunks, and the whole stream cut anew into 15 or 20."""


def task_incremental(available: Mapping[str, int], samples_per_task: int | None = None) -> Plan:
    """One task a chunk, in the order given, as in CoIN and CVIT; each task with all its samples or the first few.

    A task without samples, one that is only tested, has no chunk.
    """
    sizes = np.array([min(n, samples_per_task) if samples_per_task else n for n in available.values()], dtype=np.int64)
    return Plan(tuple(available), np.diag(sizes)[sizes > 0])


def generate(
    tasks: Sequence[str],
    chunks: int,
    samples_per_chunk: int,
    seed: int,
    *,
    tasks_per_chunk: int | tuple[int, int] = (2, 4),
    recurrence_gap: int = 0,
    drift: float = 0.5,
    concentration: float = 1.0,
) -> Plan:
    """A seeded plan of changing mixtures. Every task comes at least once if there is room for it.

    Args:
        tasks: names.
        chunks: how many.
        samples_per_chunk: each chunk holds exactly so many.
        seed: same arguments and seed, same plan.
        tasks_per_chunk: how many tasks are active in a chunk, or the (least, most) of a uniform draw.
        recurrence_gap: a task that was active stays away for at least so many chunks.
        drift: 0 keeps each task's weight for the whole stream, 1 draws it anew for every chunk.
        concentration: of the Dirichlet that weights are drawn from; small gives one-sided mixtures, large even ones.

    Raises:
        UserError: controls that contradict each other (the message says which).
    """
    least, most = (tasks_per_chunk, tasks_per_chunk) if isinstance(tasks_per_chunk, int) else tasks_per_chunk
    if not 1 <= least <= most <= len(tasks):
        raise UserError(f"{least} to {most} tasks a chunk cannot be drawn from {len(tasks)} tasks")
    needed = most * (recurrence_gap + 1)
    if needed > len(tasks):
        raise UserError(
            f"{most} tasks a chunk with a gap of {recurrence_gap} need {needed} tasks; there are {len(tasks)}",
            fix="Lower tasks_per_chunk or recurrence_gap",
        )
    if chunks < 1 or samples_per_chunk < most:
        raise UserError(f"{chunks} chunks of {samples_per_chunk} samples cannot hold {most} tasks each")
    if not 0 <= drift <= 1 or concentration <= 0:
        raise UserError("drift lies between 0 and 1, concentration above 0")
    rng = np.random.default_rng([seed, 1])
    spread = np.full(len(tasks), concentration)
    weights = rng.dirichlet(spread)
    last = np.full(len(tasks), -chunks - recurrence_gap - 1)
    counts = np.zeros((chunks, len(tasks)), dtype=np.int64)
    for chunk in range(chunks):
        if chunk:
            weights = (1 - drift) * weights + drift * rng.dirichlet(spread)
        size, absent, new = int(rng.integers(least, most + 1)), chunk - last - 1, last < 0
        ready = np.flatnonzero(absent >= recurrence_gap)
        # Gumbel noise on log-odds draws without replacement; a longer absence makes a return likelier.
        odds = np.log1p(absent[ready]) + rng.gumbel(size=len(ready))
        if new.sum() >= least * (chunks - chunk):
            odds[new[ready]] += 1e9  # the last chunks that can still bring every task
        active = ready[np.argsort(-odds, kind="stable")[:size]]
        last[active] = chunk
        shares = weights[active] / weights[active].sum()
        counts[chunk, active] = 1 + share_out(samples_per_chunk - size, shares)
    return Plan(tuple(tasks), counts)


def share_out(total: int, shares: np.ndarray) -> np.ndarray:
    """`total` split into integers in proportion to `shares` [n], by largest remainder; ties go to the earlier."""
    exact = total * shares / max(shares.sum(), 1e-300)
    counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - counts), kind="stable")[: total - counts.sum()]
    counts[rest] += 1
    return counts


def scale_plan(plan: Plan, available: Mapping[str, int], exhaust: bool = False) -> Plan:
    """The plan fitted to the samples there are; its published order, if it had one, is lost where counts change.

    Args:
        plan: what to fit.
        available: samples there are of each task.
        exhaust: every task gives all its samples, spread over the chunks as the plan spreads them (chunks may change
            their size). Otherwise the whole plan shrinks by one factor until every task suffices: mixtures stay.

    Raises:
        UserError: `exhaust` where the plan gives a task no chunk.
    """
    plan = resolve_groups(plan, available)
    totals = plan.totals
    if exhaust:
        if absent := [task for task, n in available.items() if n and not totals.get(task)]:
            raise UserError(f"the plan gives task {absent[0]!r} no chunk", fix="Give it counts, or leave the task out")
        columns = [share_out(available.get(task, 0), plan.counts[:, place]) for place, task in enumerate(plan.tasks)]
        return Plan(plan.tasks, np.stack(columns, axis=1))
    factor = min([1.0, *(available.get(task, 0) / n for task, n in totals.items() if n)])
    return plan if factor == 1 else Plan(plan.tasks, np.floor(plan.counts * factor + 1e-9).astype(np.int64))


def resolve_groups(plan: Plan, available: Mapping[str, int]) -> Plan:
    """Share each group's samples (`gqa+vqav2`) out among those of its tasks that are available.

    Each chunk takes from the members in proportion to what is left of them, so they last equally long. A published
    order stays: the group's places are dealt out evenly.
    """
    tasks: list[str] = []
    columns: list[np.ndarray] = []
    members_of: dict[int, list[int]] = {}
    for place, task in enumerate(plan.tasks):
        members = [name for name in task.split(_GROUP) if name in available]
        if _GROUP not in task or task in available or not members:
            members_of[place] = [len(tasks)]
            tasks.append(task)
            columns.append(plan.counts[:, place])
            continue
        left = np.array([available[name] for name in members], dtype=np.int64)
        shares = np.zeros((len(plan), len(members)), dtype=np.int64)
        for chunk, asked in enumerate(plan.counts[:, place].tolist()):
            shares[chunk] = share_out(asked, left if left.sum() >= asked else np.ones(len(left)))
            left = np.maximum(left - shares[chunk], 0)
        members_of[place] = list(range(len(tasks), len(tasks) + len(members)))
        tasks.extend(members)
        columns.extend(shares.T)
    counts = np.stack(columns, axis=1) if columns else plan.counts
    if tasks == list(plan.tasks):
        return plan
    return Plan(tuple(tasks), counts, None if plan.labels is None else _relabel(plan, counts, members_of))


def _relabel(plan: Plan, counts: np.ndarray, members_of: Mapping[int, list[int]]) -> np.ndarray:
    assert plan.labels is not None
    labels, chunk_of = np.empty_like(plan.labels), plan.chunk_of
    for place, members in members_of.items():
        for chunk in range(len(plan)):
            places = np.flatnonzero((plan.labels == place) & (chunk_of == chunk))
            dealt = np.repeat(members, counts[chunk, members])
            # A member's i-th of n samples comes at (i + 1/2) / n of the chunk: dealt evenly, without a draw.
            turn = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts[chunk, members]])
            labels[places] = dealt[np.argsort(turn, kind="stable")]
    return labels


def order(plan: Plan, available: Mapping[str, int], seed: int, shuffled: bool = True) -> Iterator[tuple[int, str, int]]:
    """The stream: (chunk, task, item) for every position, each item of a task at most once.

    Tasks are mixed uniformly within a chunk (or as published, where the plan has an order), and each task's items come
    in a seeded shuffle of all that are available; not `shuffled`, in their own order. Same arguments and seed, same
    stream.

    Raises:
        UserError: the plan asks for more samples of a task than there are.
    """
    for task, asked in plan.totals.items():
        there = sum(available.get(name, 0) for name in ([task] if task in available else task.split(_GROUP)))
        if asked > there:
            raise UserError(
                f"the plan asks for {asked} samples of task {task!r}; there are {there}",
                fix="Scale the plan to the samples there are (`scale_plan`), or give more samples",
            )
    return _draw(resolve_groups(plan, available), available, seed, shuffled)


def _draw(plan: Plan, available: Mapping[str, int], seed: int, shuffled: bool) -> Iterator[tuple[int, str, int]]:
    def items_of(task: str) -> Iterator[int]:
        if not shuffled:
            return iter(range(available[task]))
        # Seeded by name: another task in the plan leaves this one's order as it was.
        drawn = np.random.default_rng([seed, zlib.crc32(task.encode())]).permutation(available[task])
        return (int(item) for item in drawn)

    items = {task: items_of(task) for task, asked in plan.totals.items() if asked}
    rng, start = np.random.default_rng([seed, 2]), 0
    for chunk, row in enumerate(plan.counts):
        stop = start + int(row.sum())
        if plan.labels is None:
            labels = rng.permutation(np.repeat(np.arange(len(row)), row))
        else:
            labels = plan.labels[start:stop]
        start = stop
        for label in labels.tolist():
            task = plan.tasks[label]
            yield chunk, task, next(items[task])
