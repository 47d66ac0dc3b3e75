"""A file of predictions scored by a rule, and held against the rule of another family."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcvit.errors import UserError
from streamcvit.evaluation.bootstrap import Estimate
from streamcvit.evaluation.causes import causes
from streamcvit.evaluation.families import counterpart, find_rule
from streamcvit.evaluation.interval import score_interval
from streamcvit.evaluation.mcitlib import caption_parts, caption_points
from streamcvit.evaluation.needs import needs_of
from streamcvit.evaluation.scorers import Scorer
from streamcvit.scorefile import Pairs, read_pairs

_CAPTIONS = {"mcitlib/caption": True, "mcitlib/caption_no_meteor": False}
_WIDTH = 60


@dataclass
class Difference:
    """A row on which two rules differ."""

    id: str
    prediction: str
    references: tuple[str, ...]
    points: float
    other: float
    causes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return {**vars(self), "references": list(self.references), "causes": list(self.causes)}


@dataclass
class Scored:
    """What a file of predictions is worth.

    Attributes:
        rule: FAMILY/NAME.
        pairs: what was scored.
        points: of each row, 0 to 100 (captions may pass), float64 [n].
        estimate: their mean with its 95 % interval.
        interval: `wilson` or `bootstrap`.
        parts: the measures that a caption rule is the mean of.
        against: the rule it is held against; empty: none was asked for.
        other: that rule's score.
        differences: the rows on which they differ.
    """

    rule: str
    pairs: Pairs
    points: np.ndarray
    estimate: Estimate
    interval: str
    parts: dict[str, float]
    against: str = ""
    other: float = float("nan")
    differences: tuple[Difference, ...] = ()

    @property
    def tally(self) -> dict[str, int]:
        """How many of the rows that differ have each cause, the most frequent first; a row may have several."""
        return dict(Counter(cause for one in self.differences for cause in one.causes).most_common())

    def to_json(self, rows: bool = False) -> dict[str, Any]:
        """All of it as a JSON object."""
        found: dict[str, Any] = {"rule": self.rule, "score": self.estimate.value, "n": len(self.points)}
        found |= {"low": self.estimate.low, "high": self.estimate.high}
        found |= {"interval": self.interval, "paired_by": self.pairs.how}
        if self.parts:
            found["parts"] = self.parts
        if self.against:
            found["diff"] = {
                "against": self.against,
                "score": self.other,
                "rows": [d.to_json() for d in self.differences],
            }
            found["diff"]["causes"] = self.tally
        if rows:
            found["points"] = dict(zip(self.pairs.ids, self.points.tolist(), strict=True))
        return found

    def lines(self, shown: int) -> Iterator[str]:
        """The same for a person, with so many of the rows that differ."""
        value, low, high = self.estimate
        interval = f"95 % interval {low:.2f} to {high:.2f} ({self.interval})"
        yield f"{self.rule}: {value:.2f}, {interval}, n = {len(self.points)}"
        if self.parts:
            yield "mean of " + ", ".join(f"{name} {part:.2f}" for name, part in self.parts.items())
        if self.pairs.how == "place":
            yield "the rows are paired by their place in the files, not by an id"
        if not self.against:
            return
        yield f"{self.against}: {self.other:.2f}; the two differ on {len(self.differences)} of {len(self.points)} rows"
        for cause, count in self.tally.items():
            yield f"  {count:>6} {cause}"
        for one in self.differences[:shown]:
            texts = f"{one.prediction!r:.{_WIDTH}} for {' | '.join(dict.fromkeys(one.references))!r:.{_WIDTH}}"
            yield f"{one.id}: {texts}: {one.points:g}, there {one.other:g} ({', '.join(one.causes)})"
        if len(self.differences) > shown:
            yield f"... and {len(self.differences) - shown} more, all of them with --json"


def score_files(
    rule: str,
    predictions: Path,
    references: Path | None = None,
    *,
    diff: bool = False,
    against: str | None = None,
    answered: bool = False,
    by_place: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Scored:
    """Score a file of predictions.

    Args:
        rule: FAMILY/NAME.
        predictions: file of answers.
        references: file of what is right; None: it stands beside the answers.
        diff: hold the rule against another.
        against: which, FAMILY/NAME; None: the one that judges the same kind of task in the other family.
        answered: leave references out that have no prediction.
        by_place: pair rows by their place in the files, whatever their ids.
        say: takes a line on what is odd.

    Raises:
        UserError: there is no such rule or file, the two files do not fit, or a row lacks what the rule reads.
    """
    if rule == "mcitlib/caption" and shutil.which("java") is None:
        rule = "mcitlib/caption_no_meteor"
        say("note: METEOR needs Java, and there is none: this is the mean of the six other measures, not the script's")
    family, name, scorer = find_rule(rule)
    if diff and against is None and (against := counterpart(family, name)) is None:
        raise UserError(f"no rule stands beside {rule}", where="--diff", fix="Name one with --against FAMILY/NAME")
    other = find_rule(against) if diff and against is not None else None
    pairs = read_pairs(predictions, references, answered=answered, by_place=by_place)
    parts: dict[str, float] = {}
    if rule in _CAPTIONS:  # METEOR takes long to start: once for measures and points
        found = caption_parts(pairs.predictions, pairs.samples, meteor=_CAPTIONS[rule])
        parts, points = {measure: total for measure, (total, _) in found.items()}, caption_points(found)
    else:
        points = _points(scorer, pairs)
    estimate, interval = score_interval(points)
    scored = Scored(rule, pairs, points, estimate, interval, parts)
    if other is not None and against is not None:
        there = _points(other[2], pairs)
        scored.against, scored.other = against, float(there.mean())
        strict = name if family == "strict" else other[1]
        scored.differences = tuple(_differences(pairs, points, there, strict, (scorer, other[2])))
    return scored


def _points(scorer: Scorer, pairs: Pairs) -> np.ndarray:
    for sample in pairs.samples:
        for read in needs_of(scorer):
            read(sample)
    return scorer(pairs.predictions, pairs.samples)


def _differences(
    pairs: Pairs, points: np.ndarray, there: np.ndarray, strict: str, scorers: tuple[Scorer, Scorer]
) -> Iterator[Difference]:
    for row in np.flatnonzero(np.abs(points - there) > 1e-6):
        prediction, sample, mine, others = pairs.predictions[row], pairs.samples[row], points[row], there[row]
        why = causes(prediction, sample, strict, scorers[0] if mine < others else scorers[1])
        yield Difference(pairs.ids[row], prediction, sample.answers, float(mine), float(others), why)
