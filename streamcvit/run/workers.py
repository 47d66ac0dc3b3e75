"""What the learner actor does, as a plain class: the local run uses it without Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from streamcvit.adapters import expert_usage
from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import Stopped, UserError
from streamcvit.learning import Ledger, OnlineLearner
from streamcvit.learning import commit as commits
from streamcvit.learning.drift import DriftMeter
from streamcvit.learning.durable import room
from streamcvit.learning.epochs import Fenced, Turn
from streamcvit.learning.online import StepReport
from streamcvit.learning.putback import put_back
from streamcvit.learning.soundness import Diverged
from streamcvit.learning.strategies import Replay
from streamcvit.learning.strategies.rehearsing import Rehearsing
from streamcvit.models.batch import Batch
from streamcvit.monitoring import traces
from streamcvit.monitoring.definitions import COMMIT_BOUNDS, BucketCounts
from streamcvit.run.boundaries import boundary_report
from streamcvit.run.driftsets import probe_sets
from streamcvit.run.leading import Leading
from streamcvit.run.loading import Feed, load_encoder, load_model, routes, schedule_of, settle, wrap
from streamcvit.run.losses import unusable
from streamcvit.run.messages import ChunkReport, Commits, Order, Progress
from streamcvit.run.notes import event_of, folder_bytes, idle_modules, joined, mean_of
from streamcvit.run.origin import START, put_on
from streamcvit.run.own import blamed
from streamcvit.run.ownkinds import strategy_of


class LearnerWorker:
    """Learns chunks of any method of a run on one loaded base.

    Args:
        config: the run.
        stream: folder of shards and index.
        feed: gives batches.
        progress: told where the learner is, a few times a second, and at each chunk's end.
        stop: asked after every batch; once it is true the learner commits and raises `Stopped`.
        turn: among the run's learners, where there may be others.
        loaded: told of the base model, each time one is loaded.
        between: called between two steps of a chunk, with the method and its learner.
        lead: tells the other ranks of a group what to do; None: it learns alone.
    """

    learner: OnlineLearner

    def __init__(
        self,
        config: RunConfig,
        stream: str,
        feed: Feed,
        progress: Callable[[Progress], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
        turn: Turn | None = None,
        loaded: Callable[[torch.nn.Module], None] = lambda _: None,
        between: Callable[[str, OnlineLearner], None] = lambda method, learner: None,
        lead: Leading | None = None,
    ) -> None:
        settle(config)
        self.config, self.feed, self.progress, self.stop, self.turn = config, feed, progress, stop, turn
        self.between, self.lead = between, lead
        self.fenced: Fenced | None = None
        self.index = StreamIndex.open(stream)
        self.known_bad = {bad.position for bad in unusable(self.index)}
        self.loaded = loaded
        self._load()
        self.method = ""
        self.model: PeftModel | None = None
        self._last_end: float | None = None
        self.learned_in = self.committed_in = ""  # spans

    def learn_chunk(self, method: str, chunk: int, orders: Mapping[int, Order] | None = None) -> ChunkReport:
        """Make chunk `chunk` exist as a commit of `method`: learn what is missing up to its end, or nothing.

        Calls may come again and in another order after a restart, so earlier chunks that are missing are learned, and
        committed at their own ends, first.

        Args:
            method: of the run.
            chunk: its number, from 0.
            orders: the guard's, by chunk; those that are not there want nothing.

        Raises:
            Stopped: the run is to stop; what was learned is committed.
            Fenced: a newer learner took over this method's run, now or at any earlier call.
            UserError: the disk is full (the last commit is whole); the chunk's commit is damaged; too many steps in a
                row could not be taken.
        """
        idle = 0.0 if self._last_end is None or method != self.method else time.perf_counter() - self._last_end
        if self.stop():
            raise Stopped
        if self.fenced is not None:  # calls that still wait for a replaced learner must not make it the newest again
            raise self.fenced
        report = None
        try:
            with room(self.config.folder(method)):
                if method != self.method:
                    self._begin(method)
                self.epoch.check()
                while (missing := self._next_chunk()) <= chunk:
                    self._obey((orders or {}).get(missing, Order()))
                    report = self._learn_to(missing, self.schedule.bounds(missing)[1], idle)
                    idle = 0.0
        except BaseException as error:
            self.method = ""  # whatever comes next begins from the newest commit
            if isinstance(error, Fenced):
                self.fenced = error
            if told := blamed(error, self.config):
                raise told from None
            if isinstance(error, Diverged):
                commits.withdraw(self.folder / "commits", self.epoch)
                raise self._advice(method, error) from None
            raise
        self._last_end = time.perf_counter()
        found = report or boundary_report(self.folder, self.method, chunk)
        return replace(found, epoch=self.epoch.number, damaged=self.damaged + found.damaged)

    def _advice(self, method: str, error: Diverged) -> UserError:
        """How a run whose steps are not finite can go on."""
        lr, learner = self.learner.lr, self.learner
        where, told = str(self.folder), f"{error.what}. The run stops at its last good commit"
        if 0 < learner.step == sum(learner.verdicts.total.values()):
            fix = "No step of this method could be taken, so look at model.dtype, the base's weights and these samples"
            return UserError(told, where=where, fix=fix)
        key = "learner.lr" if "." in method else f"methods.{method}.lr"
        saved = self.config.folder() / "config.yaml"
        change = f"--set {key}={min(lr / 10, 1e-3):.3g} --allow-change {key}"
        fix = f"Continue with another rate: streamcvit run {saved} --resume {change}"
        if self.base.dtype == torch.float16:
            fix += ". float16 overflows early: bfloat16 or float32 may be the better mend (model.dtype)"
        return UserError(told, where=where, fix=fix)

    def _load(self) -> None:
        self.base = load_model(self.config)
        self.encoder = load_encoder(self.config, self.base)
        self.loaded(self.base.model)
        self.probes = probe_sets(self.config, self.index, self.base.collator)

    def _build(self, method: str) -> None:
        """Make a method's learner, at its start.

        Every method starts from the base as it was loaded, and where the one before left something else, loaded again.
        """
        if self.model is not None:
            self.model.unload()
            self.model = None
        if not self.base.restore():
            for held in ("base", "encoder", "learner"):  # two do not fit beside each other
                vars(self).pop(held, None)
            self._load()
        config, settings = self.config, self.config.methods[method]
        self.folder = config.folder(method)
        self.schedule = schedule_of(config, self.index, settings.order)
        self.model = wrap(self.base, self.encoder, config, method)
        try:
            strategy = strategy_of(config, method)(config.seed, **settings.strategy_options)
        except (TypeError, ValueError) as error:
            where = f"methods.{method}.strategy_options"
            raise UserError(f"{error}", where=where, fix="See docs/settings.md for them") from None
        if config.guard.rehearses(settings) and type(strategy) is not Replay:
            strategy = Rehearsing(strategy, config.seed, config.guard.memory)
        self.learner = OnlineLearner(
            self.base,
            self.model,
            strategy,
            encoder=self.encoder if routes(self.model) else None,
            lr=settings.lr or config.learner.lr,
            lrs=settings.lrs,
            micro_batch=config.cluster.micro_batch(config.learner.batch_size, config.learner.micro_batch),
            gradient_checkpointing=config.learner.gradient_checkpointing,
            compiled=config.model.compile,
            weight_decay=config.learner.weight_decay,
            betas=config.learner.betas,
            warmup_steps=config.learner.warmup_steps,
            max_grad_norm=config.learner.max_grad_norm,
            max_skipped_steps=config.learner.max_skipped_steps,
            seed=config.seed,
        )

    def _begin(self, method: str) -> None:
        """Set up a method's learner, from its newest commit where there is one."""
        if self.lead is not None:
            self.lead.begin(method)
        self._build(method)
        self.drift = DriftMeter(self.learner, self.probes)
        self.epoch, found = commits.take_over(self.folder / "commits", self.turn)
        self.damaged = tuple(found[2]) if found else ()
        if self.lead is not None:
            self.lead.resume(self.learner, found[0] if found else None)
        self.part: dict[str, Any] = {}  # what a former life noted of the chunk it stopped in
        if found is not None:
            state = self.learner.resume(found[0])
            self.drift.load(found[0] / commits.RESUME)
            self.part = {} if state.get("boundary") else state
        else:
            self._start(method)
        self.ledger = Ledger(self.folder / "ledger", self.epoch)
        self.ledger.rewind(self.learner.step)
        self.method, self.step_seconds = method, BucketCounts()
        self.commits: Commits | None = None

    def _start(self, method: str) -> None:
        """Put the adapter that a method starts from on the model, if it names one."""
        if self.config.methods[method].start:
            assert self.model is not None
            put_on(self.model, self.folder / START)
            self.learner.optimizer.load_copies({})  # of halves, as they are now

    def _next_chunk(self) -> int:
        """The first chunk whose end is not committed: the one that the learner is in, or the one after it."""
        chunk = self.learner.chunk
        inside = chunk >= 0 and self.learner.cursor < self.schedule.bounds(chunk)[1]
        return chunk if inside else chunk + 1

    def _obey(self, order: Order) -> None:
        """Have a chunk begin, or go on, under the guard's order: one that was begun keeps the order it began with."""
        if self.part:
            order = Order.from_json(self.part.get("info", {}).get("guard"))
        elif order.version is not None:
            put_back(self.learner, self.folder / "commits", order.version, order.digest)
        self._rehearse(order.share)
        self.order = order
        if self.lead is not None:
            self.lead.obey(None if self.part else order.version, order.digest, order.share)

    def _rehearse(self, share: float) -> None:
        if isinstance(self.learner.strategy, Rehearsing | Replay):
            self.learner.strategy.share = share

    def _learn_to(self, chunk: int, stop: int, idle: float) -> ChunkReport:
        """The stream's inner loop: take a batch, score it, learn it, note it."""
        learner, began = self.learner, time.perf_counter()
        waited, told, first = 0.0, 0.0, learner.cursor
        losses: list[torch.Tensor] = []
        correct: list[torch.Tensor] = []
        part, self.part = self.part, {}
        before_stop = part.get("info", {})
        quarantined: list[dict[str, Any]] = list(part.get("quarantined", ()))
        skipped: list[dict[str, Any]] = list(part.get("skipped", ()))
        before = len(skipped)
        batches = self.feed(self.config.methods[self.method].order, learner.cursor, stop)

        def note() -> dict[str, Any]:
            learner.verdicts.settle()
            if self.lead is not None:
                self.lead.collect(self.model)
            skipped.extend(skip.event() for skip in learner.verdicts.take())
            now = {
                "samples": sum(len(part) for part in losses),
                "positions": learner.cursor - first,
                "loss": mean_of(losses),
                "correct": float(torch.cat(correct).float().mean()) if correct else None,
                "busy_s": time.perf_counter() - began - waited,
                "wait_ingest_s": waited,
                "wait_evaluation_s": idle,
                "skipped": dict(Counter(skip["reason"] for skip in skipped[before:])),
                "expert_share": {
                    bank: use.shares for bank, use in expert_usage(self.model, reset=learner.cursor == stop).items()
                },
            }
            now = joined(part["info"], now) if part.get("info") else now
            return {**now, "guard": self.order.to_json()} if self.order else now

        def tell() -> Progress:
            rate = (learner.cursor - first) / max(time.perf_counter() - began, 1e-9)
            mean, total, skips = mean_of(losses[-20:]), len(self.schedule), dict(learner.verdicts.total)
            word = Progress(
                self.method,
                chunk,
                learner.cursor,
                total,
                mean,
                rate,
                self.step_seconds,
                skips,
                learner.step,
                {"ingest": waited + before_stop.get("wait_ingest_s", 0.0), "evaluation": idle},
                self.commits,
            )
            self.progress(word)
            return word

        if first == stop:
            self._learn(Batch(first, stop, chunk, (), (), None))  # an empty chunk has a version of its own too
        while learner.cursor < stop:
            asked = time.perf_counter()
            batch = next(batches, None)
            arrived = time.perf_counter()
            waited += arrived - asked
            if batch is None:  # stopped while it waited
                if learner.cursor > first:
                    self._commit(chunk=chunk, boundary=False, info=note(), quarantined=quarantined, skipped=skipped)
                raise Stopped
            with traces.span("learn", batch.trace, method=self.method, chunk=chunk, step=learner.step):
                report, self.learned_in = self._learn(batch), traces.here()
            self.step_seconds.observe(time.perf_counter() - arrived)
            quarantined += [event_of(bad) for bad in batch.quarantined]
            if report is not None:
                losses.append(report.loss)
                correct.append(report.correct)
                self.ledger.add(batch, report.step, report.loss, report.correct, report.skipped)
            now = time.perf_counter()
            if now - told > 0.25 and losses:
                told = now
                tell()
            every, stopping = self.config.learner.commit_every, self.stop()
            if learner.cursor < stop and (stopping or (every and learner.step % every == 0)):
                self._commit(chunk=chunk, boundary=False, info=note(), quarantined=quarantined, skipped=skipped)
                if stopping:
                    raise Stopped
            if learner.cursor < stop:
                self.between(self.method, learner)
        self._check_losses(chunk, quarantined)
        info = note()
        info |= self._drift(chunk)
        info["idle"] = idle_modules(learner.idle) if info["samples"] else []  # nothing learned tells nothing
        learned = time.perf_counter()
        folder = self._commit(chunk=chunk, boundary=True, info=info, quarantined=quarantined, skipped=skipped)
        state = commits.read_note(folder)
        assert self.commits is not None
        info = {**info, "commit_s": time.perf_counter() - learned, "commit_bytes": self.commits.size_bytes}
        done = self.method, chunk, str(folder), state["step"], state["digest"]
        return ChunkReport(*done, info, quarantined, skipped, tell(), trace=self.committed_in)

    def _learn(self, batch: Batch) -> StepReport | None:
        return self.learner.learn(batch) if self.lead is None else self.lead.learn(self.learner, batch)

    def _drift(self, chunk: int) -> dict[str, Any]:
        """What the drift meter says of a chunk's end, the seconds it took, and seen tasks that it has no samples of."""
        if not self.config.learner.drift_samples:
            return {}
        began, (first, stop) = time.perf_counter(), self.schedule.bounds(chunk)
        more = chunk + 1 < self.schedule.n_chunks
        tasks = self.index.task_of[self.schedule.order[: self.schedule.bounds(chunk + 1)[1] if more else stop]]
        learned, then = set(tasks[first:stop]), set(tasks[stop:])
        found = self.drift.measure(learned, learned - then if more else ())
        without = sorted(set(tasks[:stop]) - self.probes.keys())
        return {**found, "drift_without": without, "drift_s": time.perf_counter() - began}

    def _check_losses(self, chunk: int, quarantined: list[dict[str, Any]]) -> None:
        """Raise where more of a chunk is lost than `stream.bad_share`; what its index knew of was judged before."""
        first, stop = self.schedule.bounds(chunk)
        lost = [bad for bad in quarantined if bad["position"] not in self.known_bad]
        if len(lost) > self.config.stream.bad_share * (stop - first):
            raise UserError(
                f"{len(lost)} of {stop - first} samples of chunk {chunk + 1} cannot be learned, the first: "
                f"{lost[0]['sample_id']}: {lost[0]['reason']}: {lost[0]['detail']}",
                where=str(self.folder),
                fix="Raise model.max_length or set model.max_picture_tokens if they are too long, or bear it "
                "(stream.bad_share); a run that began goes on with --resume, --allow-change and the setting's name",
            )

    def _commit(self, **state: Any) -> Path:
        step, began = self.learner.step, time.perf_counter()
        told: dict[str, Any] = {
            "method": self.method,
            "chunk": state["chunk"],
            "step": step,
            "boundary": state["boundary"],
        }
        with traces.span("commit", link=self.learned_in, **told):
            self.committed_in = traces.here()
            folder = self.learner.commit(
                self.folder / "commits",
                before=lambda: self.ledger.flush(step),
                epoch=self.epoch,
                also=self.drift.save,
                **state,
            )
        so_far = self.commits.seconds if self.commits else BucketCounts(COMMIT_BOUNDS)
        so_far.observe(time.perf_counter() - began)
        self.commits = Commits(so_far, folder_bytes(folder), time.time())
        commits.prune(self.folder / "commits", self.config.learner.keep_commits, self.epoch)
        return folder
