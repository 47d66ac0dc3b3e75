"""MCITlib's rules for UCIT and MLLM-CL, bug for bug (Ghy0501/MCITlib 2956dfd, `llava/eval/CoIN/eval_*.py`).

Named after the scripts; docs/scoring.md says which task uses which. As in `strcvit`, nothing is mended, and rows come
paired. Points per row, float64 [n], as in `scorers`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

import numpy as np

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation import needs
from streamcvit.evaluation.needs import needing
from streamcvit.evaluation.ptb import ptb_tokenise
from streamcvit.evaluation.scorers import Scorer, by_row
from streamcvit.evaluation.text import check_lengths

Parts = dict[str, tuple[float, np.ndarray]]
_EQUAL_SETS = ("AI2D", "TQA", "VQA", "SciVerse")
_FORMULA = "Handwritten Mathematical Expression Recognition"
_OPTIONS = "ABCDE"


def _pvqa(prediction: str, sample: Sample) -> float:
    """eval_pvqa (Med): the reference stands in the answer, ignoring case; "Unanswerable" anywhere is wrong."""
    return float("Unanswerable" not in prediction and sample.answer.lower() in prediction.lower())


def _picture(sample: Sample) -> str:
    """File name of the picture, whose beginning names the data set."""
    name = sample.meta.get("image", sample.meta.get("image_name"))  # a row's own `image` is its picture
    if not isinstance(name, str):
        raise needs.unfit(
            sample, "image", name, "the picture's file name (AI2D_..., TQA_..., VQA_..., SciVerse_... or a map)"
        )
    return name.split("/")[-1]


@needing(_picture)
def _sci(prediction: str, sample: Sample) -> float:
    """eval_sci (Sci): equality ignoring case for AI2D, TQA, VQA and SciVerse.

    The rest are maps: a question with "Which states" earns the share of the reference's parts between commas that stand
    between commas of the answer, blanks count; the others want containment. "Unanswerable" anywhere is wrong.
    """
    if "Unanswerable" in prediction:
        return 0.0
    said, wanted = prediction.lower(), sample.answer.lower()
    if _picture(sample).split("_")[0] in _EQUAL_SETS:
        return float(said == wanted)
    if "Which states" in sample.prompt:
        parts, listed = wanted.split(","), said.split(",")
        return sum(part in listed for part in parts) / len(parts)
    return float(wanted in said)


def _sat(prediction: str, sample: Sample) -> float:
    """eval_sat (VP): the reference stands in the answer, both without case, blanks, line ends and full stops."""

    def form(text: str) -> str:
        return text.lower().strip().replace(" ", "").replace("\n", "").replace(".", "")

    return float(form(sample.answer) in form(prediction))


def _category(sample: Sample) -> str:
    """OCRBench's kind of question."""
    kind = sample.meta.get("answer_type")
    if not isinstance(kind, str):
        raise needs.unfit(sample, "answer_type", kind, f'a kind of OCRBench such as "{_FORMULA}"')
    return kind


@needing(_category)
def _ocr(prediction: str, sample: Sample) -> float:
    """eval_ocr (OCRBench): any reference stands in the answer, ignoring case; formulae with case and without blanks.

    The script prints the right answers over 10, which is a percentage of its 1,000 questions.
    """
    if _category(sample) == _FORMULA:
        said = prediction.strip().replace(" ", "").replace("\n", "")
        return float(any(answer.strip().replace(" ", "").replace("\n", "") in said for answer in sample.answers))
    said = prediction.lower().strip().replace("\n", "")
    return float(any(answer.lower().strip().replace("\n", "") in said for answer in sample.answers))


@needing(needs.choices, needs.letter)
def _scienceqa(prediction: str, sample: Sample) -> float:
    """eval_science_qa: "B", "B. ..." or else what "The answer is B." names where it stands once; case counts."""
    choices = needs.choices(sample)
    options = _OPTIONS if choices is None else _OPTIONS[: len(choices)]
    if (len(prediction) == 1 and prediction in _OPTIONS) or (
        len(prediction) >= 3 and prediction[0] in _OPTIONS and prediction[1:3] == ". "
    ):
        said = prediction[0]
    else:
        named = re.findall(r"The answer is ([A-Z]).", prediction)
        said = named[0] if len(named) == 1 else "FAILED"
    return float(len(said) == 1 and said in options and said == sample.answer)


def caption_parts(predictions: Sequence[str], samples: Sequence[Sample], *, meteor: bool) -> Parts:
    """Each measure of COCOEvalCap that eval_caption takes the mean of: the corpus' score and each row's, times 100.

    Args:
        predictions: captions.
        samples: their references.
        meteor: whether METEOR is among them, which starts Java; the tokeniser then is Stanford's own, as in the script.
            Without it tokens are `ptb.ptb_tokenise`'s.

    Raises:
        UserError: METEOR is asked for, and there is no Java.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rows = range(len(samples))
    if meteor:
        if shutil.which("java") is None:
            raise UserError(
                "METEOR needs Java, and there is none",
                fix="Install a Java runtime, or take mcitlib/caption_no_meteor, the mean of the six other measures",
            )
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        tokenizer = PTBTokenizer()
        wanted = tokenizer.tokenize({row: [{"caption": text} for text in samples[row].answers] for row in rows})
        said = tokenizer.tokenize({row: [{"caption": predictions[row]}] for row in rows})
    else:
        wanted = {row: [ptb_tokenise(text) for text in samples[row].answers] for row in rows}
        said = {row: [ptb_tokenise(predictions[row])] for row in rows}
    totals, by_row_ = Bleu(4).compute_score(wanted, said, verbose=0)
    parts = {f"Bleu_{n}": (total, several) for n, (total, several) in enumerate(zip(totals, by_row_, strict=True), 1)}
    if meteor:
        parts["METEOR"] = Meteor().compute_score(wanted, said)
    parts["ROUGE_L"] = Rouge().compute_score(wanted, said)
    parts["CIDEr"] = Cider().compute_score(wanted, said)
    return {
        name: (100.0 * float(total), 100.0 * np.asarray(several, dtype=np.float64))
        for name, (total, several) in parts.items()
    }


def caption_points(parts: Parts) -> np.ndarray:
    """Points per row, float64 [n]: the mean of the measures, times one factor for all rows.

    It makes the rows' mean what the script prints: Bleu and METEOR of a corpus are no mean of rows.
    """
    total = float(np.mean([corpus for corpus, _ in parts.values()]))
    rows = np.mean([several for _, several in parts.values()], axis=0)
    mean = rows.mean()
    return rows * (total / mean) if mean > 0 else np.full(len(rows), total)


def _caption(meteor: bool) -> Scorer:
    def scorer(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
        check_lengths(predictions, samples)
        if not samples:
            return np.zeros(0)
        return caption_points(caption_parts(predictions, samples, meteor=meteor))

    return scorer


MCITLIB_SCORERS: dict[str, Scorer] = {
    "caption": _caption(meteor=True),
    "caption_no_meteor": _caption(meteor=False),
    "pvqa": by_row(_pvqa, empty=None),
    "sci": by_row(_sci, empty=None),
    "ocr": by_row(_ocr, empty=None),
    "sat": by_row(_sat, empty=None),
    "scienceqa": by_row(_scienceqa, empty=None),
}
"""The rules that MCITlib alone has; `families.FAMILIES` adds those that it shares."""
