"""A benchmark's recipe run whole on a tiny model over made-up files: `streamcvit run RECIPE --dry-run`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamcvit.config import RunConfig
from streamcvit.data.layouts import LAYOUTS, Layout
from streamcvit.errors import UserError
from streamcvit.models.processor import EMBEDDED
from streamcvit.models.tiny import TINY, architecture_of, save_tiny

ROWS = 2
"""Training rows of a task, and test rows; of mixed files a few a chunk."""
STEP, TESTS, TOKENS, RANK, CHUNKS = 16, 2, 2, 4, 2
"""At most: samples a step, questions a task, tokens of an answer, rank of an adapter, chunks of mixed files."""
_ATTENTION = 8
_MEMORY = 6


@contextmanager
def rehearsal(config: RunConfig) -> Iterator[tuple[RunConfig, list[str]]]:
    """Small files and a tiny model for a recipe, there as long as the context is.

    Args:
        config: a benchmark's recipe; neither its model nor its data have to be named.

    Yields:
        The recipe with all of its methods and tasks, of which only what costs time is made less, and lines for people
        that say what was.

    Raises:
        UserError: the pipeline is no benchmark's recipe, or there is no tiny model of its base's architecture.
    """
    if config.stream.source != "benchmark":
        raise UserError(
            "a dry run makes up the files of a published benchmark, and this pipeline is of none",
            where=f"stream.source: {config.stream.source}",
            fix="Try it as it is: `streamcvit check` looks at everything without learning",
        )
    layout, architecture = LAYOUTS[config.stream.benchmark], _architecture(config)
    with tempfile.TemporaryDirectory(prefix="streamcvit-dry-run-") as made:
        data, base = Path(made, "data"), Path(made, "base")
        layout.write_small(data, ROWS)
        save_tiny(architecture, base)
        yield shrunk(config, layout, data, base), list(_said(architecture, layout))


def _said(architecture: str, layout: Layout) -> Iterator[str]:
    yield f"dry run: a tiny {architecture}, random weights, made-up files of {layout.title}; no score means anything"
    yield f"at most {STEP} samples a step, {TESTS} questions a task, {TOKENS} tokens an answer, rank {RANK}"
    if layout.chunks:
        yield f"the rows of all {len(layout.chunks)} files come in their order, cut into {CHUNKS} chunks"


def _architecture(config: RunConfig) -> str:
    """That of the model which is named, else the one that the recipe is for."""
    model = config.model
    if model.name_or_path in ("", EMBEDDED):
        return model.architecture or next(iter(TINY))
    return architecture_of(model.name_or_path, model.revision)


def shrunk(config: RunConfig, layout: Layout, data: Path, base: Path) -> RunConfig:
    """A recipe with everything in it, over `data` on `base`, that is done in seconds."""
    tree = config.model_dump(mode="json")
    tree["name"] = f"{config.name[:50]}-dry-run"
    tree["stream"] |= {"data": str(data), "test_samples": TESTS}
    for task in tree["stream"]["tasks"].values():
        task["max_new_tokens"] = min(task["max_new_tokens"], TOKENS)
    if layout.chunks:
        tree["stream"]["scenario"] |= {"preset": f"strcvit-{CHUNKS}-recut"}
    tree["model"] |= {
        "name_or_path": str(base), "revision": "", "device": "cpu", "dtype": "float32", "quantize": "none",
        "compile": False, "attention": "sdpa", "processor_options": {}, "instruction_encoder": "tokens",
    }  # fmt: skip
    learner = tree["learner"]
    learner |= {
        "batch_size": min(learner["batch_size"], STEP),
        "micro_batch": min(learner["micro_batch"], STEP // 2),
        "gradient_checkpointing": False,
        "warmup_steps": min(learner["warmup_steps"], 1),
        "threads": 1,
    }
    tree["evaluation"]["draws"] = 10
    tree["guard"]["action"] = "none"  # so few questions confirm nothing
    for method in tree["methods"].values():
        method["options"] = _fewer(method["options"])
        if method["strategy_options"].pop("share", 0):
            method["strategy_options"]["per_step"] = 1  # so few samples are kept
        _lower(method["strategy_options"], memory=_MEMORY, per_step=1, memory_bytes=0, subspaces=2)
    return RunConfig.model_validate(tree)


def _fewer(options: dict[str, Any]) -> dict[str, Any]:
    """An adapter's options at a small rank, scaled as they were."""
    options = dict(options)
    rank = options.get("r", RANK)
    if options.get("lora_alpha") and rank > RANK:
        options["lora_alpha"] *= RANK / rank
    _lower(options, r=RANK, attention_dim=_ATTENTION)
    return options


def _lower(options: dict[str, Any], **most: int) -> None:
    for name, bound in most.items():
        if name in options:
            options[name] = min(options[name], bound)
