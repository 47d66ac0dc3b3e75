"""Families whose stock classes are called otherwise than the rest: which file of this room fits them to it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

FAMILIES = {
    "Blip2ForConditionalGeneration": "qformer",
    "Blip2Processor": "qformer",
    "InstructBlipForConditionalGeneration": "qformer",
    "InstructBlipProcessor": "qformer",
}
"""Stock class of a model or processor -> the module here whose `fit` makes one be called as the rest are."""
CONFIGS = {"blip-2": "qformer", "instructblip": "qformer"}
"""Model type of a configuration -> the same module, whose `check` says what of the family cannot be served."""


def fitted(part: Any) -> Any:
    """The same model or processor, fitted in place where its family is one of `FAMILIES`; doing it again does nothing.

    Weights, names of modules and what is saved stay those of the stock class.

    Raises:
        UserError: a member of the family that cannot be served, and why.
    """
    file = FAMILIES.get(type(part).__name__)
    if file is not None:
        import_module(f"streamcvit.models.{file}").fit(part)
    return part


def check_config(config: Any) -> None:
    """Refuse, by its configuration alone, a member of one of these families that cannot be served.

    Raises:
        UserError: which and why.
    """
    file = CONFIGS.get(getattr(config, "model_type", ""))
    if file is not None:
        import_module(f"streamcvit.models.{file}").check(config)
