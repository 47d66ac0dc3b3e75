"""CoIN, in the layout of its repository (zackschen/CoIN 4122465).

Read from its README and scripts: `Instruction_Type1/TASK/train.json` and `test.json` (the scripts name the same files
below `playground/Instructions`), images below `cl_dataset` by their own names (`COCO2014/train2014`, `GQA/images` ...),
the order ScienceQA, TextVQA, ImageNet, GQA, VizWiz, Grounding, VQAv2, OCR-VQA, scorers, and the official annotations of
ScienceQA, TextVQA and GQA. Tests of TextVQA, VizWiz and VQAv2 are read from `val.json` where there is one, as
HiDe-LLaVA and SMoLoRA do, because the test sets of the last two have no public answers; OCR-VQA's from `test_1.json` or
`test.json`.

Inferred: instruction wordings of type 1 are those of LLaVA-1.5 (they agree with SMoLoRA's); of type 2 none are known,
so a prompt's last line is taken for it. 128 new tokens, where its scripts allow 1,024 for ScienceQA, ImageNet,
Grounding, VQAv2.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from streamcvit.data.files.tasks import TaskFiles
from streamcvit.data.layouts import small
from streamcvit.data.layouts.base import Layout
from streamcvit.data.layouts.cvit import (
    LETTER,
    OBJECT,
    PHRASE,
    official,
    write_asked,
    write_gqa,
    write_science,
    write_textvqa,
)  # fmt: skip

HOME = (
    "Get the instruction files from huggingface.co/datasets/Zacks-Chen/CoIN and the images from each data set's own "
    "site; they lie in Instruction_Type1/ (or _Type2/) and cl_dataset/"
)
IMAGES = "cl_dataset"
BOX = "Please provide the bounding box coordinate of the region this sentence describes:"

# Task: folder, test file, strict and published scorer, rule of form, new tokens, instruction.
_TASKS: dict[str, tuple[str, str, str, str, str, int, str]] = {
    "scienceqa": ("ScienceQA", "test", "choice", "scienceqa", "strcvit_letter", 1024, LETTER),
    "textvqa": ("TextVQA", "val", "vqa", "textvqa", "strcvit_short", 128, PHRASE),
    "imagenet": ("ImageNet", "test", "classification", "coin_imagenet", "strcvit_short", 1024, OBJECT),
    "gqa": ("GQA", "test", "exact", "gqa", "strcvit_short", 128, PHRASE),
    "vizwiz": ("VizWiz", "val", "exact", "vizwiz", "strcvit_short", 128, PHRASE),
    "grounding": ("Grounding", "test", "grounding", "grounding", "box", 1024, BOX),
    "vqav2": ("VQAv2", "val", "exact", "smolora_vqav2", "strcvit_short", 1024, PHRASE),
    "ocrvqa": ("OCRVQA", "test", "exact", "ocrvqa", "strcvit_short", 128, PHRASE),
}


def _tasks(root: str, known: bool) -> dict[str, TaskFiles]:
    def files(row: tuple[str, str, str, str, str, int, str]) -> TaskFiles:
        folder, test, scorer, published, follow, tokens, words = row
        naming: dict[str, Any] = {"instructions": (words,) if known else (), "guess_instruction": not known}
        return TaskFiles(
            f"{root}/{folder}/train.json", f"{root}/{folder}/{test}.json", images=IMAGES, scorer=scorer,
            strcvit=published, follow=follow, max_new_tokens=tokens, **naming,
        )  # fmt: skip

    return {task: files(row) for task, row in _TASKS.items()}


def _write_small(root: str, folder: Path, rows: int) -> None:
    write_science(folder, f"{root}/ScienceQA", IMAGES, rows, (LETTER,))
    write_textvqa(folder, f"{root}/TextVQA", IMAGES, rows, (PHRASE,))
    write_gqa(folder, IMAGES, rows)
    write_asked(folder, f"{root}/ImageNet", IMAGES, "./ImageNet_withlabel/train", rows, (OBJECT,), test="test", ask="")
    write_asked(folder, f"{root}/GQA", IMAGES, "./GQA/images", rows, (PHRASE,), test="test")
    write_asked(folder, f"{root}/VizWiz", IMAGES, "./VizWiz/train", rows, (PHRASE,), test="val")
    write_asked(folder, f"{root}/VQAv2", IMAGES, "./COCO2014/train2014", rows, (PHRASE,), test="val")
    write_asked(folder, f"{root}/OCRVQA", IMAGES, "./OCR-VQA/images", rows, (PHRASE,), test="test")
    train, test = [], []
    for number in range(2 * rows):
        image = small.picture(folder / IMAGES, f"./COCO2014/train2014/{number + 100}.jpg", number)
        prompt, box = f"{BOX} the {small.colour(number)} shape", str(small.box(number))
        if number < rows:
            train.append(small.llava(str(number), image, prompt, box))
        else:
            more = {"answer_bbox": box, "size": [small.SIDE, small.SIDE]}
            test.append(small.question(str(number), image, prompt, box, **more))
    small.write(folder, f"{root}/Grounding/train.json", train)
    small.write(folder, f"{root}/Grounding/test.json", test)


def _layout(name: str, title: str, kind: str, *others: str) -> Layout:
    root = f"Instruction_{kind}"
    files = tuple((f"{root}/{task}/val.json", f"{root}/{task}/test.json") for task in ("TextVQA", "VizWiz", "VQAv2"))
    files += ((f"{root}/OCRVQA/test.json", f"{root}/OCRVQA/test_1.json"),)
    folders = (*files, (root, *others), (IMAGES, "datasets", "dataset", "."))
    return Layout(
        name, title, HOME, _tasks(root, kind == "Type1"), partial(_write_small, root), official(IMAGES),
        folders=folders,
    )  # fmt: skip


COIN = _layout("coin", "CoIN", "Type1", "playground/Instructions", "Instructions", "Instructions_Original")
COIN_TYPE2 = _layout("coin-type2", "CoIN with its second kind of instructions", "Type2")
