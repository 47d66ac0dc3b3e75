"""The published scorers give what the published scripts gave, row for row."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation import SCORERS, STRCVIT_SCORERS
from streamcvit.evaluation.text import vqa_normalise

BOX = "[0.10,0.20,0.50,0.60]"
STRICT = {
    "vqav2": "exact",
    "ocrvqa": "exact",
    "ai2d": "exact",
    "vizwiz": "exact",
    "finvis": "exact",
    "imagenet": "classification",
    "chartqa": "number",
    "grounding": "grounding",
}
# (published scorer, prediction, reference, what it gives, what a strict scorer gives; None: a matter of opinion)
GOLDEN = [
    ("vqav2", "The Dog.", "dog", 1, 1),
    ("vqav2", "two", "2", 1, 1),
    ("vqav2", "10,000", "10000", 1, 1),
    ("vqav2", "3.5", "35", 0, 0),
    ("vqav2", "man's", "man", 0, 0),
    ("vqav2", "ice-cream", "ice cream", 1, 1),
    ("vqav2", "", "the", 1, 0),
    ("ocrvqa", "yes ", "yes", 0, 1),
    ("ocrvqa", "yes.", "yes", 0, 1),
    ("ocrvqa", "Unanswerable", "Unanswerable", 0, 1),
    ("ocrvqa", "unanswerable", "unanswerable", 1, 1),
    ("ai2d", "cat", "a", 1, 0),
    ("ai2d", "banana split", "a", 1, 0),
    ("ai2d", "nothing", "no", 1, 0),
    ("ai2d", "not known", "no", 0, 0),
    ("ai2d", "12", "1", 1, 0),
    ("ai2d", "(A)", "A", 1, 1),
    ("ai2d", "Unanswerable", "Unanswerable", 0, 1),
    ("vizwiz", "Blue", "blue", 1, 1),
    ("vizwiz", "blue.", "blue", 0, 1),
    ("finvis", "A.", "A", 1, 1),
    ("finvis", "A", "A.", 0, 1),
    ("finvis", "A B", "AB", 1, None),
    ("imagenet", "", "dog", 1, 0),
    ("imagenet", "d", "dog", 1, 0),
    ("imagenet", "U.S. flag", "U.S. flag", 0, 1),
    ("chartqa", "3.5", "3.5", 0, 1),
    ("chartqa", "35", "3.5", 1, 0),
    ("chartqa", "13", "3", 1, 0),
    ("grounding", BOX, BOX, 1, 1),
    ("grounding", "[0.1,0.2,0.5,0.6]", BOX, 0, 1),
    ("grounding", "[1.10,0.20,0.50,0.60]", BOX, 1, 0),
    ("grounding", f"{BOX}.", BOX, 1, 1),
    ("grounding", f"The box is {BOX}", BOX, 0, 1),
    # The strict family counts an overlap of exactly 0.5 (IoU >= 0.5), which "> 0.5" leaves out.
    ("grounding", "[0.10,0.20,0.30,0.60]", BOX, 0, 1),
]


def sample(*answers: str, **meta) -> Sample:
    return Sample("s0", "task", "question", "", answers, meta=meta)


@pytest.mark.parametrize(("name", "prediction", "reference", "published", "strict"), GOLDEN)
def test_golden_rows(name, prediction, reference, published, strict):
    rows = [sample(reference, size=[640, 480])]
    assert STRCVIT_SCORERS[name]([prediction], rows).tolist() == [100.0 * published]
    # One letter is normalised away as an article, so its strict scorer is that of multiple choice.
    name = "choice" if prediction.strip("().") == "A" else STRICT[name]
    if strict is not None:
        assert SCORERS[name]([prediction], rows).tolist() == [100.0 * strict]


REFERENCES = [
    ["a red car parked on the street", "a car on a street", "red car parked", "the car is red", "street with a car"],
    [
        "a bottle of beer on a table",
        "beer bottle on table",
        "a brown bottle",
        "the bottle says beer",
        "a beer sits on a table",
    ],
    [
        "a man holding a phone",
        "man with a phone",
        "a phone in a hand",
        "the man holds a phone",
        "a person using a phone",
    ],
]


@pytest.mark.parametrize(
    ("third", "row", "corpus"),
    [
        ("A man holding a phone.", 1.01836803, 2.292113550300183),
        ("a man holding a phone", 3.59992509, 3.152632571398803),
        ("", 0.0, 1.952657541914018),
    ],
)
def test_golden_captions(third, row, corpus):
    points = STRCVIT_SCORERS["textcaps"](
        ["a red car parked on the street", "a bottle on a table", third], [sample(*several) for several in REFERENCES]
    )
    assert points / 100 == pytest.approx([3.63849618, 2.21947644, row], abs=5e-9)
    assert points.mean() / 100 == pytest.approx(corpus, rel=1e-13)


def test_a_corpus_of_one_picture_scores_nothing():
    assert STRCVIT_SCORERS["textcaps"](["a man holding a phone"], [sample(*REFERENCES[2])]).tolist() == [0.0]


@pytest.mark.parametrize("box", ["top left", "[0.1, 0.2]", [0.1, 0.2, 0.5], 7])
def test_a_reference_without_a_box_is_named_with_its_sample(box):
    with pytest.raises(UserError, match="s0"):
        STRCVIT_SCORERS["grounding"]([BOX], [sample("unused", answer_bbox=box)])


def test_gqa_ignores_full_stops_at_the_end_and_the_case_of_the_prediction():
    rows = ["Left.", "left..", "left ", "Left"]
    assert STRCVIT_SCORERS["gqa"](rows, [sample("left")] * 3 + [sample("Left")]).tolist() == [100, 100, 0, 0]


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("B", 1), ("B. cat", 1), ("the answer is b", 1), ("I think B", 0), ("D", 0), ("", 0), ("both", 0)],
)
def test_scienceqa_takes_the_first_character_that_stands_alone(prediction, right):
    rows = [sample("B", choices=["dog", "cat", "cow"])]
    assert STRCVIT_SCORERS["scienceqa"]([prediction], rows).tolist() == [100.0 * right]


ROW_COLUMNS = [
    ("vqa_exact", "strcvit_eval_vqav2", "vqav2"),
    ("vqa_exact", "smolora_eval_vqav2", "smolora_vqav2"),
    ("vqa_exact", "coin_eval_vqav2", "smolora_vqav2"),
    ("vqa_exact", "mcitlib_eval_vqav2", "smolora_vqav2"),
    ("vqa_soft", "textvqa_m4c", "textvqa"),
    ("vqa_soft", "official_vqa_eval", "vqa_official"),
    ("chartqa", "strcvit_eval_chartqa", "chartqa"),
    ("grounding", "strcvit_eval_grounding", "grounding"),
    ("ocr_contains", "strcvit_eval_ocrvqa", "ocrvqa"),
    ("ocr_contains", "strcvit_eval_ai2d (AD, RS)", "ai2d"),
    ("ocr_contains", "strcvit_eval_finvis (Fin)", "finvis"),
    ("classification", "strcvit_eval_ImagetNet", "imagenet"),
    ("classification", "smolora_eval_ImagetNet", "smolora_imagenet"),
    ("classification", "coin_eval_ImagetNet", "coin_imagenet"),
]


@pytest.mark.parametrize(("file", "column", "name"), ROW_COLUMNS)
def test_every_row_scores_as_the_script_scored_it(file, column, name, oracle, oracle_sample):
    content = oracle(file)
    rows = content["rows"]
    points = STRCVIT_SCORERS[name]([row["prediction"] for row in rows], [oracle_sample(row) for row in rows])
    expected = np.array([100.0 * row["expected"][column] for row in rows])
    assert [row["id"] for row, off in zip(rows, np.abs(points - expected) > 1e-6, strict=True) if off] == []
    # The script's own total, printed with two digits or more.
    assert points.mean() == pytest.approx(content["totals_percent"][column.replace("-", "_")], abs=0.0051)


def test_normal_forms_are_those_of_the_scripts(oracle):
    for row in oracle("vqa_exact")["rows"]:
        assert vqa_normalise(row["prediction"]) == row["expected"]["normalised_prediction"], row["id"]
        assert vqa_normalise(row["answer"]) == row["expected"]["normalised_answer"], row["id"]


@pytest.mark.parametrize(
    ("column", "name"),
    [("peer_cider_whitespace", "textcaps"), ("peer_script_textcaps_proxy", "textcaps")]
    + [("peer_script_flickr30k", "flickr30k")],
)
def test_every_corpus_of_captions_scores_as_the_script_scored_it(column, name, oracle):
    compared = 0
    for corpus in oracle("cider")["corpora"]:
        expected = corpus["expected"].get(column, {})
        if not expected or "error" in expected:
            continue
        ids = [key for key in corpus["refs"] if key in corpus["preds"]]
        points = STRCVIT_SCORERS[name](
            [corpus["preds"][key] for key in ids], [sample(*corpus["refs"][key]) for key in ids]
        )
        if "printed_percent" in expected:
            assert points.mean() == pytest.approx(expected["printed_percent"], abs=0.0051), corpus["name"]
        else:
            assert points / 100 == pytest.approx([expected["per_image"][key] for key in ids], abs=6e-7), corpus["name"]
        compared += 1
    assert compared == 11


def test_smoloras_flickr30k_is_strcvits_where_all_is_lower_case_and_counts_case_elsewhere(oracle):
    corpus = next(one for one in oracle("cider")["corpora"] if one["name"] == "coco_human")
    keys = list(corpus["refs"])
    lower = [corpus["preds"][key].lower() for key in keys]
    samples = [Sample(key, "t", "", "", tuple(text.lower() for text in corpus["refs"][key])) for key in keys]
    kept, folded = STRCVIT_SCORERS["smolora_flickr30k"], STRCVIT_SCORERS["flickr30k"]
    assert kept(lower, samples) == pytest.approx(folded(lower, samples))
    dressed = [text.capitalize() for text in lower]
    assert folded(dressed, samples) == pytest.approx(folded(lower, samples))
    assert kept(dressed, samples).mean() < 0.95 * kept(lower, samples).mean()


# Published scorer of a row in docs/scoring.md -> the oracle's file and the strict scorer beside it.
COMPARED = {
    "vqav2": ("vqa_exact", "exact"),
    "ocrvqa": ("ocr_contains", "exact"),
    "ai2d": ("ocr_contains", "exact"),
    "finvis": ("ocr_contains", "exact"),
    "imagenet": ("classification", "classification"),
    "chartqa": ("chartqa", "number"),
    "grounding": ("grounding", "grounding"),
    "textvqa": ("vqa_soft", "vqa"),
    "vqa_official": ("vqa_soft", "vqa"),
    "textcaps": ("coco_human", "cider"),
    "flickr30k": ("coco_human", "cider"),
}


def test_the_page_on_scoring_prints_the_points_of_these_rows(oracle, oracle_sample):
    page = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()
    page = page.split("### Intervals")[0]  # the table there is of other things
    printed = re.findall(r"^\| `(\w+)` \|.*\| (\d+\.\d) \| (\d+\.\d) \|$", page, re.MULTILINE)
    assert {name for name, *_ in printed} == set(COMPARED)
    for name, published, strict in printed:
        file, own = COMPARED[name]
        if own == "cider":
            corpus = next(one for one in oracle("cider")["corpora"] if one["name"] == file)
            texts = list(corpus["preds"].values())
            samples = [Sample(key, "t", "", "", tuple(corpus["refs"][key])) for key in corpus["preds"]]
        else:
            rows = oracle(file)["rows"]
            texts, samples = [row["prediction"] for row in rows], [oracle_sample(row) for row in rows]
        found = [f"{scorer(texts, samples).mean():.1f}" for scorer in (STRCVIT_SCORERS[name], SCORERS[own])]
        assert found == [published, strict], name
