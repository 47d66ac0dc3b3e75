"""Which texts have been met: eight bytes each, so that a million ids weigh no more than eight megabytes."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left

import numpy as np

RECENT = 1 << 15
"""Checksums that are kept in a set before they are sorted in."""


def checksum(data: bytes) -> int:
    """Of 64 bits: of a million texts, two share one with a chance of three in a hundred million."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class Taken:
    """A set of checksums."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = array("Q")

    def __contains__(self, value: int) -> bool:
        if value in self._recent:
            return True
        place = bisect_left(self._sorted, value)
        return place < len(self._sorted) and self._sorted[place] == value

    def add(self, value: int) -> None:
        """Add a checksum."""
        self._recent.add(value)
        if len(self._recent) >= RECENT:
            new = np.fromiter(self._recent, np.uint64, len(self._recent))
            both = np.concatenate([np.frombuffer(self._sorted, np.uint64), new])
            both.sort()
            self._sorted = array("Q")
            self._sorted.frombytes(both.tobytes())
            self._recent.clear()
