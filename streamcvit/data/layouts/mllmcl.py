"""MLLM-CL, its domains (DCL) and abilities (ACL), in the layout of its README (bjzhb666/MLLM-CL 80bf389).

Read from its README and scripts, and from MCITlib's: `RS`, `Med`, `AD`, `Sci`, `Fin` with `train.json`, `test.json` and
`images`; `OCR`, `Math`, `VP`, `APP` with `train.json`, and `OCR_test` ... with `test.json`, each beside its images,
which rows name from their own folder; the orders RS, Med, AD, Sci, Fin and OCR, Math, VP, APP; scorers. Math is scored
by a paid judge there and APP by a server, so these two have no published rule here, and their strict scores are no row
of its tables.

Inferred: OCR's test rows say their kind of question in `answer_type`, as OCRBench's do; prompts end with their
instruction, which is taken from the last line unless it is a wording of LLaVA-1.5; at most 128 new tokens.
"""

from __future__ import annotations

from pathlib import Path

from streamcvit.data.files.tasks import TaskFiles
from streamcvit.data.layouts import small
from streamcvit.data.layouts.base import Layout, Row
from streamcvit.data.layouts.cvit import LETTER, PHRASE

HOME = "Get it from modelscope.cn/datasets/zhaohongbo/MLLM-CL or huggingface.co/datasets/MLLM-CL/MLLM-CL"
WORDINGS = (PHRASE, LETTER)
_SHORT = "strcvit_short"

# Task: folder, strict and published scorer.
_DOMAINS = {
    "rs": ("RS", "exact", "ai2d"),
    "med": ("Med", "exact", "mcitlib_pvqa"),
    "ad": ("AD", "exact", "ai2d"),
    "sci": ("Sci", "exact", "mcitlib_sci"),
    "fin": ("Fin", "exact", "finvis"),
}
_ABILITIES = {
    "ocr": ("OCR", "exact", "mcitlib_ocr"),
    "math": ("Math", "number", ""),
    "vp": ("VP", "exact", "mcitlib_sat"),
    "app": ("APP", "exact", ""),
}


def _named(row: Row) -> Row:
    """A row that keeps its picture's name: Sci's rule tells data sets apart by it."""
    return {**row, "image_name": row["image"]} if isinstance(row.get("image"), str) else row


def _files(folder: str, test: str, scorer: str, published: str) -> TaskFiles:
    return TaskFiles(
        f"{folder}/train.json", f"{test}/test.json", images=folder, test_images="" if test == folder else test,
        instructions=WORDINGS, guess_instruction=True, scorer=scorer, strcvit=published, follow=_SHORT,
        max_new_tokens=128,
    )  # fmt: skip


def _write(folder: Path, at: str, test: str, rows: int) -> None:
    prompt = f"What colour is it?\n{PHRASE}"
    trained, tested = [], []
    for number in range(2 * rows):
        where = at if number < rows else test
        image = small.picture(folder / where, f"images/VQA_{number}.jpg", number)
        if number < rows:
            trained.append(small.llava(str(number), image, prompt, small.colour(number)))
        else:
            answer = [small.colour(number)] if at == "OCR" else small.colour(number)
            more = {"answer_type": "Regular Text Recognition"} if at == "OCR" else {}
            tested.append(small.question(number, image, prompt, answer, **more))
    small.write(folder, f"{at}/train.json", trained)
    small.write(folder, f"{test}/test.json", tested)


def _write_domains(folder: Path, rows: int) -> None:
    for at, _, _ in _DOMAINS.values():
        _write(folder, at, at, rows)


def _write_abilities(folder: Path, rows: int) -> None:
    for at, _, _ in _ABILITIES.values():
        _write(folder, at, f"{at}_test", rows)


_ABOVE = ("MLLM-CL", "Domain_data", "Ability_data")
DCL = Layout(
    "mllmcl-dcl", "MLLM-CL's domains (DCL)", HOME,
    {task: _files(at, at, scorer, published) for task, (at, scorer, published) in _DOMAINS.items()}, _write_domains,
    amend=_named, folders=tuple((at, *(f"{one}/{at}" for one in _ABOVE)) for at, _, _ in _DOMAINS.values()),
)  # fmt: skip
ACL = Layout(
    "mllmcl-acl", "MLLM-CL's abilities (ACL)", HOME,
    {task: _files(at, f"{at}_test", scorer, published) for task, (at, scorer, published) in _ABILITIES.items()},
    _write_abilities, folders=tuple(
        (name, *(f"{one}/{name}" for one in _ABOVE))
        for at, _, _ in _ABILITIES.values() for name in (at, f"{at}_test")
    ),
)  # fmt: skip
