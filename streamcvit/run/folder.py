"""The one writer of a run folder: config, events, predictions, scores and their summary."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from streamcvit import __version__
from streamcvit.adapters.instruction import encoder_identity
from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.learning import commit as commits
from streamcvit.learning.durable import finite, write_json, write_text
from streamcvit.learning.grouping import MEGABATCH, order_digest
from streamcvit.learning.ledger import check_coverage
from streamcvit.run import audits
from streamcvit.run.boundaries import read_events
from streamcvit.run.loading import schedule_of
from streamcvit.run.messages import ChunkReport, Job, TaskScores
from streamcvit.run.origin import START, keep
from streamcvit.run.ownkinds import metrics_of
from streamcvit.run.predictions import read_predictions, write_predictions, write_table
from streamcvit.run.scores import ZERO, Scores
from streamcvit.run.unseen import scored_at

MISSING = "not installed"
INTERIM_DRAWS = 200
"""Draws of the intervals between a run's beginning and its end, where they come anew after every chunk."""
ONCE = ("chunk", "quarantine", "skipped", "damaged", "test_unreadable", "stream", "audit", "note", "guard", "set_aside")
"""Events that a replayed step, or every boundary, repeats."""


def now() -> str:
    """UTC, ISO 8601, seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> str:
    """What kind of machine this is, for the record of a figure."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = psutil.virtual_memory().total / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} x {name}, {memory:.0f} GiB{gpu}"


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("torch", "transformers", "peft", "ray", "webdataset", "pyarrow", "numpy", "tokenizers", "safetensors")
    found = {"streamcvit": __version__, "python": platform.python_version()}
    for name in (*names, "pillow"):
        try:
            found[name] = package_version(name)
        except PackageNotFoundError:
            found[name] = MISSING
    return found


def build_labels() -> dict[str, str]:
    """The labels of the build_info metric."""
    found = versions()
    return {"version": found["streamcvit"]} | {n: found[n] for n in ("python", "torch", "transformers", "peft", "ray")}


def code_version() -> str:
    """The package's version and a digest of its sources, so that an edited checkout is another version."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{__version__}+{digest.hexdigest()[:12]}"


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a method's run folder.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.keys() >= {"finished", "versions", "base_digest", "index_digest"}:
            return record
        reason = "keys are missing"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise UserError(f"cannot be read ({reason})", where=str(path), fix="Restore it from a copy") from None


def _git_commit() -> str:
    try:
        root = Path(__file__).resolve().parent
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


class RunFolder:
    """A method's run folder.

    Args:
        config: the run.
        method: a key of `config.methods`.
        index: the stream.
        counts: [T, tasks] samples of each task in each chunk, as this method reads the stream.
        base_digest: of the base model (`model_digest`).
    """

    def __init__(
        self, config: RunConfig, method: str, index: StreamIndex, counts: np.ndarray, base_digest: str
    ) -> None:
        self.config, self.method, self.index, self.base_digest = config, method, index, base_digest
        self.path = config.folder(method)
        self.tasks = list(index.tasks)
        self.counts = counts
        self.scored_at = scored_at(config, counts)  # [1 + T, tasks]
        self.scores = Scores(index, counts, config.evaluation.mif_tasks)
        self.quarantined: dict[int, list[int]] = {}  # by chunk
        self.forgetting: dict[str, float] = {}  # task -> points, as the summary on disk has it
        self._wrote, self._took = 0.0, 0.0  # when the summary was written, and in how many seconds
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "run.json").exists():
            write_text(self.path / "config.yaml", config.dump())
            self._write_plan()
            record = {
                "name": f"{config.name}/{method}",
                "method": method,
                "seed": config.seed,
                "versions": versions(),
                "code": code_version(),
                "git_commit": _git_commit(),
                "machine": machine(),
                "base_digest": base_digest,
                "instruction_encoder": {
                    "name": config.model.instruction_encoder,
                    "identity": encoder_identity(config.model.instruction_encoder),
                },
                "index_digest": index.identity,
                "started": now(),
                "finished": None,
            }
            if start := keep(config, method):
                record["start"] = start
            write_json(self.path / "run.json", record)
        elif index.identity != index.digest or index.follows:  # it may have grown since
            self._write_plan()
        self.start: dict[str, str] = read_run(self.path).get("start", {})
        events = self._read_events()
        self.noted = {self._key(event) for event in events if event.get("event") in ONCE}
        self.guarded = [event for event in events if event.get("event") == "guard"]
        self.audits = {event["task"]: event for event in events if event.get("event") == "audit"}
        self._read_predictions()

    @property
    def n_chunks(self) -> int:
        return len(self.counts)

    @property
    def goes_on(self) -> bool:
        """Whether more chunks may come."""
        return self.index.follows

    def grow(self, index: StreamIndex, counts: np.ndarray) -> None:
        """Go on with an index that has grown, and the counts of its chunks as this method reads them."""
        self.index, self.tasks, self.counts = index, list(index.tasks), counts
        self.scored_at = scored_at(self.config, counts)
        self.scores.grow(index, counts)
        self._write_plan()

    def to_score(self, chunk: int) -> list[str]:
        """Tasks to score after a chunk, or before any learning (`ZERO`)."""
        return [task for task, here in zip(self.tasks, self.scored_at[1 + chunk], strict=True) if here]

    def finished(self) -> bool:
        """Whether the run is complete."""
        return read_run(self.path)["finished"] is not None

    def check_ledger(self) -> None:
        """The newest commit is whole, and every position of the stream stands once in its ledger or is quarantined.

        Raises:
            UserError: names what is damaged or missing.
        """
        if self.n_chunks == 0:
            return
        newest = commits.newest_resumable(self.path / "commits")
        for what in newest[2] if newest else ():
            raise UserError(what, fix="Continue with --resume: what came after it is learned again")
        quarantined = {position for positions in self.quarantined.values() for position in positions}
        check_coverage(self.path / "ledger", int(self.counts.sum()), quarantined)

    def finish(self) -> None:
        """Note that everything is learned and scored."""
        record = read_run(self.path)
        write_json(self.path / "run.json", {**record, "index_digest": self.index.digest, "finished": now()})
        self.event("finished")

    def adopt(self, changes: Mapping[str, tuple[str, str]], base_digest: str) -> None:
        """Note what a person allowed to change on resuming; the next resume is compared with what holds now."""
        if not changes or self.finished():
            return
        for key, (before, after) in changes.items():
            self.event("changed", key=key, before=before, after=after)
        record = read_run(self.path)
        now_is = {
            "versions": versions(),
            "code": code_version(),
            "git_commit": _git_commit(),
            "base_digest": base_digest,
            "index_digest": self.index.identity,
        }
        write_text(self.path / "config.yaml", self.config.dump())
        self._write_plan()
        write_json(self.path / "run.json", record | now_is)

    def _write_plan(self) -> None:
        average = [task for task, spec in self.index.tasks.items() if spec.in_average]
        plan: dict[str, Any] = {"tasks": self.tasks, "chunks": self.counts.tolist(), "in_average": average}
        if self.config.learner.group_by_length and self.n_chunks:
            order = schedule_of(self.config, self.index, self.config.methods[self.method].order).order
            plan["order"] = {"group_by_length": True, "batches": MEGABATCH, "sha256": order_digest(order)}
        write_json(self.path / "plan.json", plan)

    def missing(self, report: ChunkReport | None) -> list[Job]:
        """Evaluations of a chunk boundary (None: before any learning) that are not on disk yet, for its weights."""
        if report is None:
            digest, start = self.base_digest, ""
            if self.start:  # a method that goes on from an adapter is scored with it before it learns
                digest, start = self.start["digest"], str(self.path / START)
            audit = self._audit(ZERO)
            open_ = self._open(ZERO, digest, audit)
            return [Job(self.method, ZERO, task, 0, digest, start, audit.get(task, 0)) for task in open_]
        audit = self._audit(report.chunk)
        told: dict[str, Any] = {key: getattr(report, key) for key in ("version", "digest", "commit", "trace")}
        return [
            Job(self.method, report.chunk, task, audit=audit.get(task, 0), **told)
            for task in self._open(report.chunk, report.digest, audit)
        ]

    def _open(self, chunk: int, digest: str, audit: Mapping[str, int]) -> list[str]:
        """Tasks that these weights are not scored on yet; and those to audit that were scored before it was known that
        no chunk follows."""
        late = {t for t in audit if audit[t] and t not in self.audits and self.config.stream.source == "follow"}
        return [task for task in self.to_score(chunk) if self.scores.digest(chunk, task) != digest or task in late]

    def _audit(self, chunk: int) -> dict[str, int]:
        """How many answers of each task are given again one by one at a boundary: at the last one some."""
        if chunk != self.n_chunks - 1 or self.goes_on:  # `ZERO` where nothing is learned
            return {}
        return audits.shares(self.to_score(chunk), self.config.evaluation.audit, self.config.seed)

    @property
    def audit(self) -> dict[str, Any]:
        """What came of the audit so far, as `summary.json` has it; empty before."""
        return audits.summed(self.audits) if self.audits else {}

    def event(self, name: str, **values: Any) -> None:
        """Append to events.jsonl, those of `ONCE` once."""
        event = {"time": now(), "event": name, **values}
        if name in ONCE:
            if (key := self._key(event)) in self.noted:
                return
            self.noted.add(key)
        if name == "guard":
            self.guarded.append(event)
        self._append(event)

    def _append(self, event: dict[str, Any]) -> None:
        with open(self.path / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(event)) + "\n")

    def chunk_done(self, report: ChunkReport) -> None:
        """Note a learned chunk, what of it was quarantined, and damage that its learner found."""
        self.quarantined.pop(report.chunk, None)
        if report.quarantined:
            self.quarantined[report.chunk] = [bad["position"] for bad in report.quarantined]
        for what in report.damaged:
            self.event("damaged", what=what)
        for bad in report.quarantined:
            self.event("quarantine", chunk=report.chunk, **bad)
        for skip in report.skipped:
            self.event("skipped", **skip)
        self.event("chunk", chunk=report.chunk, step=report.version, digest=report.digest, **report.info)

    def add(self, found: TaskScores) -> None:
        """Keep an evaluation: predictions once, durably; scores follow from them.

        Raises:
            UserError: the evaluator's digest is not the snapshot's.
        """
        job = found.job
        if found.digest != job.digest:
            raise UserError(
                "an evaluation came back for other weights than were sent", where=f"{job}", fix="Resume the run"
            )
        spec = self.index.tasks[job.task]
        meta = {
            "chunk": job.chunk,
            "version": job.version,
            "digest": job.digest,
            "seconds": found.seconds,
            "task": job.task,
            "metric": spec.scorer,
            "published": spec.strcvit,
        }
        nothing = [None] * len(found.points)
        columns = {
            "sample_id": found.sample_ids,
            "prediction": found.predictions,
            "reference": found.references,
            "score": found.points,
            "score_strcvit": found.published if found.published is not None else nothing,
            "follows": found.follows,
            "follows_strcvit": found.follows_published if found.follows_published is not None else nothing,
            "instruction": found.instructions or nothing,
        }
        folder = self.path / "predictions" / (f"{job.version:08d}" if job.chunk != ZERO else "zero")
        if found.audited is not None:
            at = {"chunk": job.chunk, "task": job.task, "digest": job.digest}
            self.audits[job.task] = {**at, "asked": found.audited, "differ": audits.told(found.differ)}
            self.event("audit", **self.audits[job.task])
        if self.scores.digest(job.chunk, job.task) == job.digest:
            return  # asked twice, answered twice: the first answer stands
        for what in found.notes:
            self.event("note", what=what)
        self.scores.take(write_predictions(folder / f"{job.task}.parquet", columns, meta))
        if found.left_out:
            self.event("test_unreadable", task=job.task, left_out=dict(found.left_out))

    def write_scores(self, always: bool = True) -> None:
        """Derive scores.parquet and summary.json from the predictions.

        Unless `always`, as at the run's end, intervals come from `INTERIM_DRAWS` draws at most, and a summary that
        takes more than a second, as that of a very long stream, stays as it is until ten times as long has gone by.
        """
        began = time.monotonic()
        if not always and self._took > 1 and began - self._wrote < 10 * self._took:
            return
        write_table(self.path / "scores.parquet", self.scores.table())
        draws, own = self.config.evaluation.draws, metrics_of(self.config)
        if not always:
            draws = min(draws, INTERIM_DRAWS)
        summary = self.scores.summary(draws, self.config.seed, own)
        if self.audits:
            summary["audit"] = self.audit
        write_json(self.path / "summary.json", summary, indent=None)
        self.forgetting = summary["forgetting"]
        pa.default_memory_pool().release_unused()  # arrays that grow with the stream leave holes that nothing fits in
        self._wrote = time.monotonic()
        self._took = self._wrote - began

    def _read_predictions(self) -> None:
        for path in sorted((self.path / "predictions").glob("*/[!.]*.parquet")):
            try:
                self.scores.take(read_predictions(path))
            except (KeyError, TypeError, ValueError) as error:  # damaged, or not of this run
                # It is asked for again, and replaced.
                what = f"{path.relative_to(self.path)}: {' '.join(str(error).split())[:200]}"
                self._append({"time": now(), "event": "damaged", "what": what})  # each time: it may happen again

    def _read_events(self) -> list[dict[str, Any]]:
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        data = path.read_bytes()
        if whole := data.rfind(b"\n") + 1 - len(data):  # a line cut short by a kill: what follows starts a new one
            os.truncate(path, len(data) + whole)
        return read_events(path)

    @staticmethod
    def _key(event: dict[str, Any]) -> bytes:
        what = [str(event.get(key)) for key in ("event", "chunk", "position", "digest", "what", "task", "left_out")]
        return hashlib.blake2b(json.dumps(what).encode(), digest_size=16).digest()
