"""Captions: tokens, slots and CIDEr-D."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return [word.casefold() for word in _WORD.findall(text)]


def longest_in_order(said: Sequence[str], wanted: Sequence[set[str]]) -> int:
    """How many of the wanted words stand in what was said, in order (length of the longest common subsequence)."""
    best = [0] * (len(wanted) + 1)
    for word in said:
        for slot in range(len(wanted), 0, -1):
            if word in wanted[slot - 1]:
                best[slot] = max(best[slot], best[slot - 1] + 1)
        for slot in range(1, len(wanted) + 1):
            best[slot] = max(best[slot], best[slot - 1])
    return best[-1]


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D times 100 of each prediction, float64 [n]; words are what blanks part.

    pycocoevalcap's "CIDEr" is CIDEr-D: n-grams up to 4, clipped, Gaussian length penalty with sigma 6 on the number of
    bigrams. Its document frequencies are those of the references given.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    if not any(reference.split() for several in references for reference in several):
        return np.zeros(len(predictions))
    scorer = CiderScorer(n=4, sigma=6.0)
    for prediction, several in zip(predictions, references, strict=True):
        scorer += (prediction, list(several))
    _, per_row = scorer.compute_score()
    return 100.0 * np.asarray(per_row, dtype=np.float64)
