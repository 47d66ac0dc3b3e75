"""What every process of a run loads, and how it is set up to compute alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import torch
from peft import PeftModel

from streamcvit.adapters import InstructionEncoder, tuner_of
from streamcvit.adapters.build import attach
from streamcvit.adapters.selection import Selection
from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.learning import BatchSource, Schedule
from streamcvit.learning.grouping import lengths_of, picture_tokens
from streamcvit.models.base import Base, dtype_of, load_base, skeleton, weight_files
from streamcvit.models.batch import Batch
from streamcvit.models.collate import Collator
from streamcvit.models.pictures import PictureRules
from streamcvit.models.quantize import NONE, held_bytes
from streamcvit.models.vision import vision_dim
from streamcvit.monitoring import traces

Feed = Callable[[str, int, int], Iterator[Batch]]
"""(order, first cursor, cursor to stop at) -> the batches between, in order; fewer where the run stops meanwhile."""


def settle(config: RunConfig) -> None:
    """Make this process compute as every other process of the run does."""
    torch.set_num_threads(config.learner.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


def traced(config: RunConfig, actor: str) -> None:
    """Trace this process, an actor of the run, where the config says so."""
    monitor = config.monitor
    traces.begin(monitor.traces, config.name, actor, config.folder(), monitor.trace_share)


def load_model(config: RunConfig) -> Base:
    """The frozen base that a config names."""
    model = config.model
    given: dict[str, Any] = {
        "device": model.device,
        "dtype": model.dtype,
        "attn": model.attention,
        "quantize": model.quantize,
    }
    return load_base(model.name_or_path, **given, **collation(config))


def base_bytes(config: RunConfig, folder: str) -> int:
    """Bytes of the base's weights: those of its files, or less where they are held in fewer bits."""
    model = config.model
    if model.quantize == NONE:
        return sum(file.stat().st_size for file in weight_files(folder))
    return held_bytes(skeleton(folder), model.quantize, dtype_of(model.dtype, torch.device("cpu")))


def collation(config: RunConfig) -> dict[str, Any]:
    """What a config says of how samples become model inputs, as `Collator` takes it."""
    model = config.model
    return {
        "revision": model.revision,
        "max_length": model.max_length,
        "turns": config.learner.turns,
        "template_options": model.template_options,
        "chat_template": model.chat_template,
        "pictures": PictureRules(model.max_pixels, model.max_picture_tokens, model.processor_options),
    }


def load_encoder(config: RunConfig, base: Base) -> InstructionEncoder:
    """The instruction encoder that a config names."""
    return InstructionEncoder.load(config.model.instruction_encoder, base.model, base.tokenizer)


def selection_of(config: RunConfig, method: str) -> tuple[str, Selection]:
    """The key of the section that says what of the model a method trains, and what it says."""
    own = config.methods[method].train
    key, section = (f"methods.{method}.train", own) if own else ("train", config.train)
    return key, Selection(**section.model_dump())


def adapter_options(config: RunConfig, method: str, model: torch.nn.Module) -> dict[str, Any]:
    """A method's adapter options, with what the config says of the parts that learn; see `Selection.options`."""
    settings = config.methods[method]
    return selection_of(config, method)[1].options(model, settings.options, routed=settings.adapter != "lora")


def wrap(base: Base, encoder: InstructionEncoder, config: RunConfig, method: str) -> PeftModel:
    """The base with a method's fresh adapter on it; the same weights in every process."""
    settings = config.methods[method]
    return attach(
        base.model,
        settings.adapter,
        seed=config.seed,
        options=adapter_options(config, method, base.model),
        sizes={"instruction_dim": encoder.dim, "visual_dim": vision_dim(base.model)},
    )


def routes(model: PeftModel) -> bool:
    """Whether the adapter on a model reads routing inputs."""
    tuner = tuner_of(model)
    return tuner is not None and tuner.needs_routing


def schedule_of(config: RunConfig, index: StreamIndex, order: str) -> Schedule:
    """In which order a run reads the stream, for methods of one `order`: the same in every process."""
    learner, lengths = config.learner, None
    if learner.group_by_length:
        how = {**collation(config), "max_length": None}
        how["pictures"] = asdict(how["pictures"])
        lengths = lengths_of(index, _picture_tokens(config.model.name_or_path, json.dumps(how, sort_keys=True)))
    return Schedule.of(index, learner.batch_size, order, config.seed, lengths)  # type: ignore[arg-type]


@cache
def _picture_tokens(name_or_path: str, how: str) -> int:
    options = json.loads(how)
    pictures = PictureRules(**options.pop("pictures"))
    return picture_tokens(Collator.from_pretrained(name_or_path, pictures=pictures, **options).unbounded())


def local_feed(config: RunConfig, stream: str) -> Feed:
    """Batches read in this process, one after another."""
    index = StreamIndex.open(stream)
    reader = ShardReader(index)
    collator = Collator.from_pretrained(config.model.name_or_path, **collation(config))

    micro = config.cluster.micro_batch(config.learner.batch_size, config.learner.micro_batch)
    schedules = cache(partial(schedule_of, config, index))  # one batch may be asked for at a time

    def feed(order: str, cursor: int, stop: int) -> Iterator[Batch]:
        source = BatchSource(reader, collator, schedules(order), micro)
        while cursor < stop:
            with traces.span("ingest", order=order, cursor=cursor):
                batch = source.batch(cursor)
                if trace := traces.here():
                    batch = replace(batch, trace=trace)
            yield batch
            cursor = batch.next_cursor

    return feed
