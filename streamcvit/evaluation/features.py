"""Picture features that are kept: in memory up to a size, behind it in a file that is gone with the process."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from streamcvit.models.pieces import Pieces


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the file."""

    start: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class FeatureStore:
    """The pieces of pictures by key, bit for bit as they were put.

    A store belongs to one base model: its keys name pictures, not the weights that encoded them.

    Args:
        memory: bytes kept in memory, where the features are (on a GPU: its own).
        disk: bytes of the file that follows; it takes no more than half of what is free on its disk, and has no name,
            so that nothing is left of it however the process ends.
        folder: where the file goes; None: the machine's folder for temporary files.

    Attributes:
        held_bytes: kept in memory.
        disk_bytes: kept in the file.
        full: whether something did not fit.
        fault: what went wrong with the file, in one line; empty: nothing.
    """

    def __init__(self, memory: int, disk: int = 0, folder: Path | None = None) -> None:
        self.memory, self.disk, self.folder = memory, disk, folder
        self.held_bytes = self.disk_bytes = 0
        self.full, self.fault = memory + disk <= 0, ""
        self._held: dict[str, Pieces] = {}
        self._places: dict[str, tuple[_Place, ...]] = {}
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self._places

    def __len__(self) -> int:
        return len(self._held) + len(self._places)

    def put(self, key: str, pieces: Pieces) -> None:
        """Keep a picture's pieces; nothing where there is no room, or where they are kept already."""
        if key in self:
            return
        size = sum(piece.numel() * piece.element_size() for piece in pieces)
        if self.held_bytes + size <= self.memory:
            # Clones: a view would keep the whole batch's features alive.
            self._held[key] = tuple(piece.clone() for piece in pieces)
            self.held_bytes += size
        elif self.disk_bytes + size > self.disk or not self._write(key, pieces, size):
            self.full = True

    def get(self, key: str, device: torch.device | str) -> Pieces:
        """A picture's pieces, on that device; KeyError where they are not kept."""
        if key in self._held:
            return tuple(piece.to(device) for piece in self._held[key])
        return tuple(self._read(place).to(device) for place in self._places[key])

    def _write(self, key: str, pieces: Pieces, size: int) -> bool:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            file = self._file.fileno()
            there = os.fstatvfs(file)
            if there.f_bavail * there.f_frsize - size < self.disk_bytes + size:
                self._close("half of the free disk is taken")
                return False
            start, places = self.disk_bytes, []
            for piece in pieces:
                data, done = piece.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, 0
                while done < len(data):
                    done += os.pwrite(file, data[done:], start + done)
                places.append(_Place(start, len(data), tuple(piece.shape), piece.dtype))
                start += len(data)
        except OSError as error:  # the disk is full, or no file can be made there
            self._close(error.strerror or str(error))
            return False
        self._places[key], self.disk_bytes = tuple(places), start
        return True

    def _close(self, reason: str) -> None:
        """Write no more; what is written can be read."""
        self.disk = 0
        self.fault = (
            f"picture features are kept on disk no further than {self.disk_bytes / 2**30:.1f} GiB ({reason}): "
            "the pictures behind are encoded each time"
        )

    def _read(self, place: _Place) -> torch.Tensor:
        assert self._file is not None
        if not place.size:
            return torch.empty(place.shape, dtype=place.dtype)
        if self._map is None or len(self._map) < place.start + place.size:
            self._map = mmap.mmap(self._file.fileno(), self.disk_bytes, access=mmap.ACCESS_READ)
        raw = np.frombuffer(self._map, np.uint8, place.size, place.start)
        return torch.from_numpy(raw.copy()).view(place.dtype).reshape(place.shape)
