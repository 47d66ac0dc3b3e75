"""The nine data sets of He et al., "Continual Instruction Tuning for Large Multimodal Models" (arXiv 2311.16206).

Its repository (jinghan1he/CIT) is not at hand, so what is known of it is which nine data sets it scores (field notes
from its code): Flickr30k, TextCaps, VQAv2, VizWiz, TextVQA, OK-VQA, GQA, OCR-VQA, A-OKVQA. **Ours** are the layout
(`TASK/train.json` with LLaVA rows, `TASK/test.json` with questions and their answers, pictures below `images`), the
order (captions, general questions, reading, knowledge, and VizWiz's photographs last), wordings and scorers. VQAv2,
VizWiz, TextVQA, OK-VQA and A-OKVQA are scored by the soft accuracy of VQA where rows have ten answers, so their
published rule is `vqa_official`; with fewer answers, name another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamcvit.data.files.tasks import TaskFiles
from streamcvit.data.layouts import small
from streamcvit.data.layouts.base import Layout
from streamcvit.data.layouts.cvit import DESCRIBE, PHRASE, write_captions

HOME = "Write each data set as TASK/train.json (LLaVA rows) and TASK/test.json (question_id, image, text, answer)"
SOFT, CAPTION = ("vqa", "vqa_official", "strcvit_short"), ("cider", "textcaps", "strcvit_caption")

_TASKS = {
    "flickr30k": ("Flickr30k", CAPTION),
    "textcaps": ("TextCaps", CAPTION),
    "vqav2": ("VQAv2", SOFT),
    "gqa": ("GQA", ("exact", "gqa", "strcvit_short")),
    "textvqa": ("TextVQA", SOFT),
    "ocrvqa": ("OCR-VQA", ("exact", "ocrvqa", "strcvit_short")),
    "okvqa": ("OK-VQA", SOFT),
    "aokvqa": ("A-OKVQA", SOFT),
    "vizwiz": ("VizWiz", SOFT),
}


def _files(folder: str, rules: tuple[str, str, str]) -> TaskFiles:
    scorer, published, follow = rules
    return TaskFiles(
        f"{folder}/train.json", f"{folder}/test.json", images="images", instructions=_words(rules), scorer=scorer,
        strcvit=published, follow=follow, max_new_tokens=64 if rules is CAPTION else 16,
    )  # fmt: skip


def _words(rules: tuple[str, str, str]) -> Sequence[str]:
    return (DESCRIBE,) if rules is CAPTION else (PHRASE,)


def _write_small(folder: Path, rows: int) -> None:
    for name, rules in _TASKS.values():
        if rules is CAPTION:
            write_captions(folder, name, "images", name, rows, _words(rules), test="test")
            continue
        trained, tested = [], []
        for number in range(2 * rows):
            image = small.picture(folder / "images", f"{name}/{number}.jpg", number)
            prompt, answer = f"What colour is it?\n{PHRASE}", small.colour(number)
            if number < rows:
                trained.append(small.llava(str(number), image, prompt, answer))
            else:
                tested.append(small.question(number, image, prompt, [answer] * 10 if rules is SOFT else answer))
        small.write(folder, f"{name}/train.json", trained)
        small.write(folder, f"{name}/test.json", tested)


HE = Layout(
    "he", "the nine data sets of He et al. (order and layout are ours)", HOME,
    {task: _files(*row) for task, row in _TASKS.items()}, _write_small,
)  # fmt: skip
