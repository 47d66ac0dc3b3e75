"""Learn from a stream one batch at a time: score it, then learn it, once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from streamcvit.adapters import (
    InstructionEncoder,
    after_step,
    begin_chunk,
    checkpoint_layers,
    compile_layers,
    expert_parameters,
    learning_mode,
    routing_kwargs,
    touched_before_language,
    tuner_of,
    uncompiled,
    undo_step,
)
from streamcvit.errors import UserError
from streamcvit.learning import commit as commits
from streamcvit.learning.epochs import Epoch
from streamcvit.learning.group import Group
from streamcvit.learning.microbatch import Seen, gradients
from streamcvit.learning.optim import ExpertAdamW
from streamcvit.learning.outputs import Outputs
from streamcvit.learning.rates import grouped
from streamcvit.learning.shared import shared_gradients
from streamcvit.learning.soundness import Diverged, Verdicts, judge
from streamcvit.learning.strategies import Sequential
from streamcvit.learning.strategies.base import load_strategy_state, strategy_state
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch, ModelInputs
from streamcvit.models.sight import check_rows
from streamcvit.models.snapshot import Snapshot, adapter_state, load_adapter_state, take_snapshot
from streamcvit.models.vision import encode_images, routing_inputs, text_tensors


@dataclass(frozen=True)
class StepReport:
    """What one step saw before it learned ("test, then train").

    Attributes:
        step: optimizer steps so far, this one included.
        loss: [n] float32, mean cross-entropy over each sample's answer tokens, nats.
        correct: [n] bool, every answer token is the arg-max under teacher forcing.
        grad_norm: norm of the gradient before clipping (a 0-dim tensor: reading it waits for the device).
        skipped: 0-dim bool: loss or gradient was not finite, so that the step changed nothing (as `grad_norm`).
    """

    step: int
    loss: torch.Tensor
    correct: torch.Tensor
    grad_norm: torch.Tensor
    skipped: torch.Tensor


class OnlineLearner:
    """One adapter on one frozen base, updated batch by batch; works in a notebook without Ray.

    A step whose loss or gradient is not finite is skipped: weights, optimizer, routers and strategy stay as they were
    (random numbers that it drew stay drawn), its samples are not learned again, the count of steps goes on. See
    `streamcvit.learning.optim` and `streamcvit.learning.soundness` for how that costs the device no wait.

    Attributes:
        group: with whom it shares each batch; None: with nobody.
        idle: trained parameters, by name, that got no gradient yet: after some batches, those of modules that the model
            never calls.

    Args:
        base: the frozen model with its processor.
        model: the same model with an adapter on it (see `streamcvit.adapters.attach`), or `torch.compile` of it.
        strategy: what is added to the plain step.
        encoder: embeds instructions for routing; None where the adapter takes no routing inputs.
        lr, weight_decay, betas: of AdamW.
        lrs: rates of groups of parameters (`streamcvit.learning.rates`).
        micro_batch: samples whose forward and backward run at a time (`streamcvit.learning.microbatch`); 0: the batch.
        gradient_checkpointing: compute the activations of the layers again in backward instead of keeping them.
        compiled: compile the layers of the language model (`torch.compile`), at the first batches.
        warmup_steps: steps of linear warm-up; the rate is constant after them (a stream has no end to anneal to).
        max_grad_norm: gradients are clipped to it.
        max_skipped_steps: steps in a row that may be skipped, less one.
        seed: of torch, NumPy and Python at the stream's start.
    """

    def __init__(
        self,
        base: Base,
        model: PeftModel,
        strategy: Sequential | None = None,
        *,
        encoder: InstructionEncoder | None = None,
        lr: float = 1e-3,
        lrs: Mapping[str, float] | None = None,
        micro_batch: int = 0,
        gradient_checkpointing: bool = False,
        compiled: bool = False,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 5,
        seed: int = 0,
    ) -> None:
        self.run, model = model, uncompiled(model)  # what `torch.compile` gave runs, the model in it is learned
        self.base, self.model, self.encoder = base, model, encoder
        self.strategy = strategy or Sequential(seed)
        self.lr, self.warmup_steps, self.max_grad_norm = lr, warmup_steps, max_grad_norm
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters, self.idle, self.micro_batch = list(trained.values()), trained, micro_batch
        if not self.parameters:
            raise UserError("the adapter has no trainable parameters", fix="Check target_modules of the adapter")
        experts = expert_parameters(model)
        groups = grouped(model, trained, lr, lrs or {})
        self.optimizer = ExpertAdamW(groups, experts, lr=lr, betas=betas, weight_decay=weight_decay)
        self.rates = [float(group["lr"]) for group in groups]
        # Commits number parameters as the model does, whatever group they are in.
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        self.places = [places[id(parameter)] for group in groups for parameter in group["params"]]
        self.verdicts = Verdicts(max_skipped_steps)
        self.strategy.bind(self)
        # What a step leaves behind for the next one must know the verdict; where nothing does, a GPU need not wait.
        remembers = type(self.strategy).after_step is not Sequential.after_step
        self.reads = base.device.type == "cpu" or remembers or tuner_of(model) is not None
        self.sees = bool(touched_before_language(base.model))  # else image features need no gradient
        self.step, self.cursor, self.chunk = 0, 0, -1
        self._snapshot: Snapshot | None = None
        self.group: Group | None = None
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - libraries below draw from the global state
        random.seed(seed)
        if gradient_checkpointing:
            checkpoint_layers(model)
        if compiled:
            compile_layers(model)
        learning_mode(model)
        # A module that stays in eval mode while learning: where it trains, someone changed the modes. The model itself
        # does not tell, as checkpointing puts its layers into training mode.
        self._frozen = next((m for m in reversed(list(base.model.modules())) if not m.training), base.model)

    def learn(self, batch: Batch) -> StepReport | None:
        """Score a batch, then learn it once.

        Returns:
            The report, or None where the batch has nothing to learn: all its positions are quarantined (the cursor
            still moves), or it has none (it stands for an empty chunk).

        Raises:
            ValueError: the batch does not start at the cursor (a gap or a repetition).
            Diverged: too many steps in a row were skipped.
        """
        if batch.cursor != self.cursor:
            raise ValueError(f"batch starts at {batch.cursor}, the stream's cursor is {self.cursor}")
        if batch.chunk != self.chunk:
            if self.chunk >= 0:
                self.strategy.after_chunk(self.chunk, self.model)
            self.chunk = batch.chunk
            begin_chunk(self.model, batch.chunk)
            self.strategy.before_chunk(batch.chunk, self.model)
        report = verdict = None
        if batch.parts:
            report, verdict = self._step(batch)
        # A batch with nothing readable is a step too, so that every chunk boundary has a version of its own.
        self.step += 1
        self.cursor = batch.next_cursor
        if verdict is not None:
            self.verdicts.note(batch, self.step, verdict)
        return report

    def _step(self, batch: Batch) -> tuple[StepReport, float | torch.Tensor]:
        """The report, and the verdict on the step as far as it is known."""
        if self._frozen.training or not self.model.training:  # someone evaluated in between
            learning_mode(self.model)
        losses_B, correct_B, loss = (gradients if self.group is None else shared_gradients)(self, batch)
        if self.idle:
            self.idle = {name: p for name, p in self.idle.items() if p.grad is None}
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        if self.warmup_steps:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * min(1.0, (self.step + 1) / self.warmup_steps)
        verdict = judge(loss, grad_norm)
        said = self.optimizer.step(verdict=verdict, read=self.reads)
        if said:
            undo_step(self.model)
        else:
            after_step(self.model)
            self.strategy.after_step(batch, self.model)
        report = StepReport(self.step + 1, losses_B, correct_B, grad_norm, verdict != 0)
        return report, verdict if said is None else said

    def look(self, inputs: ModelInputs) -> Seen:
        """Image features of inputs on the model's device, and what routers read of them."""
        vision = encode_images(self.base.model, inputs, learns=self.sees)
        if self.encoder is None:
            return Seen(vision, None)
        facts = routing_inputs(self.encoder, inputs, vision)
        return Seen(vision, replace(facts, token_mask=inputs.tensors["attention_mask"].bool()))

    def losses(
        self, inputs: ModelInputs, routes: torch.Tensor | None = None, seen: Seen | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-sample loss on answer tokens, with graph; arguments as `outputs`.

        Returns:
            (loss [B] float32, correct [B] bool). Each sample weighs the same however long its answer is, so the
            batch's loss is the mean of independent samples' losses.
        """
        return self.outputs(inputs, routes, seen).losses()

    def outputs(self, inputs: ModelInputs, routes: torch.Tensor | None = None, seen: Seen | None = None) -> Outputs:
        """What the model says at the answer tokens, with graph.

        Args:
            inputs: B samples with answers.
            routes: [B, banks] int64, decided before; None: the router decides.
            seen: what `look` gave for them; None: it is asked.
        """
        # Masks stay on the host where they pick places: on the device, the host would wait for how many they are.
        answer_BS = inputs.answer_mask
        rows_n = answer_BS.nonzero()[:, 0]
        if seen is not None:  # pixels are not wanted again
            inputs = replace(inputs, tensors=text_tensors(inputs))
        inputs = inputs.to(self.base.device)
        vision, facts = self.look(inputs) if seen is None else seen
        routing = routing_kwargs(
            self.model, facts if routes is None or facts is None else replace(facts, routes=routes)
        )
        # The token at t is predicted from t - 1, so logits are wanted one position earlier.
        keep_BS = torch.zeros_like(answer_BS)
        keep_BS[:, :-1] = answer_BS[:, 1:]
        logits = self.run(
            **text_tensors(inputs),
            **vision.given,
            logits_to_keep=keep_BS,
            use_cache=False,
            **routing,
        ).logits
        check_rows(logits, len(rows_n), type(self.base.model).__name__)
        return Outputs(logits.view(len(rows_n), -1), inputs.tensors["input_ids"][answer_BS], rows_n, len(answer_BS))

    def snapshot(self) -> Snapshot:
        """The adapter's weights now, with version, cursor and digest; taken once a step."""
        if self._snapshot is None or self._snapshot.version != self.step:
            self._snapshot = take_snapshot(self.model, version=self.step, cursor=self.cursor, chunk=self.chunk)
        return self._snapshot

    def commit(
        self,
        folder: Path,
        before: Callable[[], Any] | None = None,
        epoch: Epoch | None = None,
        also: Callable[[Path], Any] | None = None,
        **state: Any,
    ) -> Path:
        """Write everything that makes the next step the same to the bit.

        Args:
            folder: `commits/` of a run folder.
            before: called once the files are prepared and before the commit shows: the ledger's flush, whose result
                the commit notes.
            epoch: the right to write this run; None where no other learner can follow this one (a notebook).
            also: writes further files of what only a restart needs into the folder that it is given (`resume/`).
            state: further JSON values for `state.json`.

        Returns:
            The commit's folder: `adapter/` (what `PeftModel.from_pretrained` loads), `resume/`, `state.json`.

        Raises:
            Fenced: a newer learner took over; nothing of this one's counts any more.
            Diverged: a weight or a moment is not finite, or too many steps in a row were skipped; nothing is written.
        """
        self.verdicts.settle()
        snapshot = self.snapshot()
        _must_be_finite(snapshot.tensors, self.step)

        def fill(draft: Path) -> None:
            (draft / "adapter").mkdir()
            (draft / commits.RESUME).mkdir()
            name = self.model.active_adapter
            self.model.peft_config[name].save_pretrained(str(draft / "adapter"))
            weights = {k: v.contiguous() for k, v in adapter_state(self.model).items()}
            save_file(weights, draft / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
            tensors, values = self._resume_state()
            _must_be_finite({k: v for k, v in tensors.items() if k.startswith("optimizer.")}, self.step)
            save_file(tensors, draft / commits.RESUME / "state.safetensors")
            (draft / commits.RESUME / "state.json").write_text(json.dumps(values), encoding="utf-8")
            if also is not None:
                also(draft / commits.RESUME)
            if before is not None:
                state["ledger"] = before()

        state |= {"version": self.step, "cursor": self.cursor, "chunk": self.chunk, "digest": snapshot.digest}
        state |= {"encoder": self._encoder_identity(), "skips": self.verdicts.state()}
        return commits.write_commit(folder, self.step, fill, state, epoch)

    def resume(self, commit: Path) -> dict[str, Any]:
        """Continue from a commit as if the run had never stopped.

        Returns:
            The commit's `state.json`.

        Raises:
            UserError: the commit is damaged, or is not of this model, adapter and instruction encoder.
        """
        state = commits.read_state(commit)
        if state.get("encoder") != self._encoder_identity():
            raise UserError(
                "the instruction encoder is another one than the commit was learned with",
                where=str(commit),
                fix="Resume with the run's own model.instruction_encoder",
            )
        try:
            digest = load_adapter_state(self.model, load_file(commit / "adapter" / "adapter_model.safetensors"))
        except ValueError as error:
            raise UserError(f"{error}", where=str(commit), fix="Resume with the run's own config") from None
        if digest != state["digest"]:
            raise UserError(
                "the adapter does not fit this model", where=str(commit), fix="Resume with the run's own config"
            )
        tensors = load_file(commit / commits.RESUME / "state.safetensors")
        values = json.loads((commit / commits.RESUME / "state.json").read_text(encoding="utf-8"))
        self._load_resume_state(tensors, values)
        self.step, self.cursor, self.chunk = state["step"], state["cursor"], state["chunk"]
        self.verdicts.load(state.get("skips", {}))
        if self.chunk >= 0:
            begin_chunk(self.model, self.chunk)
        self._snapshot = None
        return state

    def _encoder_identity(self) -> str | None:
        return None if self.encoder is None else self.encoder.identity

    def _resume_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors: dict[str, torch.Tensor] = {"rng.torch": torch.get_rng_state()}
        if self.base.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.base.device)
        for index, entry in self.optimizer.state_dict()["state"].items():
            for name, tensor in entry.items():
                tensors[f"optimizer.{self.places[index]}.{name}"] = tensor.detach().cpu().contiguous()
        for index, tensor in self.optimizer.copies().items():
            tensors[f"optimizer.{self.places[index]}.copy"] = tensor.detach().cpu().contiguous()
        extra, values = strategy_state(self.strategy)
        tensors |= {f"strategy.{name}": tensor.detach().cpu().contiguous() for name, tensor in extra.items()}
        kind, keys, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
        python = random.getstate()
        return tensors, {
            "strategy": values,
            "rng.numpy": [str(kind), np.asarray(keys).tolist(), int(place), int(has_gauss), float(gauss)],
            "rng.python": [python[0], list(python[1]), python[2]],
        }

    def _load_resume_state(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        entries: dict[int, dict[str, torch.Tensor]] = {}
        strategy: dict[str, torch.Tensor] = {}
        numbers = {place: number for number, place in enumerate(self.places)}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                index, _, name = rest.partition(".")
                entries.setdefault(numbers[int(index)], {})[name] = tensor
            elif kind == "strategy":
                strategy[rest] = tensor
        copies = {index: state.pop("copy") for index, state in entries.items() if "copy" in state}
        entries = {index: state for index, state in entries.items() if state}
        self.optimizer.load_copies(copies)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        load_strategy_state(self.strategy, strategy, values.get("strategy", {}))
        torch.set_rng_state(tensors["rng.torch"])
        if self.base.device.type == "cuda" and (state := _cuda_state(tensors, self.base.device.index or 0)) is not None:
            torch.cuda.set_rng_state(state, self.base.device)
        kind, keys, place, has_gauss, gauss = values["rng.numpy"]
        np.random.set_state((kind, np.array(keys, np.uint32), place, has_gauss, gauss))  # noqa: NPY002
        version, internal, gauss_next = values["rng.python"]
        random.setstate((version, tuple(internal), gauss_next))


def _must_be_finite(tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Raises `Diverged` where something that is about to be committed is not finite."""
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise Diverged(
            f"{len(bad)} tensors are not finite after step {step} ({min(bad)} first), and are not committed",
            fix="Go on from the last commit with a smaller rate",
        )


def _cuda_state(tensors: Mapping[str, torch.Tensor], number: int) -> torch.Tensor | None:
    """The random state of the learning device that a commit holds; None where it was learned without CUDA.

    Learning draws on the model's own device alone, whatever its number there or here. Older commits hold a state for
    each device of their machine.
    """
    if "rng.cuda" in tensors:
        return tensors["rng.cuda"]
    states = {
        int(key.removeprefix("rng.cuda.")): state for key, state in tensors.items() if key.startswith("rng.cuda.")
    }
    return states.get(number, states[min(states)]) if states else None
