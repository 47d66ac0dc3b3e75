"""The section of the settings that says how a stream that goes on is taken in, and what cannot be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from streamcvit.sections import Section


class FollowConfig(Section):
    """How a stream that goes on is taken in (source `follow`, docs/streams.md)."""

    source: str = Field(
        "folder", description="what `stream.data` is the address of, a name in streamcvit.data.sources.SOURCES"
    )
    samples_per_chunk: int = Field(256, ge=0, description="a chunk ends with so many; 0: by time alone")
    seconds_per_chunk: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="a chunk ends so long after its first sample came, however few there are; 0: by their number alone",
    )
    idle: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="seconds without an arrival after which the stream has ended; 0: never",
    )
    ahead: int = Field(
        4, ge=1, description="chunks that wait to be learned; while there are so many, nothing more is taken"
    )
    out_of_order: Literal["aside", "take"] = Field(
        "aside",
        description="a shard whose number is lower than that of one before it: set it aside by name, or take it as it "
        "comes",
    )

    @model_validator(mode="after")
    def _chunks_end(self) -> FollowConfig:
        from streamcvit.data.sources import SOURCES

        if self.source not in SOURCES:
            raise ValueError(f"source: unknown name {self.source!r}; allowed: {', '.join(sorted(SOURCES))}")
        if not (self.samples_per_chunk or self.seconds_per_chunk):
            raise ValueError("a chunk ends by number or by time: set samples_per_chunk or seconds_per_chunk")
        return self


def check_follow(data: str, unseen: str | None, orders: Mapping[str, str]) -> None:
    """Raises a ValueError where something is asked of a stream that goes on which only a whole one can give.

    Args:
        data: `stream.data`.
        unseen: `evaluation.unseen`.
        orders: in which each method reads the stream.
    """
    if not data:
        raise ValueError("source `follow` needs stream.data: where the shards arrive")
    for name, order in orders.items():
        if order == "joint":
            raise ValueError(
                f"methods.{name}.order: joint reads the whole stream at once; one that goes on is never whole"
            )
    if unseen not in (None, "never"):
        raise ValueError(f"evaluation.unseen: {unseen}: a stream that goes on does not say which tasks will come")
