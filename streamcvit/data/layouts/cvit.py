"""CVIT, the benchmark of SMoLoRA, in the layout of its repository (Minato-Zackie/SMoLoRA ba50e07).

Read from its scripts: the folders `CVIT_benchmark/Instructions_Single/TASK` and `dataset` (the images, which rows name
from there, as do LiLoRA's scripts from `datasets`), file names, the order ScienceQA, TextVQA, Flickr30k, ImageNet, GQA,
VQAv2, the unseen tasks TextCaps, VizWiz and OCR-VQA, the wordings of both kinds of instructions, scorers, rules of
form, and the most tokens of an answer. Official annotations are those that its scripts read: TextVQA's ten answers,
GQA's balanced testdev questions, ScienceQA's problems.

Inferred: the folder of the five-type files (`Instructions_Five`, or another of the names below), and that rows of
training files are LLaVA conversations, as `train_SMoLoRA.py` reads them. Where GQA's and ScienceQA's annotations are
not there, the answers of `test.json` itself are used, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from streamcvit.data.files.tasks import Amend, TaskFiles
from streamcvit.data.layouts import small
from streamcvit.data.layouts.base import Join, Layout, Row, annotation, answers_by_id, by_id
from streamcvit.data.references import BadRow

HOME = (
    "Get the instruction files from huggingface.co/datasets/zackie29/SMoLoRA and the images from each data set's own "
    "site; they lie in CVIT_benchmark/ and dataset/"
)
LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."
DESCRIBE = "What is happening in the presented picture?\nPlease describe it in one complete sentence."
OBJECT = f"What is the object in the image?\n{PHRASE}"

LETTERS = (
    LETTER,
    "Select the correct answer by choosing the corresponding letter from the options provided.",
    "Select the correct letter from the given options to answer the question.",
    "Identify the correct answer by choosing the appropriate letter from the choices.",
    "Pick the correct answer by selecting the letter associated with the correct choice.",
)
PHRASES = (
    "Answer the question with a single word or a brief, descriptive phrase.",
    "Use a single word or a short phrase to respond to the question.",
    "Use one word or a concise phrase to respond to the question.",
    "Answer the question with just one word or a brief phrase.",
    "Answer using only one word or a short, descriptive phrase.",
)
DESCRIBES = (
    DESCRIBE,
    "What does the image display clearly and succinctly?\nProvide a full sentence explaining it.",
    "What is depicted in the displayed picture?\nSummarize it using a single, concise sentence.",
    "How would you interpret the scene in the picture?\nExpress your answer in one informative sentence.",
    "What is the captured scene about?\nExplain it clearly in one simple sentence.",
)
OBJECTS = (
    "What is the main object present in the image?\nProvide your answer using a word or brief phrase.",
    "Which specific object does the image depict?\nGive your answer in one word or a short phrase.",
    "What category does the object in the image belong to?\nAnswer using a single word or phrase.",
    "What is the primary object visible in the image?\nAnswer using a brief phrase or single word.",
    "What is the object in the image?\nAnswer briefly with a word or a short phrase.",
)
OPTIONS = "ABCDE"
TEXTVQA, GQA = "TextVQA/TextVQA_0.5.1_val.json", "GQA/testdev_balanced_questions.json"
SCIENCE = ("ScienceQA/problems.json", "ScienceQA/pid_splits.json")


def science(problems: Any, splits: Any) -> Amend:
    """ScienceQA's official problems: a row's choices, and the letter of the right one."""
    found = by_id(problems, "ScienceQA/problems.json")
    test = set(map(str, splits.get("test", ()))) if isinstance(splits, dict) else set()

    def amend(row: Row) -> Row:
        problem = annotation(found, row)
        if test and str(row.get("question_id")) not in test:
            raise BadRow("annotation", f"{row.get('question_id')!r:.80} is not in ScienceQA's test split")
        choices, right = problem.get("choices"), problem.get("answer")
        if not isinstance(choices, list) or not isinstance(right, int) or not 0 <= right < min(len(choices), 5):
            raise BadRow("annotation", f"the problem {row.get('question_id')!r:.80} has no choices, or no right one")
        return {**row, "answer": OPTIONS[right], "choices": choices}

    return amend


def official(images: str, gqa: str = "gqa", textvqa: str = "textvqa", scienceqa: str = "scienceqa") -> dict[str, Join]:
    """The joins with official annotations, which lie beside the images; named are the tasks."""
    return {
        scienceqa: Join(tuple(f"{images}/{one}" for one in SCIENCE), science, needed=False),
        textvqa: Join((f"{images}/{TEXTVQA}",), answers_by_id("data", TEXTVQA, "answers")),
        gqa: Join((f"{images}/{GQA}",), answers_by_id("", GQA), needed=False),
    }


def _tasks(root: str, five: bool) -> dict[str, TaskFiles]:
    def files(
        folder: str, test: str, rules: tuple[str, str, str], tokens: int, words: Sequence[str], seen: bool = True
    ):  # type: ignore[no-untyped-def]
        scorer, published, follow = rules
        train = f"{root}/{folder}/train.json" if seen else ""
        return TaskFiles(
            train, f"{root}/{folder}/{test}.json", images="dataset", instructions=words, scorer=scorer,
            strcvit=published, follow=follow, max_new_tokens=tokens,
        )  # fmt: skip

    short = "strcvit_short"
    letters, phrases = (LETTERS, PHRASES) if five else ((LETTER,), (PHRASE,))
    describes, objects = (DESCRIBES, OBJECTS) if five else ((DESCRIBE,), (OBJECT,))
    return {
        "scienceqa": files("ScienceQA", "test", ("choice", "scienceqa", "strcvit_letter"), 1024, letters),
        "textvqa": files("TextVQA", "val", ("vqa", "textvqa", short), 128, phrases),
        "flickr30k": files("Flickr30k", "val", ("cider", "smolora_flickr30k", "strcvit_caption"), 128, describes),
        "imagenet": files("ImageNet", "test", ("classification", "smolora_imagenet", short), 1024, objects),
        "gqa": files("GQA", "test", ("exact", "gqa", short), 128, phrases),
        "vqav2": files("VQAv2", "val", ("exact", "smolora_vqav2", short), 1024, phrases),
        "textcaps": files("TextCaps", "val", ("cider", "textcaps", "strcvit_caption"), 128, describes, seen=False),
        "vizwiz": files("VizWiz", "val", ("exact", "vizwiz", short), 128, phrases, seen=False),
        "ocrvqa": files("OCRVQA", "test", ("exact", "ocrvqa", short), 128, phrases, seen=False),
    }


def _write_small(root: str, five: bool, folder: Path, rows: int) -> None:
    letters, phrases = (LETTERS, PHRASES) if five else ((LETTER,), (PHRASE,))
    describes, objects = (DESCRIBES, OBJECTS) if five else ((DESCRIBE,), (OBJECT,))
    write_science(folder, f"{root}/ScienceQA", "dataset", rows, letters)
    write_textvqa(folder, f"{root}/TextVQA", "dataset", rows, phrases)
    write_captions(folder, f"{root}/Flickr30k", "dataset", "./Flickr30k/flickr30k-images", rows, describes)
    write_asked(folder, f"{root}/ImageNet", "dataset", "./ImageNet_withlabel/train", rows, objects, test="test", ask="")
    write_asked(folder, f"{root}/GQA", "dataset", "./GQA/images", rows, phrases, test="test")
    write_asked(folder, f"{root}/VQAv2", "dataset", "./COCO2014/train2014", rows, phrases, test="val")
    write_captions(folder, f"{root}/TextCaps", "dataset", "./TextCaps/train_images", rows, describes, train=False)
    write_asked(folder, f"{root}/VizWiz", "dataset", "./VizWiz/val", rows, phrases, test="val", train=False)
    write_asked(folder, f"{root}/OCRVQA", "dataset", "./OCR-VQA/images", rows, phrases, test="test", train=False)
    write_gqa(folder, "dataset", rows)


def write_science(folder: Path, to: str, images: str, rows: int, words: Sequence[str]) -> None:
    """ScienceQA: training and test rows, every other one without a picture, and its official problems."""
    train, test, problems = [], [], {}
    for number in range(2 * rows):
        choices = [small.NAMES[(number + step) % 4] for step in (1, 0, 2)]
        listed = "\n".join(f"{OPTIONS[place]}. {choice}" for place, choice in enumerate(choices))
        image = None if number % 2 else f"./ScienceQA/images/{number}.png"
        asked = f"Which colour has the {small.shape(number)}?" if image else f"Which word says {choices[1]!r}?"
        prompt = f"{asked}\n{listed}\n{words[number % len(words)]}"
        if image:
            small.picture(folder / images, image, number)
        if number < rows:
            train.append(small.llava(str(number), image, prompt, "B"))
        else:
            test.append(small.question(str(number), image, prompt))
            problems[str(number)] = {"question": asked, "choices": choices, "answer": 1}
    small.write(folder, f"{to}/train.json", train)
    small.write(folder, f"{to}/test.json", test)
    small.write(folder, f"{images}/{SCIENCE[0]}", problems)
    small.write(folder, f"{images}/{SCIENCE[1]}", {"test": list(problems)})


def write_textvqa(folder: Path, to: str, images: str, rows: int, words: Sequence[str]) -> None:
    """TextVQA: training rows, questions, and the ten answers to each in its official file."""
    write_asked(folder, to, images, "./TextVQA/train_images", rows, words, test="val", answered=False)
    data = [
        {"question_id": number, "answers": [small.colour(number)] * 8 + ["unanswerable"] * 2}
        for number in range(rows, 2 * rows)
    ]
    small.write(folder, f"{images}/{TEXTVQA}", {"dataset_type": "val", "data": data})


def write_gqa(folder: Path, images: str, rows: int) -> None:
    """GQA's official questions."""
    found = {
        str(number): {"question": "What colour is it?", "answer": small.colour(number), "isBalanced": True}
        for number in range(rows, 2 * rows)
    }
    small.write(folder, f"{images}/{GQA}", found)


def write_captions(
    folder: Path, to: str, images: str, at: str, rows: int, words: Sequence[str], *, train: bool = True,
    test: str = "val", references: int = 5,
) -> None:  # fmt: skip
    """Captions: training rows with one, test rows with several references."""
    trained, tested = [], []
    for number in range(2 * rows):
        image, prompt = small.picture(folder / images, f"{at}/{number}.jpg", number), words[number % len(words)]
        if number < rows:
            trained.append(small.llava(str(number), image, prompt, small.caption(number)))
        else:
            tested.append(small.question(number, image, prompt, small.captions(number)[:references]))
    if train:
        small.write(folder, f"{to}/train.json", trained)
    small.write(folder, f"{to}/{test}.json", tested)


def write_asked(
    folder: Path, to: str, images: str, at: str, rows: int, words: Sequence[str], *, test: str, train: bool = True,
    answered: bool = True, ask: str = "What colour is it?",
) -> None:  # fmt: skip
    """Questions with one short answer: training rows, and test rows, with their answer where it is no other file's."""
    trained, tested = [], []
    for number in range(2 * rows):
        image = small.picture(folder / images, f"{at}/{number}.jpg", number)
        prompt = "\n".join(filter(None, (ask, words[number % len(words)])))
        if number < rows:
            trained.append(small.llava(str(number), image, prompt, small.colour(number)))
        else:
            tested.append(small.question(number, image, prompt, small.colour(number) if answered else None))
    if train:
        small.write(folder, f"{to}/train.json", trained)
    small.write(folder, f"{to}/{test}.json", tested)


_SINGLE, _FIVE = "CVIT_benchmark/Instructions_Single", "CVIT_benchmark/Instructions_Five"
_IMAGES = ("dataset", "datasets", "images")
CVIT = Layout(
    "cvit", "CVIT with one wording an instruction (SMoLoRA)", HOME, _tasks(_SINGLE, False),
    partial(_write_small, _SINGLE, False), joins=official("dataset"), folders=(_IMAGES,),
)  # fmt: skip
CVIT_FIVE = Layout(
    "cvit-five", "CVIT with five wordings an instruction (SMoLoRA)", HOME, _tasks(_FIVE, True),
    partial(_write_small, _FIVE, True), joins=official("dataset"),
    folders=(
        _IMAGES, (_FIVE, *(f"CVIT_benchmark/Instructions_{one}" for one in ("5", "Multi", "Five_Type", "New_5"))),
    ),
)  # fmt: skip
