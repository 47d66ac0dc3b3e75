"""The strict scorers against independent evaluators; every row that differs is listed with its reason."""

from __future__ import annotations

import numpy as np
import pytest

from streamcvit.data.sample import Sample
from streamcvit.evaluation import SCORERS
from streamcvit.evaluation.ptb import ptb_tokenise

# (prediction, reference): why the strict scorer counts it right although "relaxed accuracy" does not.
RIGHT_NUMBERS = {
    ("0.0", "0"): "the reference rule compares text where the number is 0",
    ("1234", "1,234"): "thousands commas",
    ("1234.0", "1,234"): "thousands commas",
    ("2,582", "2,677"): "thousands commas; 3.5 % off",
    ("Yes.", "Yes"): "normalised",
    ("facebook ", "Facebook"): "normalised",
    ("Germany, France", "[Germany, France]"): "normalised",
    ("seven", "7"): "normalised",
    ("US", "U.S."): "normalised",
    ("nan", "nan"): "not a number, so text, and equal",
    ("inf", "inf"): "not a number, so text, and equal",
}


def differing(name: str, rows: list[dict], column: str, oracle_sample) -> list[dict]:
    points = SCORERS[name]([row["prediction"] for row in rows], [oracle_sample(row) for row in rows])
    expected = np.array([100.0 * row["expected"][column] for row in rows])
    return [
        {**row, "points": float(got)}
        for row, got, off in zip(rows, points, np.abs(points - expected) > 1e-6, strict=True)
        if off
    ]


def test_vqa_is_the_official_evaluator_but_where_all_people_agree_and_for_numbers(oracle, oracle_sample):
    off = differing("vqa", oracle("vqa_soft")["rows"], "official_vqa_eval", oracle_sample)
    assert all(row["points"] == 100 for row in off)
    differ = {row["prediction"] for row in off if len(set(row["answers"])) > 1}
    assert differ == {"02", "3.50", "50 %", "fifty percent"}
    assert {row["prediction"].strip('". ').lower() for row in off if len(set(row["answers"])) == 1} == {"yes", "stop"}


def test_exact_is_the_evalai_equality_but_for_numbers_and_empty_answers(oracle, oracle_sample):
    off = differing("exact", oracle("vqa_exact")["rows"], "strcvit_eval_vqav2", oracle_sample)
    assert {(row["prediction"], row["answer"], row["points"]) for row in off} == {
        ("", "", 0.0),
        ("5", "-5", 0.0),
        ("3.50", "3.5", 100.0),
        ("50 %", "50%", 100.0),
        ("fifty percent", "50%", 100.0),
    }


def test_number_is_relaxed_accuracy_but_for_the_listed_rows(oracle, oracle_sample):
    off = differing("number", oracle("chartqa")["rows"], "relaxed_accuracy_5pct", oracle_sample)
    assert {(row["prediction"], row["answer"]) for row in off if row["points"] == 100} == set(RIGHT_NUMBERS)
    assert [(row["prediction"], row["answer"]) for row in off if row["points"] != 100] == [("2008", "2010")]  # years


def test_grounding_is_the_overlap_of_the_numbers_written(oracle, oracle_sample):
    rows = [row for row in oracle("grounding")["rows"] if row["clean_iou"] is not None]
    assert len(rows) == 190
    assert differing("grounding", rows, "clean_iou_at_least_0.5", oracle_sample) == []


def test_grounding_reads_formats_that_the_oracle_leaves_open(oracle, oracle_sample):
    rows = {row["format"]: row for row in oracle("grounding")["rows"] if row["clean_iou"] is None}
    points = {
        name: float(SCORERS["grounding"]([row["prediction"]], [oracle_sample(row)])[0]) for name, row in rows.items()
    }
    assert {name for name, value in points.items() if value} == {
        "int1000",
        "pixels",
        "percent",
        "reversed",
        "semicolon",
    }


def test_classification_is_equality_but_for_articles_and_punctuation(oracle, oracle_sample):
    off = differing("classification", oracle("classification")["rows"], "exact_casefold_stripped", oracle_sample)
    assert len(off) == 19
    for row in off:
        said = row["prediction"].lower().removeprefix("a ").replace("_", " ").replace(".", "").strip()
        assert said.replace(" ", "") == row["answer"].lower().replace(".", "").replace(" ", "") and row["points"] == 100


def test_caption_tokens_and_cider_are_those_of_pycocoevalcap_with_java(oracle):
    compared = 0
    for corpus in oracle("cider")["corpora"]:
        expected = corpus["expected"].get("pycocoevalcap_ptb")
        if expected is None:
            continue
        ids = list(corpus["refs"])
        for key in ids:
            assert ptb_tokenise(corpus["preds"][key]) == expected["tokenised_preds"][key]
            assert [ptb_tokenise(text) for text in corpus["refs"][key]] == expected["tokenised_refs"][key]
        samples = [Sample(key, "t", "", "", tuple(corpus["refs"][key])) for key in ids]
        points = SCORERS["cider"]([corpus["preds"][key] for key in ids], samples)
        assert points / 100 == pytest.approx([expected["per_image"][key] for key in ids], abs=6e-7), corpus["name"]
        compared += 1
    assert compared == 11
