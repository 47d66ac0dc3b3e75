"""What a run's answers are worth sample by sample, read from its files of predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamcvit.errors import UserError
from streamcvit.evaluation.paired import Points
from streamcvit.monitoring.record import RunRecord

FAMILIES = {"strict": "score", "strcvit": "score_strcvit"}
"""Family of scorers -> the column of a file of predictions that holds its points."""
FORMS = {"strict": "follows", "strcvit": "follows_strcvit"}
"""The same of whether the answer keeps to the demanded form; a file may lack the second."""


@dataclass
class Answers:
    """All answers of a run, as points.

    Attributes:
        ids: task -> its test samples, in their order.
        points: family -> task -> points [T, n], nan what was not scored.
        follows: family -> task -> whether the answer keeps to the demanded form [T, n], nan what was not judged.
        zero: family -> task -> points [n] before any learning.
    """

    ids: dict[str, list[str]] = field(default_factory=dict)
    points: dict[str, dict[str, np.ndarray]] = field(default_factory=lambda: {family: {} for family in FAMILIES})
    follows: dict[str, dict[str, np.ndarray]] = field(default_factory=lambda: {family: {} for family in FAMILIES})
    zero: dict[str, dict[str, np.ndarray]] = field(default_factory=lambda: {family: {} for family in FAMILIES})

    def tasks(self, family: str) -> list[str]:
        """The tasks that a family's rules judge."""
        return [task for task, points in self.points[family].items() if np.isfinite(points).any()]


def read_answers(record: RunRecord) -> Answers:
    """The answers of a run's every evaluation at a chunk's end, and of the one before any learning.

    Raises:
        UserError: a file of predictions is missing or damaged.
    """
    found = Answers()
    tables: dict[tuple[int, str], dict[str, Any]] = {}
    rows = [row for row in record.scores if row["family"] == "strict" and row["kind"] in ("boundary", "unseen", "zero")]
    rows.sort(key=lambda row: (record.tasks.index(row["task"]) if row["task"] in record.tasks else -1, row["chunk"]))
    for row in rows:
        task, chunk = row["task"], int(row["chunk"])
        if task not in record.tasks or not chunk < record.n_chunks:
            continue
        key = int(row["version"]), task
        if row["kind"] == "zero" and not (record.folder / "predictions" / "zero").is_dir():
            continue  # then there is no forward transfer, and all else
        if key not in tables:
            tables[key] = _read(record.folder, *key, zero=row["kind"] == "zero")
        table = tables[key]
        places = _places(found, task, table["sample_id"], record.n_chunks)
        for family, column in FAMILIES.items():
            if row["kind"] == "zero":
                zero = found.zero[family].setdefault(task, np.full(len(found.ids[task]), np.nan))
                zero[places] = table[column]
            else:
                found.points[family][task][chunk, places] = table[column]
                found.follows[family][task][chunk, places] = table[FORMS[family]]
    if not any(np.isfinite(told).any() for told in found.follows["strcvit"].values()):
        found.follows["strcvit"] = found.follows["strict"]  # tasks have the one rule of form
    return found


def points_of(record: RunRecord, answers: Answers, family: str = "strict", like: Answers | None = None) -> Points:
    """A run's points as metrics take them, the tasks in the plan's order.

    Args:
        record: the run.
        answers: its answers.
        family: whose points; tasks that it does not judge count in no average.
        like: another run's answers to the same samples, whose order of samples is kept.
    """
    scores, follows, zero = {}, {}, {}
    judged = set(answers.tasks(family))
    nothing = np.full((record.n_chunks, 0), np.nan)
    for task in record.tasks:
        order = _order(answers.ids.get(task, []), like.ids.get(task, []) if like else None)
        scores[task] = answers.points[family].get(task, nothing)[:, order]
        follows[task] = answers.follows[family].get(task, nothing)[:, order]
        if task in answers.zero[family] and len(answers.zero[family][task]) == len(order):
            zero[task] = answers.zero[family][task][order]
    counted = [task for task, held in zip(record.tasks, record.in_average, strict=True) if held and task in judged]
    in_mif = (record.config.get("evaluation") or {}).get("mif_tasks") or record.tasks
    if family != "strict":
        in_mif = [task for task in in_mif if np.isfinite(follows.get(task, nothing)).any()]
    return Points(scores, follows, record.plan, counted, zero, in_mif)


def same_samples(one: Answers, other: Answers) -> bool:
    """Whether two runs were asked the same test samples."""
    return one.ids.keys() == other.ids.keys() and all(set(one.ids[t]) == set(other.ids[t]) for t in one.ids)


def _order(ids: list[str], like: list[str] | None) -> list[int]:
    if like is None or ids == like:
        return list(range(len(ids)))
    place = {name: k for k, name in enumerate(ids)}
    return [place[name] for name in like]


def _places(found: Answers, task: str, names: list[str], chunks: int) -> list[int]:
    """Where a table's samples stand; those that no table had before are added."""
    ids = found.ids.setdefault(task, [])
    place = {name: k for k, name in enumerate(ids)}
    fresh = [name for name in names if name not in place]
    if fresh or task not in found.points["strict"]:
        place |= {name: len(ids) + k for k, name in enumerate(fresh)}
        ids += fresh
        for held in (*found.points.values(), *found.follows.values()):
            old = held.get(task, np.full((chunks, 0), np.nan))
            held[task] = np.concatenate([old, np.full((chunks, len(fresh)), np.nan)], axis=1)
        for zero in found.zero.values():
            if task in zero:
                zero[task] = np.concatenate([zero[task], np.full(len(fresh), np.nan)])
    return [place[name] for name in names]


def _read(folder: Path, version: int, task: str, zero: bool) -> dict[str, Any]:
    # A task's name comes from data: one with a path in it must not lead out of the run folder.
    names = ["zero"] if zero else [f"{version:08d}", str(version), *([] if version else ["zero"])]
    paths = [folder / "predictions" / name / f"{task}.parquet" for name in names if Path(task).name == task]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        where = str(folder / "predictions" / names[0] / f"{task}.parquet")
        raise UserError("the answers of an evaluation are missing", where=where, fix="Restore the file from a copy")
    try:
        schema = pq.read_schema(path)
        names = [name for name in (*FAMILIES.values(), *FORMS.values()) if name in schema.names]
        table = pq.read_table(path, columns=["sample_id", *names], page_checksum_verification=True)
        nothing = np.full(len(table), np.nan)
        return {
            "sample_id": [str(name) for name in table["sample_id"].to_pylist()],
            **{column: _numbers(table[column]) if column in names else nothing for column in FAMILIES.values()},
            **{form: _numbers(table[form].cast(pa.int8())) if form in names else nothing for form in FORMS.values()},
        }
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"cannot be read ({why:.160})", where=str(path), fix="Restore the file from a copy") from None


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()
