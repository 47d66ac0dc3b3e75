"""UCIT, the benchmark of HiDe-LLaVA, in the layout of its README and of MCITlib's (Ghy0501/MCITlib 07cf22e).

Read from their scripts: `instructions/TASK/train.json` (of some a part, `train_4w.json`, `train_brief_4w.json`),
`test_3000.json`, images below `datasets`, MCITlib's names of the same folders (`UCIT/VizWiz-caption` ...), the order
ImageNet-R, ArxivQA, VizWiz, IconQA, CLEVR-Math, Flickr30k, and scorers: equality of upper-cased strings, for captions
the mean of COCO's measures. These take their references from `val_coco_type_3000.json`, here by the name of the
picture's file. METEOR needs Java and half a minute, so the rule of a run is that mean without it; `streamcvit score
--rule mcitlib/caption` has it.

Inferred: the answers of `test_3000.json` stand in `answer`; prompts end with their instruction, which is taken from the
last line unless it is a wording of LLaVA-1.5; at most 128 new tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamcvit.data.files.tasks import Amend, TaskFiles
from streamcvit.data.layouts import small
from streamcvit.data.layouts.base import Join, Layout, Row
from streamcvit.data.layouts.cvit import DESCRIBE, LETTER, PHRASE
from streamcvit.data.references import BadRow
from streamcvit.errors import UserError

HOME = (
    "Get the instruction files and images as the UCIT part of github.com/Ghy0501/HiDe-LLaVA says "
    "(huggingface.co/datasets/HaiyangGuo/UCIT); they lie in instructions/ and datasets/"
)
ROOT, IMAGES, COCO = "instructions", "datasets", "val_coco_type_3000.json"
WORDINGS = (PHRASE, LETTER, DESCRIBE)

# Task: folder, training file, its name in MCITlib, folder of its pictures, strict and published scorer, rule of form.
_CAPTION = ("cider", "mcitlib_caption_no_meteor", "strcvit_caption")
_SHORT = ("exact", "smolora_vqav2", "strcvit_short")
_TASKS = {
    "imagenet_r": (
        "ImageNet-R", "train", "ImageNet-R", "ImageNet-R/train", ("classification", "smolora_vqav2", "strcvit_short"),
    ),
    "arxivqa": ("ArxivQA", "train_4w", "ArxivQA", "ArxivQA/images", _SHORT),
    "vizwiz_caption": ("VizWiz", "train", "VizWiz-caption", "VizWiz/val", _CAPTION),
    "iconqa": ("IconQA", "train", "IconQA", "IconQA/iconqa_data/iconqa", _SHORT),
    "clevr_math": ("CLEVR", "train_4w", "CLEVR-Math", "CLEVR/images/train", _SHORT),
    "flickr30k": ("Flickr30k", "train_brief_4w", "Flickr30k-cap", "Flickr30k/train", _CAPTION),
}  # fmt: skip
_CAPTIONS = ("vizwiz_caption", "flickr30k")


def coco_captions(value: Any) -> Amend:
    """References in COCO's form, `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`."""
    try:
        said: dict[Any, list[str]] = {}
        for one in value["annotations"]:
            said.setdefault(one["image_id"], []).append(str(one["caption"]))
        found = {_name(one["file_name"]): said.get(one["id"], []) for one in value["images"]}
    except (TypeError, KeyError, AttributeError) as fault:
        raise UserError(
            f"holds no captions in COCO's form: {fault!r}", where=COCO, fix="Fetch the file again"
        ) from None

    def amend(row: Row) -> Row:
        name = _name(row.get("image"))
        if not found.get(name):
            raise BadRow("annotation", f"{COCO} has no captions of the picture {name!r:.80}")
        return {**row, "answer": found[name]}

    return amend


def _name(path: Any) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(path, str) else ""


def _files(folder: str, train: str, rules: tuple[str, str, str]) -> TaskFiles:
    scorer, published, follow = rules
    return TaskFiles(
        f"{ROOT}/{folder}/{train}.json", f"{ROOT}/{folder}/test_3000.json", images=IMAGES, instructions=WORDINGS,
        guess_instruction=True, scorer=scorer, strcvit=published, follow=follow, max_new_tokens=128,
    )  # fmt: skip


def _write_small(folder: Path, rows: int) -> None:
    for task, (name, train, _, at, _) in _TASKS.items():
        captioned = task in _CAPTIONS
        prompt = DESCRIBE if captioned else f"What colour is it?\n{PHRASE}"
        trained, tested, images, notes = [], [], [], list[Row]()
        for number in range(2 * rows):
            image = small.picture(folder / IMAGES, f"./{at}/{task}_{number}.jpg", number)
            answer = small.caption(number) if captioned else small.colour(number)
            if number < rows:
                trained.append(small.llava(f"{task}_{number}", image, prompt, answer))
                continue
            tested.append(small.question(number, image, prompt, answer))
            images.append({"id": number, "file_name": f"{task}_{number}.jpg"})
            notes += [{"image_id": number, "id": len(notes) + i, "caption": one}
                      for i, one in enumerate(small.captions(number))]  # fmt: skip
        small.write(folder, f"{ROOT}/{name}/{train}.json", trained)
        small.write(folder, f"{ROOT}/{name}/test_3000.json", tested)
        if captioned:
            small.write(folder, f"{ROOT}/{name}/{COCO}", {"images": images, "annotations": notes})


UCIT = Layout(
    "ucit", "UCIT", HOME,
    {task: _files(folder, train, rules) for task, (folder, train, _, _, rules) in _TASKS.items()},
    _write_small,
    joins={task: Join((f"{ROOT}/{_TASKS[task][0]}/{COCO}",), coco_captions) for task in _CAPTIONS},
    folders=(
        *((f"{ROOT}/{folder}", f"UCIT/{other}", f"UCIT/{folder}", other) for folder, _, other, _, _ in _TASKS.values()),
        (IMAGES, "UCIT/datasets", "UCIT"),
    ),
)  # fmt: skip
