"""What can be known of a run before anything of it is written or started."""

from __future__ import annotations

import inspect
from typing import Any

from streamcvit.adapters import ADAPTERS, adapter_config
from streamcvit.adapters.instruction import encoder_identity
from streamcvit.config import RunConfig
from streamcvit.errors import UserError
from streamcvit.learning import STRATEGIES
from streamcvit.models.base import device_of
from streamcvit.models.collate import Collator
from streamcvit.monitoring.exporter import check_address
from streamcvit.run.loading import collation

ANY_SIZES = {"instruction_dim": 1, "visual_dim": 1}  # of a model that is not loaded yet


def check_settings(config: RunConfig, local: bool) -> None:
    """Settings that can be wrong although each has a value of its kind.

    Args:
        config: the run.
        local: whether it runs in this process.

    Raises:
        UserError: an adapter or strategy cannot be made as its options ask, there is no such device or instruction
            encoder, the model's chat template cannot be served, or nobody can listen at the monitor's address.
    """
    check_options(config)
    Collator.from_pretrained(config.model.name_or_path, **collation(config))
    encoder_identity(config.model.instruction_encoder)  # a missing one is said, or downloaded
    if local or config.cluster.address == "local":
        device_of(config.model.device)
    if not local:
        check_address(config.monitor.host, config.monitor.port)


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
        elif method.options:
            raise UserError(
                f"the adapter {method.adapter!r} takes no options", where=f"methods.{name}.options", fix="Remove them"
            )
        _check_strategy(name, method.strategy, method.strategy_options, config.seed)


def _check_strategy(method: str, strategy: str, options: dict[str, Any], seed: int) -> None:
    cls = STRATEGIES[strategy]
    known = list(inspect.signature(cls).parameters)[1:]  # the first is the seed
    where = f"methods.{method}.strategy_options"
    if unknown := sorted(set(options) - set(known)):
        has = f"It has {', '.join(known)}" if known else "It has none"
        raise UserError(f"{strategy} has no option {unknown[0]!r}", where=where, fix=has)
    try:
        cls(seed, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{strategy}: {error}", where=where, fix="See docs/methods.md") from None
