"""StrCVIT, the streaming benchmark of StrLoRA, in the layout of its repository (chanceche/StrCVIT e409628).

Read from its README and scripts: `StrCVIT_dataset/train/data_001.json` to `data_025.json` (ms-swift rows of mixed
tasks, one file a chunk), the eleven test folders with their small (`*_proxy.json`) and full files, annotations of AD,
RS and Fin in `test.json`, GQA's official questions, the image folders under one root, scorers, 100 new tokens, and the
nine tasks whose mean is its AP (without ChartQA and GQA). Rows write `<STRCVIT_IMAGE_ROOT>` where the image root
stands; paths into which its `configure_paths.py` wrote a whole path are read from the image folder on.

Inferred: a row's task is told by the folder of its picture; of COCO's pictures those with a box as answer are
grounding, the others VQAv2. The instructions' wordings are not published: the last line of a prompt is taken for it, or
a wording of SMoLoRA where one stands there. Chunks are taken in the order of their numbers, rows in that of their file.
Only 25 chunks are published; the presets `strcvit-15-first`, `strcvit-15-recut`, `strcvit-20-first` and
`strcvit-20-recut` are ours.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from streamcvit.data.files.tasks import TaskFiles
from streamcvit.data.formats import Record
from streamcvit.data.instructions import Naming
from streamcvit.data.layouts import small
from streamcvit.data.layouts.base import Join, Layout, Row, answers_by_id
from streamcvit.data.layouts.cvit import DESCRIBE, GQA, LETTER, OBJECT, PHRASE
from streamcvit.data.references import IMAGE_ROOT_MARK

HOME = (
    "Get StrCVIT_dataset/ from huggingface.co/datasets/chanceche/StrCVIT_dataset and the images as its README says; "
    "they lie in raw_images/"
)
CHUNKS = 25
ROOT, IMAGES = "StrCVIT_dataset", "raw_images"
# Our words for two instructions of which only the embeddings are published, for small files.
PLACE = f"What is the background of the image?\n{PHRASE}"
BOX = "Please provide the bounding box coordinate of the region this sentence describes."

_BOX = re.compile(r"\[?\s*\d*\.?\d+(\s*,\s*\d*\.?\d+){3}\s*\]?\.?")
# Folder of the pictures: task. COCO's hold those of two.
_FOLDERS = {
    "AD": "ad", "RS": "rs", "Fin": "fin", "GQA": "gqa", "ImageNet_withlabel": "imagenet", "Places": "places365",
    "OCR-VQA": "ocrvqa", "Textcaps": "textcaps", "TextCaps": "textcaps", "ChartQA": "chartqa", "COCO2014": "",
}  # fmt: skip
_WHOLE = re.compile(rf".*?/(?=(?:{'|'.join(_FOLDERS)})/)")


def _task_of(record: Record) -> str:
    first = record.pictures[0] if record.pictures else ""
    folder = first.replace("\\", "/").partition("/")[0] if isinstance(first, str) else ""
    if folder == "COCO2014":
        return "grounding" if _BOX.fullmatch(record.answers[0].strip()) else "vqav2"
    return _FOLDERS.get(folder, "")


def _from_root(row: Row) -> Row:
    """The row, its pictures named from the image root on, whatever stands before."""
    return row | {key: _short(row[key]) for key in ("image", "images") if row.get(key)}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return {**value, "path": _short(value["path"])}
    if isinstance(value, str) and (value.startswith("/") or value[1:2] == ":"):
        return _WHOLE.sub("", value.replace("\\", "/"), count=1)
    return value


def _tasks(full: bool) -> dict[str, TaskFiles]:
    def files(folder: str, test: str, scorer: str, published: str, follow: str = "strcvit_short", mean: bool = True):  # type: ignore[no-untyped-def]
        proxy = "" if full or folder == "ChartQA" else "_proxy"
        naming: dict[str, Any] = {"instructions": NAMING.wordings, "guess_instruction": True}
        return TaskFiles(
            f"{ROOT}/train/data_*.json", f"{ROOT}/test/{folder}/{test}{proxy}.json", "swift", "qa", IMAGES,
            scorer=scorer, strcvit=published, follow=follow, max_new_tokens=100, in_average=mean or full, **naming,
        )  # fmt: skip

    return {
        "ad": files("AD", "test", "exact", "ai2d"),
        "gqa": files("GQA", "test", "exact", "gqa", mean=False),
        "rs": files("RS", "test", "exact", "ai2d"),
        "vqav2": files("VQAv2", "val", "exact", "vqav2"),
        "ocrvqa": files("OCRVQA", "test", "exact", "ocrvqa"),
        "chartqa": files("ChartQA", "test", "number", "chartqa", mean=False),
        "fin": files("Fin", "test", "exact", "finvis"),
        "grounding": files("Grounding", "test", "grounding", "grounding", "box"),
        "imagenet": files("ImageNet", "test", "classification", "imagenet"),
        "places365": files("Places365", "val", "classification", "imagenet"),
        "textcaps": files("TextCaps", "val", "cider", "textcaps", "strcvit_caption"),
    }


def _joins() -> dict[str, Join]:
    own = {
        task: Join((f"{ROOT}/test/{folder}/test.json",), answers_by_id("", f"{folder}/test.json"), needed=False)
        for task, folder in (("ad", "AD"), ("rs", "RS"), ("fin", "Fin"))
    }
    return own | {"gqa": Join((f"{IMAGES}/{GQA}",), answers_by_id("", GQA), needed=False)}


# Task: folder of its test set and the file in it, folder of its pictures, question, instruction.
_SMALL = {
    "ad": ("AD", "test", "AD/images/drivelm/stitch", "What colour is it?", PHRASE),
    "gqa": ("GQA", "test", "GQA/images", "What colour is it?", PHRASE),
    "rs": ("RS", "test", "RS/images", "What colour is it?", PHRASE),
    "vqav2": ("VQAv2", "val", "COCO2014/val2014", "What colour is it?", PHRASE),
    "ocrvqa": ("OCRVQA", "test", "OCR-VQA/images", "What colour is it?", PHRASE),
    "chartqa": ("ChartQA", "test", "ChartQA/train", "How many shapes are there?", "Give the value only."),
    "fin": ("Fin", "test", "Fin/images/train", "Which is it?\nA. a shape\nB. a word", LETTER),
    "grounding": ("Grounding", "test", "COCO2014/train2014", "the shape", BOX),
    "imagenet": ("ImageNet", "test", "ImageNet_withlabel/train", "", OBJECT),
    "places365": ("Places365", "val", "Places/train_256", "", PLACE),
    "textcaps": ("TextCaps", "val", "Textcaps/train_images", "", DESCRIBE),
}


def _answer(task: str, number: int) -> Any:
    if task == "grounding":
        return f"[{', '.join(f'{one:.2f}' for one in small.box(number))}]"
    fixed = {"chartqa": "1", "fin": "A", "textcaps": small.caption(number), "imagenet": small.shape(number)}
    return fixed.get(task, small.colour(number))


def _write_small(full: bool, folder: Path, rows: int) -> None:
    """Every chunk holds four tasks that move on by two, a few rows of each; `rows` is that of a task's test set."""
    names = list(_SMALL)
    each = max(1, rows // 3)
    for chunk in range(CHUNKS):
        found = []
        for place in range(4 * each):
            task = names[(2 * chunk + place % 4) % len(names)]
            found.append(_small_row(folder, task, chunk * 4 * each + place))
        small.write(folder, f"{ROOT}/train/data_{chunk + 1:03d}.json", found)
    for task, (where, test, at, ask, words) in _SMALL.items():
        tests = []
        for number in range(1000, 1000 + rows):
            image = small.picture(folder / IMAGES, f"{at}/{number}.jpg", number)
            answer = small.captions(number) if task == "textcaps" else _answer(task, number)
            box = {"answer_bbox": answer, "size": [small.SIDE, small.SIDE]} if task == "grounding" else {}
            prompt = "\n".join(filter(None, (ask, words)))
            tests.append(small.question(number, f"{IMAGE_ROOT_MARK}/{image}", prompt, answer, **box))
        small.write(folder, f"{ROOT}/test/{where}/{test}.json", tests)
        small.write(folder, f"{ROOT}/test/{where}/{test}_proxy.json", tests)
    official = {str(number): {"answer": small.colour(number)} for number in range(1000, 1000 + rows)}
    small.write(folder, f"{IMAGES}/{GQA}", official)


def _small_row(folder: Path, task: str, number: int) -> Row:
    _, _, at, ask, words = _SMALL[task]
    image = small.picture(folder / IMAGES, f"{at}/{number}.jpg", number)
    asked = "\n".join(filter(None, (ask, words)))
    messages = [
        {"role": "user", "content": f"<image>\n{asked}"},
        {"role": "assistant", "content": _answer(task, number)},
    ]
    return {"messages": messages, "images": [f"{IMAGE_ROOT_MARK}/{image}"]}


NAMING = Naming((PHRASE, OBJECT, PLACE, DESCRIBE), guess=True)


def _layout(name: str, title: str, full: bool) -> Layout:
    return Layout(
        name, title, HOME, _tasks(full), partial(_write_small, full), joins=_joins(), amend=_from_root,
        folders=((ROOT, "."), (IMAGES, "images", ".")), task_of=_task_of, naming=NAMING,
        chunks=tuple(f"{ROOT}/train/data_{number:03d}.json" for number in range(1, CHUNKS + 1)),
    )  # fmt: skip


STRCVIT = _layout("strcvit", "StrCVIT", False)
STRCVIT_FULL = _layout("strcvit-full", "StrCVIT with its full test sets", True)
