"""From the stream section of a config to shards and index."""

from __future__ import annotations

from streamcvit.config import RunConfig
from streamcvit.data import embedded
from streamcvit.data.scenario import Plan


def embedded_plan(config: RunConfig) -> Plan:
    """The chunk x task table of the embedded benchmark."""
    scenario = config.stream.scenario
    per_chunk = scenario.samples_per_chunk or embedded.SAMPLES_PER_CHUNK
    return Plan(tuple(embedded.TASKS), embedded.chunk_plan(scenario.chunks, per_chunk, config.seed))
