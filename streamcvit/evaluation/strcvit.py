"""The published scorers, bug for bug: what the StrCVIT scripts give (commit e409628), and a few of its peers.

They exist so that numbers can be compared with published ones; nothing here is mended. docs/scoring.md says where each
departs from what an answer deserves. Where a script pairs rows by position or by id makes no difference here: rows come
paired. Points per row, float64 [n], as in `scorers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation import needs
from streamcvit.evaluation.caption import cider_d
from streamcvit.evaluation.mcitlib import MCITLIB_SCORERS
from streamcvit.evaluation.needs import needing
from streamcvit.evaluation.scorers import RowRule, Scorer, by_row, soft_accuracy
from streamcvit.evaluation.text import check_lengths, flatten, vqa_normalise, vqa_official


def _vqav2(prediction: str, sample: Sample) -> float:
    """eval_vqav2: equality after the EvalAI processor with one reference; an empty answer equals "the"."""
    return float(vqa_normalise(prediction) == vqa_normalise(sample.answer))


def _gqa(prediction: str, sample: Sample) -> float:
    """eval_gqa: full stops at the end and case are ignored in the prediction only."""
    return float(prediction.rstrip(".").lower() == sample.answer)


def _ocrvqa(prediction: str, sample: Sample) -> float:
    """eval_ocrvqa: equality of lower-cased strings, blanks count; "Unanswerable" anywhere is wrong."""
    return float("Unanswerable" not in prediction and prediction.lower() == sample.answer.lower())


def _ai2d(prediction: str, sample: Sample) -> float:
    """eval_ai2d (AD and RS): containment, which a one-word reference inside another word satisfies; "Unanswerable"
    anywhere is wrong."""
    if "Unanswerable" in prediction:
        return 0.0
    said, wanted = prediction.lower(), sample.answer.lower()
    if " " in wanted:
        return float(wanted in said)
    wanted = wanted.replace(".", "")
    if " " in said:
        return float(any(form in said for form in (f" {wanted}", f"{wanted} ", f"{wanted}.", f"{wanted},")))
    return float(wanted in said)


def _finvis(prediction: str, sample: Sample) -> float:
    """eval_finvis: blanks and full stops are removed from the prediction only; "Unanswerable" anywhere is wrong."""
    said = prediction.lower().replace(" ", "").replace(".", "")
    return float("Unanswerable" not in prediction and said == sample.answer.lower())


def _either_way(said: str, wanted: str) -> float:
    return float(wanted in said or said in wanted)


def _imagenet(prediction: str, sample: Sample) -> float:
    """eval_ImagetNet (ImageNet and Places): containment either way, so that an empty answer is always right."""
    return _either_way(prediction.upper(), sample.answer.replace(".", "").upper())


def _chartqa(prediction: str, sample: Sample) -> float:
    """eval_chartqa: the reference without its full stops (3.5 turns into 35) is part of the prediction."""
    return float(sample.answer.replace(".", "").upper() in prediction.upper())


def _floats(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _unbracketed(text: str) -> str:
    return text.replace("[", "").replace("]", "")


def _truth(sample: Sample) -> list[float]:
    box = sample.meta.get("answer_bbox")
    box = sample.answer if box is None else box
    try:
        truth = _floats(_unbracketed(box)) if isinstance(box, str) else [float(number) for number in box]
        _, _, _, _ = truth
        return truth
    except (TypeError, ValueError):
        raise UserError(
            f"the reference box {box!r} cannot be read",
            where=sample.sample_id,
            fix='Give "answer_bbox" as [x1, y1, x2, y2] in 0..1, or name no published scorer for this task',
        ) from None


@needing(_truth, needs.picture_size)
def _grounding(prediction: str, sample: Sample) -> float:
    """eval_grounding: IoU above 0.5 of the box left after the prediction's first and last character are cut off."""
    truth = _truth(sample)
    try:
        said = _floats(_unbracketed(prediction)[1:-1])
    except ValueError:
        return 0.0
    if len(said) != 4:
        return 0.0
    scale = max(needs.picture_size(sample) or (1.0,))
    x1, y1, x2, y2 = (number * scale for number in said)
    u1, v1, u2, v2 = (number * scale for number in truth)
    inner = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
    outer = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inner
    return float(outer > 0 and inner / outer > 0.5)


def textcaps(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
    """eval_textcaps_proxy_cider: CIDEr-D times 100, words are what blanks part; case and punctuation count."""
    check_lengths(predictions, samples)
    return cider_d(predictions, [sample.answers for sample in samples])


def flickr30k(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
    """StrCVIT eval_flickr30k_cider: as SMoLoRA's, in lower case."""
    return _swapped(predictions, samples, str.lower)


def smolora_flickr30k(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
    """SMoLoRA eval_flickr30k_cider: the best single reference, then CIDEr-D with the two sides swapped; case counts."""
    return _swapped(predictions, samples, str)


def _swapped(predictions: Sequence[str], samples: Sequence[Sample], form: Callable[[str], str]) -> np.ndarray:
    check_lengths(predictions, samples)
    said, best = [], []
    for prediction, sample in zip(predictions, samples, strict=True):
        text, references = form(prediction), [form(answer) for answer in sample.answers]
        points = cider_d([text] * len(references), [[reference] for reference in references])
        said.append(text)
        best.append(references[int(np.argmax(points))])
    return cider_d(best, [[text] for text in said])


@needing(needs.people(10))
def _textvqa(prediction: str, sample: Sample) -> float:
    """eval_textvqa (M4C): soft accuracy with both sides always normalised; ten answers, as the script asserts."""
    said, people = vqa_normalise(prediction), [vqa_normalise(answer) for answer in sample.answers]
    return soft_accuracy(people.count(said), len(people))


@needing(needs.people(3))
def _vqa_official(prediction: str, sample: Sample) -> float:
    """GT-Vision-Lab's vqaEval.py: soft accuracy; nothing is normalised, not even case, where all people agree."""
    said, people = flatten(prediction), [flatten(answer) for answer in sample.answers]
    if len(set(people)) > 1:
        said, people = vqa_official(said), [vqa_official(answer) for answer in people]
    return soft_accuracy(people.count(said), len(people))


@needing(needs.choices, needs.letter)
def _scienceqa(prediction: str, sample: Sample) -> float:
    """eval_science_qa: "B", "B. ..." or else the first single character that stands alone, within the choices."""
    choices = needs.choices(sample)
    options = "ABCDE" if choices is None else "ABCDE"[: len(choices)]
    if len(prediction) == 1 and prediction in "ABCDE":
        said = prediction
    elif len(prediction) >= 3 and prediction[0] in "ABCDE" and prediction[1:3] == ". ":
        said = prediction[0]
    else:
        alone = re.findall(r"\b(\w)\b", prediction)
        said = alone[0].upper() if alone else "FAILED"
    return float(len(said) == 1 and said in options and said == sample.answer)


def _upper(prediction: str, sample: Sample) -> float:
    """SMoLoRA, CoIN and MCITlib eval_vqav2, and eval_vizwiz of all four: equality of upper-cased strings with one
    answer, blanks count."""
    return float(prediction.upper() == sample.answer.upper())


def _smolora_imagenet(prediction: str, sample: Sample) -> float:
    """SMoLoRA eval_ImagetNet: containment either way ignoring case, full stops kept."""
    return _either_way(prediction.lower(), sample.answer.lower())


def _coin_imagenet(prediction: str, sample: Sample) -> float:
    """CoIN and MCITlib eval_ImagetNet: containment either way, case counts."""
    return _either_way(prediction, sample.answer)


def _as_published(rule: RowRule) -> Scorer:
    # The scripts make no exception for empty answers.
    return by_row(rule, empty=None)


STRCVIT_SCORERS: dict[str, Scorer] = {
    "vqav2": _as_published(_vqav2),
    "gqa": _as_published(_gqa),
    "ocrvqa": _as_published(_ocrvqa),
    "ai2d": _as_published(_ai2d),
    "finvis": _as_published(_finvis),
    "imagenet": _as_published(_imagenet),
    "chartqa": _as_published(_chartqa),
    "grounding": _as_published(_grounding),
    "textcaps": textcaps,
    "flickr30k": flickr30k,
    "smolora_flickr30k": smolora_flickr30k,
    "textvqa": _as_published(_textvqa),
    "vizwiz": _as_published(_upper),
    "vqa_official": _as_published(_vqa_official),
    "scienceqa": _as_published(_scienceqa),
    "smolora_vqav2": _as_published(_upper),
    "smolora_imagenet": _as_published(_smolora_imagenet),
    "coin_imagenet": _as_published(_coin_imagenet),
    # METEOR starts Java for half a minute, which no boundary of a run waits for: `streamcvit score` has it.
    **{f"mcitlib_{name}": rule for name, rule in MCITLIB_SCORERS.items() if name != "caption"},
}
