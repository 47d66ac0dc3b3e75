"""What a run would hold in a device's memory, part by part: an estimate from the shapes of its model."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from streamcvit.adapters import ADAPTERS, attach, checkpoint_layers, tuner_of
from streamcvit.adapters.instruction import BLOCK, encoder_dim
from streamcvit.adapters.targets import linear_layers, touched_before_language
from streamcvit.config import RunConfig
from streamcvit.data.sample import Picture, Sample
from streamcvit.footprint import USUAL, typical_size
from streamcvit.learning.strategies import Replay, rehearses
from streamcvit.models.base import device_of, dtype_of, fetch, skeleton, weight_files
from streamcvit.models.batch import ModelInputs
from streamcvit.models.collate import Collator, UnusableSamples
from streamcvit.models.dryrun import Shape, answering_bytes, learning_bytes
from streamcvit.models.quantize import NONE, held_bytes
from streamcvit.models.vision import unwrap, vision_dim
from streamcvit.run.loading import adapter_options, collation
from streamcvit.run.ownkinds import strategy_of
from streamcvit.run.told import task_sizes

CONTEXT = {"cuda": 600 << 20, "cpu": 450 << 20}
"""Bytes of a process before its model: CUDA's context and libraries on a GPU, Python's packages on a CPU."""
TESTS = 5000
"""Test samples of a task where the config does not say how many there are."""
ENCODED = 100 << 10
"""Bytes of a picture as it is stored."""
_QUESTION = "What is the colour of the largest thing that can be seen on the left of this picture, and what is it for?"
_GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """A typical sample.

    Attributes:
        tokens: of its row, those of picture and answers included.
        image: tokens of its picture.
        answers: tokens of its answers.
        patches: that the vision tower sees of its picture.
        pixels: numbers that the picture is given as.
    """

    tokens: int
    image: int
    answers: int
    patches: int
    pixels: int


@dataclass(frozen=True)
class Need:
    """What a learner or an evaluator holds.

    Attributes:
        who: it.
        parts: bytes by what they are for.
        rough: whether its activations are from a rule of thumb: the model does not run without data.
    """

    who: str
    parts: dict[str, int]
    rough: bool = False

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def said(self) -> str:
        """For people, in one clause."""
        largest = sorted(
            (item for item in self.parts.items() if item[1] >= self.total / 100), key=lambda item: -item[1]
        )
        return f"{self.who} {size(self.total)} ({', '.join(f'{name} {size(held)}' for name, held in largest)})"


@dataclass(frozen=True)
class Memory:
    """What a method of a run needs.

    Attributes:
        method: its name.
        learner: what learns it; None where nothing is learned.
        evaluator: what scores it.
        evaluators: so many beside the learner, each with a model of its own.
        shared: bytes that learner and evaluators hold once, as they are one process.
    """

    method: str
    learner: Need | None
    evaluator: Need
    evaluators: int = 1
    shared: int = 0

    @property
    def needs(self) -> list[Need]:
        """Learner, where there is one, and evaluator."""
        return [need for need in (self.learner, self.evaluator) if need is not None]

    @property
    def total(self) -> int:
        """Bytes on one device that all of them share."""
        learner = self.learner.total - self.shared if self.learner else 0
        return learner + self.evaluators * self.evaluator.total

    def line(self) -> str:
        """For people."""
        said = ", ".join(need.said() for need in self.needs)
        several = f", {self.evaluators} evaluators" if self.evaluators > 1 else ""
        return f"memory, estimated, {self.method}: {size(self.total)} in all{several}: {said}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{-(-count // 2**20)} MiB"


def memory_of(config: RunConfig, local: bool = False, row: Row | None = None) -> list[Memory]:
    """What every method of a run needs; the largest first.

    Args:
        config: the run.
        local: whether it is one process.
        row: a typical sample; None: a usual picture and question, as the model's processor takes them.
    """
    model = config.model
    row = row or typical_row(config)
    known: dict[str, Memory] = {}
    for name, method in config.methods.items():
        key = repr((method.adapter, method.options, method.train, method.strategy, method.strategy_options))
        if key not in known:
            known[key] = estimate(
                config, name, lambda: skeleton(model.name_or_path, model.revision, _attention(config)), row, local
            )
    return sorted(known.values(), key=lambda memory: -memory.total)


def estimate(
    config: RunConfig, method: str, bare: Callable[[], nn.Module], row: Row, local: bool = False, device: str = ""
) -> Memory:
    """What a method needs.

    Args:
        config: the run.
        method: of its methods.
        bare: gives the base without weights, afresh each time.
        row: a typical sample.
        local: whether learner and evaluator are one process.
        device: `cuda` or `cpu`; empty: what `model.device` means here.
    """
    where = torch.device(device) if device else device_of(config.model.device)
    dtype = dtype_of(config.model.dtype, where) if not device or config.model.dtype != "auto" else torch.bfloat16
    context = CONTEXT.get(where.type, CONTEXT["cuda"])
    settings, model = config.methods[method], bare().to(dtype)
    weights = _weights(config, model, dtype)
    owned = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    learner = None
    if settings.adapter in ADAPTERS:
        adapted = _adapted(config, method, model)
        learner = _learner(config, method, adapted, owned, row, dtype)
        learner = Need("learner", {"weights": weights, **learner.parts, "process": context}, learner.rough)
        if where.type == "cpu" and (kept := _replayed(config, method)[1]):
            learner.parts["replay memory"] = kept * ENCODED
        model = adapted
    parts, rough = _evaluator(config, model, row, dtype)
    held = _extra(model, owned)
    evaluator = Need("evaluator", {"weights": weights, "adapter": held, **parts, "process": context}, rough)
    count = 1 if local else config.cluster.evaluators
    return Memory(method, learner, evaluator, count, context if local and learner else 0)


def typical_row(config: RunConfig, collator: Collator | None = None) -> Row:
    """A question of one sentence on a typical picture of the stream, as the run's collator takes it (None: made)."""
    collator = (collator or Collator.from_pretrained(config.model.name_or_path, **collation(config))).unbounded()
    stream = io.BytesIO()
    Image.new("RGB", typical_size(config), (120, 130, 140)).save(stream, "PNG")
    sample = Sample("typical", "typical", _QUESTION, "Answer with one word.", ("red",), (Picture(stream.getvalue()),))
    try:
        inputs = collator.train([sample])
    except UnusableSamples:  # what a picture cannot be said of is refused elsewhere
        return Row(min(1024, config.model.max_length), 576, 8, 576, 3 * math.prod(USUAL))
    row = row_of(inputs, skeleton(config.model.name_or_path, config.model.revision))
    return replace(row, tokens=min(row.tokens, config.model.max_length))


def row_of(inputs: ModelInputs, model: nn.Module) -> Row:
    """The row that a batch with pictures is made of, padding included."""
    pixels, rows = inputs.tensors["pixel_values"], len(inputs.answer_mask)
    side = _tower_config(model).get("patch_size", 14)
    side = side if isinstance(side, int) else side[0]
    patches = pixels.shape[0] if pixels.dim() == 2 else pixels.numel() // (3 * side * side)
    image, answers = int(inputs.image_mask.sum()), int(inputs.answer_mask.sum())
    return Row(inputs.answer_mask.shape[1], image // rows, -(-answers // rows), patches // rows, pixels.numel() // rows)


def _attention(config: RunConfig) -> str | None:
    return "eager" if config.model.attention == "eager" else None


def _weights(config: RunConfig, model: Any, dtype: torch.dtype) -> int:
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    if getattr(model.config, "quantization_config", None):  # they stay as they are
        stored = sum(
            file.stat().st_size for file in weight_files(fetch(config.model.name_or_path, config.model.revision))
        )
        return stored + buffers
    return held_bytes(model, config.model.quantize, dtype) + buffers


def _adapted(config: RunConfig, method: str, model: nn.Module) -> Any:
    settings = config.methods[method]
    options = adapter_options(config, method, model)
    if isinstance(options.get("init_lora_weights"), str):  # computed from weights, which are not there
        options["init_lora_weights"] = True
    dim = encoder_dim(config.model.instruction_encoder, model) or 384
    with torch.device("meta"):
        return attach(
            model,
            settings.adapter,
            options=options,
            sizes={"instruction_dim": dim, "visual_dim": vision_dim(model), **task_sizes(config, method)},
        )


def _extra(model: nn.Module, owned: set[int]) -> int:
    """Bytes of what was not in the base."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in owned)


def _learner(config: RunConfig, method: str, adapted: Any, owned: set[int], row: Row, dtype: torch.dtype) -> Need:
    learner = config.learner
    trained = [p for p in adapted.parameters() if p.requires_grad]
    halves = sum(p.numel() for p in trained if p.dtype.itemsize <= 2)
    extra, _ = _replayed(config, method)
    rows = min(learner.micro_batch or learner.batch_size + extra, learner.batch_size + extra)
    parts = {
        "adapter": _extra(adapted, owned) + 4 * halves,  # with the float32 copies that halves follow
        "gradients": sum(p.nbytes for p in trained) + 4 * halves,
        "moments": sum(2 * 4 * p.numel() for p in trained),
    }
    if (held := strategy_of(config, method).held) and trained:
        parts["strategy"] = 4 * held * sum(p.numel() for p in trained)
    if learner.gradient_checkpointing:
        checkpoint_layers(adapted)
    shape, rough = Shape(rows, row.tokens, row.answers), False
    try:
        activations = learning_bytes(adapted, shape, dtype)
    except Exception:  # a family that asks what its data are
        activations, rough = _by_rule(adapted, shape, dtype, learner.gradient_checkpointing), True
    before = _encoding(config, adapted, dtype) - parts["gradients"] - parts["moments"]  # which are not there yet
    parts["activations"] = max(activations + _unpacked(config, adapted, dtype), before)
    learned = bool(touched_before_language(unwrap(adapted)))
    parts["vision"] = vision_bytes(adapted, row, rows, dtype, learned)
    return Need("learner", parts, rough)


def _evaluator(config: RunConfig, model: Any, row: Row, dtype: torch.dtype) -> tuple[dict[str, int], bool]:
    batch, new = config.evaluation.batch_size, _new_tokens(config)
    prompt = max(1, row.tokens - row.answers)
    shape, rough = Shape(batch, prompt, 1), False
    base = unwrap(model)
    try:
        cache, activations = answering_bytes(model, shape, dtype)
    except Exception:  # as above
        text = base.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        cache = 2 * batch * prompt * text.num_hidden_layers * heads * width * dtype.itemsize
        activations, rough = 8 * batch * prompt * text.hidden_size * dtype.itemsize, True
    layers = max(1, base.config.get_text_config().num_hidden_layers)
    cache = cache * (prompt + new) // prompt
    tasks = max(1, len(config.stream.tasks))
    tests = (config.stream.test_samples or TESTS) * tasks
    if config.stream.source == "embedded":
        tests = (config.stream.test_samples or 100) * 11
    deep = getattr(getattr(base.config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    kept = tests * row.image * vision_dim(base) * dtype.itemsize * (1 + len(deep))
    pictures = min(config.evaluation.cache_bytes, kept)
    return {
        "key-value cache": cache + cache // layers,  # a layer's is copied where it grows
        "activations": activations + _unpacked(config, base, dtype),
        "picture features": pictures,
        "vision": vision_bytes(base, row, batch, dtype),
    }, rough


def vision_bytes(model: Any, row: Row, rows: int, dtype: torch.dtype, learned: bool = False) -> int:
    """Bytes that the vision half of a batch holds at most: pixels, what a layer works with, and the features.

    Args:
        model: base or PEFT model.
        row: a typical sample.
        rows: samples encoded together.
        dtype: of the base's weights.
        learned: whether something in it is trained, so that its layers keep their activations.
    """
    base, tower = unwrap(model), _tower_config(model)
    width, inner = tower.get("hidden_size", 1024), tower.get("intermediate_size", 4096)
    layers = tower.get("num_hidden_layers", tower.get("depth", 24))
    one = rows * row.patches * dtype.itemsize
    pixels = rows * row.pixels * (4 + dtype.itemsize)
    work = one * (5 * width + 2 * inner)
    if getattr(base.config, "vision_feature_layer", -1) != -1:  # which has every layer's output kept until it is taken
        work += one * width * layers
    if learned:
        work += one * layers * (8 * width + 3 * inner)
    return pixels + work + 2 * rows * row.image * vision_dim(base) * dtype.itemsize


def _tower_config(model: Any) -> dict[str, Any]:
    vision: Any = getattr(unwrap(model).config, "vision_config", None)
    given: dict[str, Any] = {} if vision is None else vision if isinstance(vision, dict) else vision.to_dict()
    named = {"hidden_size": "embed_dim", "num_hidden_layers": "depth"}
    found = {key: given.get(key) or given.get(other) for key, other in named.items()} | {
        key: given.get(key) for key in ("intermediate_size", "patch_size")
    }
    if given.get("model_type", "").startswith("qwen2_vl") or ("mlp_ratio" in given and not found["intermediate_size"]):
        found["hidden_size"] = given.get("embed_dim") or found["hidden_size"]
        found["intermediate_size"] = int((found["hidden_size"] or 1024) * (given.get("mlp_ratio") or 4))
    return {key: value for key, value in found.items() if value}


def _unpacked(config: RunConfig, model: Any, dtype: torch.dtype) -> int:
    """Bytes of the largest layer that was held in fewer bits, as it is computed with."""
    if config.model.quantize == NONE:
        return 0
    base = unwrap(model)
    layers = [base.get_submodule(name) for name in linear_layers(base)]
    return max(layer.in_features * layer.out_features for layer in layers) * dtype.itemsize


def _encoding(config: RunConfig, adapted: Any, dtype: torch.dtype) -> int:
    """Bytes that routing by token embeddings takes once, at its first batch: blocks of the table in float32."""
    tuner = tuner_of(adapted)
    if tuner is None or not tuner.needs_routing or tuner.needs_task or config.model.instruction_encoder != "tokens":
        return 0
    rows, width = unwrap(adapted).get_input_embeddings().weight.shape
    return (2 if dtype.itemsize > 2 else 3) * 4 * min(rows, BLOCK) * width


def _by_rule(adapted: Any, shape: Shape, dtype: torch.dtype, checkpointed: bool) -> int:
    """Activations by a rule of thumb: what goes in and out of every linear layer of the language model, and logits."""
    base = unwrap(adapted)
    layers = [base.get_submodule(name) for name in linear_layers(base)]
    text = base.config.get_text_config()
    cells = shape.rows * shape.tokens * dtype.itemsize
    inside = cells * sum(2 * layer.in_features + layer.out_features for layer in layers)
    if checkpointed:
        inside = inside // max(1, text.num_hidden_layers) + cells * text.hidden_size * text.num_hidden_layers
    return inside + 16 * shape.rows * shape.answers * text.vocab_size


def _replayed(config: RunConfig, method: str) -> tuple[int, int]:
    """Samples learned beside a batch at most, and samples kept."""
    settings, guard = config.methods[method], config.guard
    raised = guard.beside(config.learner.batch_size) if guard.rehearses(settings) else 0
    if not rehearses(settings.strategy):
        return (min(raised, guard.memory), guard.memory) if raised else (0, 0)
    replay = strategy_of(config, method)(config.seed, **settings.strategy_options)
    assert isinstance(replay, Replay)
    own = replay.wanted(config.learner.batch_size)
    return min(max(own, raised), replay.memory), replay.memory


def _new_tokens(config: RunConfig) -> int:
    return max([task.max_new_tokens for task in config.stream.tasks.values()], default=16)
