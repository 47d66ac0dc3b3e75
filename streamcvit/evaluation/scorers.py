"""The strict scorers: what an answer deserves.

A scorer takes predictions and their samples and returns points per row, float64 [n]; their mean is the task's score.
Points run from 0 to 100; CIDEr times 100 may pass. An empty answer gets 0 from every scorer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from streamcvit.data.sample import Sample
from streamcvit.evaluation import answers as reading
from streamcvit.evaluation import boxes, needs
from streamcvit.evaluation.answers import parse_number, same_answer
from streamcvit.evaluation.caption import cider_d, longest_in_order, words
from streamcvit.evaluation.follow import follow_pattern, follows_pattern
from streamcvit.evaluation.needs import needing, needs_of
from streamcvit.evaluation.options import chosen
from streamcvit.evaluation.ptb import ptb_tokenise
from streamcvit.evaluation.text import check_lengths

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
    """Equality with any reference, as `answers.same_answer` has it."""
    return float(any(same_answer(prediction, answer) for answer in sample.answers))


def _format_exact(prediction: str, sample: Sample) -> float:
    """Equality of the strings but for blanks at the ends, case counts: the demanded format is part of the task."""
    return float(any(prediction.strip() == answer.strip() for answer in sample.answers))


def soft_accuracy(matches: int, people: int) -> float:
    """Accuracy of an answer that some of several people gave, in 0..1 (Antol et al., VQA, 2015; `vqaEval.py`).

    The mean over the sets that leave one person out of min(1, matches / 3). With three people the bar is two matches,
    else full marks would be out of reach.
    """
    bar = min(3, people - 1)
    left_out = matches * min(1.0, (matches - 1) / bar) + (people - matches) * min(1.0, matches / bar)
    return left_out / people


def _vqa(prediction: str, sample: Sample) -> float:
    """Soft accuracy with three human answers or more, else equality; answers are compared as in `exact`."""
    if len(sample.answers) < 3:
        return _exact(prediction, sample)
    matches = sum(same_answer(prediction, answer) for answer in sample.answers)
    return soft_accuracy(matches, len(sample.answers))


@needing(needs.synonyms)
def _classification(prediction: str, sample: Sample) -> float:
    """Normalised equality with the label or one of `meta["synonyms"]`."""
    names = (*sample.answers, *needs.synonyms(sample))
    return float(any(same_answer(prediction, name) for name in names))


def _right_options(sample: Sample) -> tuple[int, ...]:
    """Indices of the options that the references name."""
    options = needs.choices(sample) or ()
    found = [index for answer in sample.answers if (index := chosen(answer, options)) is not None]
    if not found:
        what = f"the reference {sample.answer!r:.80} is "
        what += f"none of the choices {list(options)!r:.200}" if options else "no letter, and there are no choices"
        raise needs.unanswerable(sample, what, "Give the letter or the text of an option as answer")
    return tuple(found)


@needing(needs.choices, _right_options)
def _choice(prediction: str, sample: Sample) -> float:
    """The right option: its letter, its text from `meta["choices"]`, or both; read as `options.chosen` reads."""
    return float(chosen(prediction, needs.choices(sample) or ()) in _right_options(sample))


def _near(prediction: float, reference: float) -> bool:
    return prediction == reference if reference == 0 else abs(prediction - reference) <= 0.05 * abs(reference)


_YEAR = re.compile(r"(?:1[5-9]|20)[0-9]{2}")


def _number(prediction: str, sample: Sample) -> float:
    """At most 5 % off a number (Masry et al., ChartQA, 2022); equality for years and for other answers.

    A year is a plain number from 1500 to 2099: five per cent of one are a century.
    """
    value = parse_number(prediction)
    for answer in sample.answers:
        reference = parse_number(answer)
        if value is not None and reference is not None and not _YEAR.fullmatch(answer.strip()):
            if _near(value, reference):
                return 1.0
        elif same_answer(prediction, answer):
            return 1.0
    return 0.0


def _anls(prediction: str, sample: Sample) -> float:
    """Similarity with the nearest reference (Biten et al., 2019, ST-VQA and DocVQA): ANLS with a threshold of 0.5."""
    return max(reading.anls(prediction, answer) for answer in sample.answers)


# Intersection over union is a ratio of rounded products: a box that covers exactly half must not fail by the last bit.
_HALF = 0.5 - 1e-9


def _truth(sample: Sample) -> boxes.Box:
    box = sample.meta.get("answer_bbox")
    box = sample.answer if box is None else box
    size, unit, order = needs.picture_size(sample), needs.box_unit(sample), needs.box_order(sample)
    return boxes.reference_box(box, size, unit, sample.sample_id, order)


@needing(_truth)
def _grounding(prediction: str, sample: Sample) -> float:
    """IoU of 0.5 or more with `meta["answer_bbox"]` or the first answer; formats as `boxes.read_boxes`.

    `meta["size"]` is [width, height] in pixels. `meta["box_unit"]` says what the numbers of reference and prediction
    are; without it those up to 1 are shares of the picture. `meta["box_order"]` is `yx` where y comes first.
    """
    truth, size = _truth(sample), needs.picture_size(sample)
    read = boxes.read_boxes(prediction, size, needs.box_unit(sample), needs.box_order(sample))
    return float(any(boxes.iou(box, truth) >= _HALF for box in read))


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
    "anls": by_row(_anls),
    "grounding": by_row(_grounding),
    "slots": by_row(_slots),
    "cider": cider,
}
