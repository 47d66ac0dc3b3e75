"""TensorBoard: an event file in each method's run folder; `tensorboard --logdir runs` shows them as run/method."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from streamcvit.monitoring.sinks.base import Point, Sink, Target, described

FILE = "events.out.tfevents.streamcvit"
_HEAD, _CRC = struct.Struct("<QI"), struct.Struct("<I")


class TensorBoard(Sink):
    """One event file, appended to by every life of the run; each tag carries what its metric means."""

    package = "tensorboard"

    def held(self, target: Target) -> dict[str, int]:
        held: dict[str, int] = {}
        self.whole = 0  # bytes
        for event, self.whole in events(target.folder / FILE):
            held |= {value.tag: max(event.step, held.get(value.tag, 0)) for value in event.summary.value}
        self.told = set(held)
        return held

    def open(self, target: Target) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        path = target.folder / FILE
        if path.exists() and self.whole < path.stat().st_size:
            os.truncate(path, self.whole)  # a record that a kill cut short
        self.file: BinaryIO = open(path, "ab")  # noqa: SIM115 (it stays open)
        self.writer = RecordWriter(self.file)
        if not self.whole:
            self.writer.write(Event(file_version="brain.Event:2").SerializeToString())

    def write(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        for (step, time), group in groupby(points, key=lambda point: (point.step, point.time)):
            event = Event(step=step, wall_time=time)
            for point in group:
                value = event.summary.value.add(tag=point.tag, simple_value=point.value)
                if point.tag not in self.told:
                    self.told.add(point.tag)
                    value.metadata.summary_description = described(point.tag)
                    value.metadata.plugin_data.plugin_name = "scalars"
            self.writer.write(event.SerializeToString())
        self.file.flush()

    def close(self, finished: bool) -> None:
        self.file.close()


def events(path: Path) -> Iterator[tuple[Any, int]]:
    """The whole events of a file, each with the place where it ends; nothing where there is no file."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    if not path.exists():
        return
    with open(path, "rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, crc = _HEAD.unpack(head)
            if crc != masked_crc32c(head[:8]):
                return
            data, end = file.read(length), file.read(_CRC.size)
            if len(end) < _CRC.size or _CRC.unpack(end)[0] != masked_crc32c(data):
                return
            yield Event.FromString(data), file.tell()
