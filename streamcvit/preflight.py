"""What can be known of a run before anything of it is written or started."""

from __future__ import annotations

import inspect

import torch

from streamcvit.adapters import ADAPTERS, Reach, adapter_config, attach, check_compiler, checkpoint_layers
from streamcvit.adapters.instruction import encoder_dim, encoder_identity
from streamcvit.adapters.parts import Parts
from streamcvit.config import ModelConfig, RunConfig
from streamcvit.errors import UserError
from streamcvit.fitting import memory_lines
from streamcvit.footprint import picture_lines
from streamcvit.learning.rates import grouped
from streamcvit.models.attention import check_attention
from streamcvit.models.base import device_of, dtype_of, skeleton
from streamcvit.models.collate import Collator
from streamcvit.models.quantize import NONE, check_quantize, quantised_line
from streamcvit.models.vision import vision_dim
from streamcvit.monitoring.exporter import check_address
from streamcvit.monitoring.sinks import check_ready
from streamcvit.monitoring.traces import check_traces
from streamcvit.run import own, ownkinds
from streamcvit.run.loading import adapter_options, collation, selection_of
from streamcvit.run.origin import lines as origin_lines
from streamcvit.run.origincheck import check as check_origin
from streamcvit.sharing import check_local

ANY_SIZES = {"instruction_dim": 1, "visual_dim": 1}  # of a model that is not loaded yet


def check_settings(config: RunConfig, local: bool) -> list[str]:
    """Settings that can be wrong although each has a value of its kind, and what each method's adapter reaches.

    Args:
        config: the run.
        local: whether it runs in this process.

    Returns:
        Lines for people: files of one's own that are used, the weights of each part of the model, what every method
        that learns trains of them, what a typical picture takes, and the memory that the largest method needs, by
        estimate.

    Raises:
        UserError: what a file of one's own defines is not what a setting asks for, an adapter or strategy cannot be
            made as its options ask, there is no such device, attention, revision or instruction encoder, the model's
            chat template cannot be served, pictures cannot be prepared as asked or do not fit, a sink lacks its
            package, or nobody can listen at the monitor's address.
    """
    written = ownkinds.check(config)
    check_options(config)
    collator = Collator.from_pretrained(config.model.name_or_path, **collation(config))
    pictures = picture_lines(config, collator)
    check_ready(config.monitor.sinks, config.monitor.sink_options)
    check_traces(config.monitor.traces, local)
    encoder_identity(config.model.instruction_encoder)  # a missing one is said, or downloaded
    if local:
        check_local(config)
    if local or config.cluster.address == "local":
        check_machine(config.model)
    if not local:
        check_address(config.monitor.host, config.monitor.port)
    return [*written, *describe(config), *pictures, *memory_lines(config, local, collator)]


def check_machine(model: ModelConfig) -> None:
    """What the base model wants of the machine that it is loaded on.

    Raises:
        UserError: the device, a package or a compiler is not there, or the model cannot have that attention, or be
            quantised.
    """
    device = device_of(model.device)
    check_attention(model.attention, device, dtype_of(model.dtype, device))
    if model.compile:
        check_compiler(device)
    bare = skeleton(model.name_or_path, model.revision, model.attention)
    check_quantize(model.quantize, bare.config)


def describe(config: RunConfig) -> list[str]:
    """The weights of each part of the model and what every method trains of them; errors as `reach_of`."""
    model = skeleton(config.model.name_or_path, config.model.revision)
    few = [] if (quantize := config.model.quantize) == NONE else [quantised_line(model, quantize)]
    return [Parts.of(model).line(model), *few, *reach_of(config).values(), *origin_lines(config)]


def check_options(config: RunConfig) -> None:
    """Make every adapter's configuration and every strategy once.

    Raises:
        UserError: an unknown option, or a value that it cannot have.
    """
    for name, method in config.methods.items():
        if method.adapter in ADAPTERS:
            try:
                adapter_config(method.adapter, None, options=method.options, sizes=ANY_SIZES)
            except UserError as error:
                raise UserError(error.what, where=f"methods.{name}.options", fix=error.fix) from error
        elif method.train:
            raise UserError(
                f"the adapter {method.adapter!r} trains nothing", where=f"methods.{name}.train", fix="Remove it"
            )
        elif method.options:
            raise UserError(
                f"the adapter {method.adapter!r} takes no options", where=f"methods.{name}.options", fix="Remove them"
            )
        _check_strategy(config, name)


def reach_of(config: RunConfig) -> dict[str, str]:
    """Put every adapter on the model's skeleton: a line on what it reaches, by method.

    Raises:
        UserError: the model does not have the modules that an adapter's options name, or the adapter cannot go there.
    """
    lines: dict[str, str] = {}
    known: dict[str, tuple[Reach, bool]] = {}  # many methods differ in their strategy or rate alone
    for name, method in config.methods.items():
        if method.adapter not in ADAPTERS:
            continue
        key = repr((method.adapter, method.options, method.start, method.train, method.lrs))
        if key not in known:
            known[key] = _reach(config, name)
        reach, exact = known[key]
        lines[name] = reach.line(name, exact)
    return lines


def _reach(config: RunConfig, name: str) -> tuple[Reach, bool]:
    """What a method's adapter reaches, and whether the number of its weights is exact."""
    method, model = config.methods[name], skeleton(config.model.name_or_path, config.model.revision)
    dim = encoder_dim(config.model.instruction_encoder, model)
    sizes = {"instruction_dim": dim or 384, "visual_dim": vision_dim(model)}
    try:
        options = adapter_options(config, name, model)
        if isinstance(options.get("init_lora_weights"), str):  # it is computed from weights, which are not there
            options["init_lora_weights"] = True
        with torch.device("meta"):
            adapted = attach(model, method.adapter, options=options, sizes=sizes)
        grouped(adapted, {key: p for key, p in adapted.named_parameters() if p.requires_grad}, 1.0, method.lrs)
        if config.learner.gradient_checkpointing:
            checkpoint_layers(adapted)
        check_origin(config, name, adapted)
        return Reach.of(adapted), dim is not None
    except UserError as error:
        raise UserError(error.what, where=_key(config, name, error.where), fix=error.fix) from error


def _key(config: RunConfig, name: str, where: str) -> str:
    """The setting behind an adapter's option, or behind a field of `train`; others are named as they are."""
    if where.startswith(("learner.", "methods.")):
        return where
    if where.startswith("lrs."):
        return f"methods.{name}.{where}"
    section, selection = selection_of(config, name)
    if where in selection.keys.values():
        return f"{section}.{where}"
    if where in selection.keys:
        return f"{section}.{selection.keys[where]}"
    return f"methods.{name}.options" + (f".{where}" if where in config.methods[name].options else "")


def _check_strategy(config: RunConfig, method: str) -> None:
    cls, strategy = ownkinds.strategy_of(config, method), config.methods[method].strategy
    options = config.methods[method].strategy_options
    known = list(inspect.signature(cls).parameters)[1:]  # the first is the seed
    where = f"methods.{method}.strategy_options"
    if unknown := sorted(set(options) - set(known)):
        has = f"It has {', '.join(known)}" if known else "It has none"
        raise UserError(f"{strategy} has no option {unknown[0]!r}", where=where, fix=has)
    try:
        cls(config.seed, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{strategy}: {error}", where=where, fix="See docs/settings.md for its options") from None
    except Exception as error:
        raise own.blamed(error, config) or error from None
