"""The strict scorers: what an answer deserves.

A scorer takes predictions and their samples and returns points per row, float64 [n]; their mean is the task's score.
Points run from 0 to 100; CIDEr times 100 may pass. An empty answer gets 0 from every scorer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from streamcvit.data.sample import Sample
from streamcvit.evaluation import boxes, needs
from streamcvit.evaluation.caption import cider_d, longest_in_order, words
from streamcvit.evaluation.follow import follow_pattern, follows_pattern
from streamcvit.evaluation.needs import needing, needs_of
from streamcvit.evaluation.ptb import ptb_tokenise
from streamcvit.evaluation.text import bare, check_lengths, flatten, parse_number, same_answer, vqa_official

Scorer = Callable[[Sequence[str], Sequence[Sample]], np.ndarray]
RowRule = Callable[[str, Sample], float]


def by_row(rule: RowRule, *, empty: float | None = 0.0) -> Scorer:
    """A scorer from a rule for one row that gives a share in 0..1.

    Args:
        rule: (prediction, sample) to the share of full marks.
        empty: the share of a blank prediction; None asks the rule.
    """

    def scorer(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
        check_lengths(predictions, samples)
        shares = [
            empty if empty is not None and not prediction.strip() else rule(prediction, sample)
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        return 100.0 * np.asarray(shares, dtype=np.float64)

    scorer.__doc__ = rule.__doc__
    scorer.__name__ = rule.__name__.lstrip("_")
    return needing(*needs_of(rule))(scorer)


def _exact(prediction: str, sample: Sample) -> float:
    """Equality with any reference after VQA normalisation."""
    return float(any(same_answer(prediction, answer) for answer in sample.answers))


def _format_exact(prediction: str, sample: Sample) -> float:
    """Equality of the strings but for blanks at the ends, case counts: the demanded format is part of the task."""
    return float(any(prediction.strip() == answer.strip() for answer in sample.answers))


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of an answer against those of several people, in 0..1 (Antol et al., VQA, 2015; `vqaEval.py`).

    The mean over the sets that leave one person out of min(1, matches / 3). As in the official evaluator nothing is
    normalised when all people agree, not even case. With three people the bar is two matches, else full marks would be
    out of reach.
    """
    prediction, people = flatten(prediction), [flatten(answer) for answer in answers]
    if len(set(people)) > 1:
        prediction, people = vqa_official(prediction), [vqa_official(answer) for answer in people]
    matches, n = people.count(prediction), len(people)
    bar = min(3, n - 1)
    left_out = matches * min(1.0, (matches - 1) / bar) + (n - matches) * min(1.0, matches / bar)
    return left_out / n


def _vqa(prediction: str, sample: Sample) -> float:
    """Soft accuracy of the official VQA evaluator with three human answers or more, else normalised equality."""
    if len(sample.answers) < 3:
        return _exact(prediction, sample)
    return soft_accuracy(prediction, sample.answers)


@needing(needs.synonyms)
def _classification(prediction: str, sample: Sample) -> float:
    """Normalised equality with the label or one of `meta["synonyms"]`."""
    names = (*sample.answers, *needs.synonyms(sample))
    return float(any(same_answer(prediction, name) for name in names))


_LETTER = re.compile(r"\(?([A-Za-z])(\)|[.:]|\b)\s*(.*)", re.DOTALL)


def _chosen(text: str, choices: Sequence[str]) -> int | None:
    """Index of the option that an answer names by letter, by its text, or by both."""
    for index, choice in enumerate(choices):
        if bare(text) == bare(choice) != "":
            return index
    found = _LETTER.fullmatch(text.strip())
    letter, mark, rest = found.groups() if found else ("", "", "")
    index = ord(letter.upper()) - ord("A") if letter else len(choices)
    if letter and (mark or not rest) and (not choices or index < len(choices)):
        agrees = not rest or (index < len(choices) and same_answer(rest, choices[index]))
        return index if agrees else None
    # Here "A cat" is the option "cat": an article is no letter.
    return next((index for index, choice in enumerate(choices) if same_answer(text, choice)), None)


@needing(needs.choices)
def _choice(prediction: str, sample: Sample) -> float:
    """The right option: its letter ("B", "b", "B.", "B)", "(B)"), its text from `meta["choices"]`, or both."""
    choices = needs.choices(sample) or ()
    chosen = _chosen(prediction, choices)
    return float(chosen is not None and any(chosen == _chosen(answer, choices) for answer in sample.answers))


def _near(prediction: float, reference: float) -> bool:
    return prediction == reference if reference == 0 else abs(prediction - reference) <= 0.05 * abs(reference)


def _number(prediction: str, sample: Sample) -> float:
    """At most 5 % off a number (Masry et al., ChartQA, 2022), normalised equality for other answers."""
    value = parse_number(prediction)
    for answer in sample.answers:
        reference = parse_number(answer)
        if value is not None and reference is not None:
            if _near(value, reference):
                return 1.0
        elif same_answer(prediction, answer):
            return 1.0
    return 0.0


# Intersection over union is a ratio of rounded products: a box that covers exactly half must not fail by the last bit.
_HALF = 0.5 - 1e-9


def _truth(sample: Sample) -> boxes.Box:
    box = sample.meta.get("answer_bbox")
    box = sample.answer if box is None else box
    return boxes.reference_box(box, needs.picture_size(sample), needs.box_unit(sample), sample.sample_id)


@needing(_truth)
def _grounding(prediction: str, sample: Sample) -> float:
    """IoU of 0.5 or more with `meta["answer_bbox"]` or the first answer; formats as `boxes.read_boxes`.

    `meta["size"]` is [width, height] in pixels. `meta["box_unit"]` says what the numbers of reference and prediction
    are; without it those up to 1 are shares of the picture.
    """
    truth, size, unit = _truth(sample), needs.picture_size(sample), needs.box_unit(sample)
    return float(any(boxes.iou(box, truth) >= _HALF for box in boxes.read_boxes(prediction, size, unit)))


@needing(needs.slots, needs.max_words, follow_pattern)
def _slots(prediction: str, sample: Sample) -> float:
    """Share of the words in `meta["slots"]` that the caption has, in their order.

    A slot is a word, or a list of words of which one is due. A caption longer than `meta["max_words"]` (default: the
    longest reference's number of words) gets 0, so that listing every word does not pay. Where the sample demands a
    form (`meta["follow_pattern"]`), a caption in another form gets 0: the form is part of the task.
    """
    wanted, said = needs.slots(sample), words(prediction)
    limit = needs.max_words(sample) or max(len(words(answer)) for answer in sample.answers)
    if len(said) > limit or (follow_pattern(sample) and not follows_pattern(prediction, sample)):
        return 0.0
    return longest_in_order(said, wanted) / len(wanted)


def cider(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
    """CIDEr-D times 100 on PTB-like tokens (Vedantam et al., 2015), through pycocoevalcap.

    Inverse document frequencies come from the references of the rows given: a subset scores differently, and one row
    alone scores 0.
    """
    check_lengths(predictions, samples)
    return cider_d(
        [ptb_tokenise(prediction) for prediction in predictions],
        [[ptb_tokenise(answer) for answer in sample.answers] for sample in samples],
    )


SCORERS: dict[str, Scorer] = {
    "exact": by_row(_exact),
    "format_exact": by_row(_format_exact),
    "vqa": by_row(_vqa),
    "classification": by_row(_classification),
    "choice": by_row(_choice),
    "number": by_row(_number),
    "grounding": by_row(_grounding),
    "slots": by_row(_slots),
    "cider": cider,
}
