"""The batch-1 audit: which answers of the last boundary are given again one by one, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

SHOWN = 200
"""Characters of an answer that an event tells."""


def shares(tasks: Sequence[str], count: int, seed: int) -> dict[str, int]:
    """How many answers of each task are given again: `count` in all, evenly, what is over to tasks the seed draws."""
    if not tasks:
        return {}
    each, rest = divmod(count, len(tasks))
    more = set(np.random.default_rng([seed, 7]).permutation(len(tasks))[:rest].tolist())
    return {task: each + (number in more) for number, task in enumerate(tasks)}


def told(differ: Iterable[Any]) -> list[dict[str, str]]:
    """Disagreements (`streamcvit.evaluation.Disagreement`) as an event has them."""
    return [{"sample_id": d.sample_id, "batched": d.batched[:SHOWN], "alone": d.alone[:SHOWN]} for d in differ]


def summed(events: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The audits of all tasks (by task, their `audit` events), as `summary.json` has them."""
    differ = [{"task": task, **one} for task, event in sorted(events.items()) for one in event["differ"]]
    return {"asked": sum(event["asked"] for event in events.values()), "differ": differ}


def line(audit: Mapping[str, Any]) -> str:
    """What came of it, for people."""
    asked, differ = audit["asked"], audit["differ"]
    text = f"audit: {asked} answers given again one by one, {len(differ)} of them differ"
    if not differ:
        return text
    one = differ[0]
    return f"{text}; the first: {one['task']}/{one['sample_id']}: {one['alone']!r}, in its batch {one['batched']!r}"
