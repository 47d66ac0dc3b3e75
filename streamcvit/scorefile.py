"""Files of predictions and references as the field writes them, read and paired into what a scorer takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamcvit.data import strictjson
from streamcvit.data.files.rows import MAX_FILE, rows_of
from streamcvit.data.locations import open_regular
from streamcvit.data.sample import Sample
from streamcvit.errors import UserError

_IDS = ("question_id", "questionId", "questionID", "sample_id", "id", "image_id", "row")
_SAID = ("prediction", "pred", "predict", "response", "output", "generated_text", "text", "caption", "answer")
_WANTED = (
    "answers", "answer", "ground_truth", "gt_answers", "references", "refs", "reference", "labels", "label",
    "multiple_choice_answer", "caption", "answer_bbox",
)  # fmt: skip
_LISTS = ("rows", "annotations", "data", "questions", "results", "predictions", "answers")
_META = (
    "choices", "synonyms", "answer_bbox", "size", "box_unit", "box_order", "slots", "max_words", "follow_pattern",
    "image", "answer_type",
)  # fmt: skip
_TURNS = {"conversations": ("value", "from", ("gpt",)), "messages": ("content", "role", ("assistant",))}
_BOM = b"\xef\xbb\xbf"


@dataclass
class Pairs:
    """Predictions with their samples, one of each a row.

    Attributes:
        ids: of the rows; their numbers from 1 where the files name none.
        predictions: the answers.
        samples: with the references, and in `meta` what rules read besides.
        how: what they were paired by, `id` or `place`, or `row` where one file holds both.
    """

    ids: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    how: str = "id"

    def add(self, name: str, prediction: str, sample: Sample) -> None:
        """One more row."""
        self.ids.append(name)
        self.predictions.append(prediction)
        self.samples.append(sample)


@dataclass(frozen=True)
class _Row:
    id: str | None
    value: Mapping[str, Any]
    where: str


def read_pairs(
    predictions: Path, references: Path | None = None, *, answered: bool = False, by_place: bool = False
) -> Pairs:
    """Read what was said and what is right, and put them together.

    Args:
        predictions: JSON lines, a JSON list or object, CSV or Parquet of answers, with the references where
            `references` is None.
        references: the same of references.
        answered: leave references out that have no prediction.
        by_place: pair rows by their place in the files, whatever their ids.

    Raises:
        UserError: a file cannot be read, a row lacks what it must have, or one file has an id that the other lacks.
    """
    said = _read(predictions)
    if references is None or references == predictions:
        pairs = Pairs(how="row")
        for number, row in enumerate(said, 1):
            prediction, key = _prediction(row)
            pairs.add(row.id or str(number), prediction, _sample(row, row, number, leave_out=key))
        return pairs
    wanted = _grouped(_read(references))
    how, matches = _matched(said, wanted, predictions, references, answered, by_place)
    pairs = Pairs(how=how)
    for number, (row, reference) in enumerate(matches, 1):
        pairs.add(row.id or str(number), _prediction(row)[0], _sample(reference, row, number))
    return pairs


def _matched(
    said: list[_Row], wanted: list[_Row], predictions: Path, references: Path, answered: bool, by_place: bool
) -> tuple[str, list[tuple[_Row, _Row]]]:
    named, known = [row.id for row in said], [row.id for row in wanted]
    if named == known and None not in named and not by_place:
        return "id", list(zip(said, wanted, strict=True))
    # MCITlib's caption script numbers the answers from 1, as the pictures of its references are, and reads no id.
    counted = known == [str(number) for number in range(1, len(said) + 1)] and not set(named) & set(known)
    if by_place or counted or None in named or None in known:
        if len(said) != len(wanted):
            where, fix = str(predictions), "Give both files a question_id, or as many rows of each in one order"
            raise UserError(
                f"{len(said)} predictions for {len(wanted)} references, to be paired by place", where=where, fix=fix
            )
        return "place", list(zip(said, wanted, strict=True))
    by_id = {row.id: row for row in _once(wanted)}
    chosen = {row.id for row in _once(said)}
    if missing := next((row for row in said if row.id not in by_id), None):
        fix = "Give the references of the same questions"
        raise UserError(
            f"the prediction {missing.id!r:.80} has no reference in {references}", where=missing.where, fix=fix
        )
    if not answered and (missing := next((row for row in wanted if row.id not in chosen), None)):
        fix = "Answer all, or score the answered ones alone with --answered"
        raise UserError(
            f"the reference {missing.id!r:.80} has no prediction in {predictions}", where=missing.where, fix=fix
        )
    return "id", [(row, by_id[row.id]) for row in said]


def _once(rows: list[_Row]) -> list[_Row]:
    seen: set[str | None] = set()
    for row in rows:
        if row.id in seen:
            raise UserError(f"the id {row.id!r:.80} comes twice", where=row.where, fix="Keep one row of each id")
        seen.add(row.id)
    return rows


def _read(path: Path) -> list[_Row]:
    found = []
    for number, row in enumerate(_values(path), 1):
        where = f"{path}, row {number}"
        if isinstance(row, ValueError) or not isinstance(row, dict):
            what = str(row) if isinstance(row, ValueError) else "is no object"
            raise UserError(what, where=where, fix="Mend or remove the row")
        names = ("image_id", *_IDS) if "caption" in row else _IDS
        name = next((row[key] for key in names if isinstance(row.get(key), str | int)), None)
        found.append(_Row(None if name is None else str(name), row, where))
    if not found:
        raise UserError("holds no rows", where=str(path), fix="Name a file of predictions or references")
    return found


def _values(path: Path) -> Iterator[Any]:
    whole = _whole(path)
    if whole is None:
        yield from (row for _, _, row in rows_of(path))
    elif rows := next((whole[key] for key in _LISTS if isinstance(whole.get(key), list) and whole[key]), None):
        yield from rows
    elif any(key in whole for key in _IDS) or not whole:
        yield whole  # JSON lines of one line
    else:
        for name, value in whole.items():
            # ScienceQA's problems and GQA's questions: an object for each id; or just the text, or the texts.
            yield {"question_id": name, **(value if isinstance(value, dict) else {"answer": value})}


def _whole(path: Path) -> dict[str, Any] | None:
    """The file as one JSON object; None where it is of another kind."""
    if path.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv") or not path.is_file():
        return None
    with os.fdopen(open_regular(path), "rb") as stream:
        if not stream.read(4096).removeprefix(_BOM).lstrip().startswith(b"{"):
            return None
        stream.seek(0)
        text = stream.read(MAX_FILE + 1)
    try:
        found = strictjson.loads(text.removeprefix(_BOM), most=MAX_FILE)
    except ValueError:
        return None  # JSON lines, or nothing that can be read: then their reader says so
    return found if isinstance(found, dict) else None


def _grouped(rows: list[_Row]) -> list[_Row]:
    """References with one row a caption as one row a picture (COCO)."""
    if not all(isinstance(row.value.get("caption"), str) and row.id is not None for row in rows):
        return rows
    pictures: dict[str | None, _Row] = {}
    for row in rows:
        first = pictures.setdefault(row.id, replace(row, value={**row.value, "caption": []}))
        first.value["caption"].append(row.value["caption"])
    return list(pictures.values())


def _prediction(row: _Row) -> tuple[str, str]:
    """The answer, and the key it stands at."""
    answers = row.value.get("answers")
    if isinstance(answers, dict) and len(answers) == 1 and (text := _text(next(iter(answers.values())))) is not None:
        return text, "answers"  # `streamcvit predict`, one method
    if isinstance(answers, dict) and len(answers) > 1:
        fix = "Predict with one --method"
        raise UserError(f"holds answers of several methods: {', '.join(answers)}", where=row.where, fix=fix)
    for key in _SAID:
        if key in row.value and (text := _text(row.value[key])) is not None:
            return text, key
    raise UserError("has no prediction", where=row.where, fix=f"Give it as one of {', '.join(_SAID)}")


def _text(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _sample(row: _Row, said: _Row, number: int, leave_out: str = "") -> Sample:
    values = row.value
    answers = _answers(row, leave_out)
    inner = values.get("meta")
    meta = dict(inner) if isinstance(inner, dict) else {}
    meta |= {key: values[key] for key in _META if values.get(key) is not None}
    asked = [said.value.get("prompt"), values.get("question"), values.get("prompt")]
    asked.append(values.get("text") if leave_out != "text" else None)
    question = next((text for text in asked if isinstance(text, str)), "")
    return Sample(row.id or str(number), "", question, "", tuple(answers), meta=meta)


def _answers(row: _Row, leave_out: str) -> Sequence[str]:
    values = row.value
    for key in _WANTED:
        value = None if key == leave_out else values.get(key)
        if isinstance(value, int) and isinstance(values.get("choices"), list) and key == "answer":
            return ["ABCDEFGHIJKLMNOPQRSTUVWXYZ"[value : value + 1]]  # ScienceQA: the number of the option
        if key == "answer_bbox" and isinstance(value, list):
            return [str(value)]
        found = [_one(one) for one in (value if isinstance(value, list) else [value])]
        if found and None not in found:
            # VQA's annotations name the answer that most people gave: rules with one reference read the first.
            most = _text(values.get("multiple_choice_answer")) if key == "answers" else None
            return sorted([text for text in found if text is not None], key=lambda text: text != most)
    for key, (text, who, names) in _TURNS.items():
        turns = None if leave_out else values.get(key)  # beside a prediction, the last turn may be that prediction
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get(who) in names:
            return [str(turns[-1].get(text, ""))]
    raise UserError("has no reference", where=row.where, fix=f"Give it as one of {', '.join(_WANTED)}")


def _one(value: Any) -> str | None:
    """A reference; VQA's are objects with an answer each."""
    return _text(value.get("answer")) if isinstance(value, dict) else _text(value)
