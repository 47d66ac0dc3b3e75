"""What each strict scorer gives for an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation import SCORERS, STRCVIT_SCORERS
from streamcvit.evaluation.answers import anls, parse_number, plain
from streamcvit.evaluation.ptb import ptb_tokenise
from streamcvit.evaluation.text import vqa_normalise


def sample(*answers: str, **meta) -> Sample:
    return Sample("s0", "task", "question", "", answers, meta=meta)


def points(scorer: str, prediction: str, *answers: str, **meta) -> float:
    (value,) = SCORERS[scorer]([prediction], [sample(*answers, **meta)])
    return float(value)


ROW_META: dict[str, dict[str, Any]] = {
    "slots": {"slots": ["red", "ring"]},
    "grounding": {"answer_bbox": [0.1, 0.2, 0.5, 0.6]},
}


@pytest.mark.parametrize("name", sorted(SCORERS))
@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_an_empty_answer_scores_nothing(name, blank):
    assert points(name, blank, "a", "the", "", **ROW_META.get(name, {})) == 0.0


@pytest.mark.parametrize("name", sorted(SCORERS | STRCVIT_SCORERS))
def test_every_scorer_takes_no_rows_at_all_and_refuses_uneven_ones(name):
    for scorer in (family[name] for family in (SCORERS, STRCVIT_SCORERS) if name in family):
        nothing = scorer([], [])
        assert nothing.shape == (0,) and nothing.dtype == np.float64
        with pytest.raises(ValueError, match="1 predictions for 0 samples"):
            scorer(["a"], [])


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The Dog.", "dog", 100),
        ("two", "2", 100),
        ("10,000", "10000", 100),
        ("3.5", "35", 0),
        ("-5", "5", 0),
        ("3.50", "3.5", 100),
        ("man's", "man", 0),
        ("ice-cream", "ice cream", 100),
        ("the!", "the", 100),
        ("dogs", "dog", 0),
        ("dont", "don't", 100),
        ("couldnt've", "couldn'tve", 100),
    ],
)
def test_exact_compares_after_vqa_normalisation(prediction, reference, expected):
    assert points("exact", prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("?", "?"),
        ("+", "+"),
        ("...", "…"),
        ("A+", "a+"),
        ("don’t", "don't"),
        ("**dog**", "dog"),
        ("cafe\u0301", "café"),
        ("do\u200bg", "dog"),
        ("−5", "-5"),
        ("- 5", "-5"),
        ("2010–2011", "2010-2011"),
        ("twenty-one", "21"),
        ("one hundred", "100"),
        ("50 percent", "50%"),
        ("“stop”", "stop"),
    ],
)
def test_typography_is_no_error(prediction, reference):
    for name in ("exact", "classification", "vqa"):
        assert points(name, prediction, reference) == points(name, reference, prediction) == 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "five"),
        ("-3°C", "3°C"),
        ("A+", "A"),
        ("A-", "A"),
        ("A+", "A-"),
        ("AB-", "AB"),
        ("C++", "C"),
        (">5", "<5"),
        (">5", "5"),
        ("3/4", "3 4"),
        ("18+", "18"),
        ("2*3*4", "234"),
    ],
)
def test_marks_that_carry_the_meaning_are_kept(one, other):
    for name in ("exact", "classification", "vqa"):
        assert points(name, one, other) == points(name, other, one) == 0
        assert points(name, one, one) == 100


def test_exact_takes_any_reference():
    assert points("exact", "sofa", "couch", "Sofa") == 100


def test_format_exact_counts_case_and_punctuation_but_not_outer_blanks():
    assert points("format_exact", " < red > \n", "< red >") == 100
    assert points("format_exact", "< Red >", "< red >") == 0
    assert points("format_exact", "red", "< red >") == 0


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (9, 100)])
def test_vqa_with_ten_people_leaves_one_out(matches, expected):
    answers = ["dog"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert points("vqa", "Dog", *answers) == pytest.approx(expected)


def test_vqa_gives_full_marks_where_three_people_agree():
    assert points("vqa", "dog", "dog", "dog", "dog") == 100


def test_vqa_normalises_always_and_the_official_evaluator_only_where_people_differ():
    assert points("vqa", "Yes", *["yes"] * 10) == points("vqa", "Yes", *["yes"] * 9, "no") == 100
    official = STRCVIT_SCORERS["vqa_official"]
    assert official(["Yes", "Yes"], [sample(*["yes"] * 10), sample(*["yes"] * 9, "no")]).tolist() == [0, 100]


def test_vqa_with_one_reference_is_normalised_equality():
    assert points("vqa", "The Dog.", "dog") == 100


def test_classification_asks_for_equality_and_takes_synonyms():
    assert points("classification", "a tench.", "tench") == 100
    assert points("classification", "t", "tench") == 0
    assert points("classification", "a tench fish", "tench") == 0
    assert points("classification", "sofa", "couch", synonyms=["sofa"]) == 100


@pytest.mark.parametrize(
    "prediction", ["B", "b", " B ", "B.", "(B)", "B)", "B:", "cat", "Cat.", "B. cat", "(B) a cat", "a cat"]
)
def test_choice_knows_the_option_by_letter_and_by_text(prediction):
    assert points("choice", prediction, "B", choices=["dog", "cat"]) == 100
    assert points("choice", prediction, "cat", choices=["dog", "cat"]) == 100
    assert points("choice", prediction, "A", choices=["dog", "cat"]) == 0


@pytest.mark.parametrize(
    "prediction",
    [
        "Answer: B",
        "The answer is B because its ears are pointed.",
        "The correct answer is (B).",
        "Final answer: **B**",
        "Answer: B. cat",
        "I would choose option B.",
        "Option B",
        "[B]",
        "“B”",
        "**B**",
        "B, cat",
        "B) cat because it is not a dog",
        "B - cat",
        "It is a cat.",
        "It is a cat, not a dog.",
    ],
)
def test_choice_reads_what_people_and_chat_models_write(prediction):
    assert points("choice", prediction, "B", choices=["dog", "cat"]) == 100
    assert points("choice", prediction, "A", choices=["dog", "cat"]) == 0


def test_a_letter_within_the_list_is_a_letter_also_where_options_are_letters():
    assert points("choice", "A", "A", choices=["C", "A", "B"]) == 100
    assert points("choice", "B", "A", choices=["C", "A", "B"]) == 0


def test_choice_tells_options_apart_of_which_one_holds_the_other():
    assert points("choice", "That is a hot dog stand", "hot dog", choices=["dog", "hot dog"]) == 100
    assert points("choice", "There are 12.5 apples", "12", choices=["12", "12.5"]) == 0


HEDGES = [
    "a cat and a dog",
    "The answer is A or B",
    "Option A or option B",
    "The answer is B, dog.",
    "It is not a cat.",
]


@pytest.mark.parametrize("prediction", ["C", "A. cat", "B. dog", "AB", "A or B", "A, B", "Because", "1", *HEDGES])
def test_choice_refuses_other_letters_contradictions_and_hedging(prediction):
    assert points("choice", prediction, "B", choices=["dog", "cat"]) == 0


@pytest.mark.parametrize("prediction", ["D.C. area", "d.c. area.", "U.S. flag", "the U.S. flag"])
def test_choice_knows_a_text_that_starts_like_a_letter(prediction):
    choices = ["cat", "D.C. area" if "rea" in prediction else "U.S. flag", "cow", "dog"]
    assert points("choice", prediction, "B", choices=choices) == 100


def test_choice_needs_no_list_of_options():
    assert points("choice", "(c)", "C") == 100
    assert points("choice", "C. anything", "C") == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("105", "100", 100),
        ("106", "100", 0),
        ("95", "100", 100),
        ("-100", "100", 0),
        ("1,234", "1234", 100),
        ("45%", "0.45", 100),
        ("0.0", "0", 100),
        ("0.01", "0", 0),
        ("nan", "5", 0),
        ("inf", "5", 0),
        ("1_000", "1000", 0),
        ("Yes.", "yes", 100),
        ("seven", "7", 100),
        ("6.", "6", 100),
        ("5 dogs", "5", 0),
        ("2008", "2010", 0),
        ("2010.", "2010", 100),
        ("1999", "2,010", 100),
    ],
)
def test_number_is_relaxed_by_five_percent(prediction, reference, expected):
    assert points("number", prediction, reference) == expected


BOX = [0.1, 0.2, 0.5, 0.6]


@pytest.mark.parametrize(
    "prediction",
    [
        "[0.1, 0.2, 0.5, 0.6]",
        "[0.1,0.2,0.5,0.6].",
        "0.1, 0.2, 0.5, 0.6",
        "(0.1,0.2),(0.5,0.6)",
        "[[0.10, 0.20, 0.50, 0.60]]",
        "<box>[0.1, 0.2, 0.5, 0.6]</box>",
        "The 2 dogs are in [0.1, 0.2, 0.5, 0.6].",
        "x1=0.1 y1=0.2 x2=0.5 y2=0.6",
        '{"bbox_2d": [100, 200, 500, 600]}',
        "[10%, 20%, 50%, 60%]",
        "[100, 200, 500, 600]",
        "[64, 96, 320, 288]",
        "[0.5, 0.6, 0.1, 0.2]",
        "[.1, .2, .5, .6]",
        "[1e-1, 2e-1, 5e-1, 6e-1]",
        "<loc0205><loc0102><loc0614><loc0512> dog",
        '{"box_2d": [200, 100, 600, 500]}',
        "ymin: 0.2, xmin: 0.1, ymax: 0.6, xmax: 0.5",
    ],
)
def test_grounding_reads_the_usual_ways_to_write_a_box(prediction):
    assert points("grounding", prediction, "unused", answer_bbox=BOX, size=[640, 480]) == 100
    assert points("grounding", prediction, "[0.1,0.2,0.5,0.6]", size=[640, 480]) == 100


@pytest.mark.parametrize(
    "prediction",
    [
        "top left",
        "[0.1, 0.2, 0.5]",
        "[0.1, 0.2, 0.5, 0.6, 0.9]",
        "[0.1, 0.2, 0.5, 0.6] or [0.4, 0.4, 0.9, 0.9]",
        "[1.1, 0.2, 0.5, 0.6]",
        "[10%, 0.2, 0.5, 0.6]",
        "[0.1, 0.1, 0.1, 0.1]",
    ],
)
def test_grounding_refuses_what_is_not_one_box(prediction):
    assert points("grounding", prediction, "unused", answer_bbox=BOX, size=[640, 480]) == 0


def test_grounding_takes_a_box_that_passes_the_edge_by_a_hair():
    edge = {"answer_bbox": [0.5, 0.5, 1.0, 1.002], "size": [640, 480]}
    assert points("grounding", "[0.5, 0.5, 1.01, 1.0]", "unused", **edge) == 100


def test_grounding_takes_the_order_from_the_task():
    assert points("grounding", "[0.2, 0.1, 0.6, 0.5]", "[0.2, 0.1, 0.6, 0.5]", box_order="yx") == 100
    assert points("grounding", "[0.1, 0.6, 0.3, 0.9]", "[0.6, 0.1, 0.9, 0.3]", box_order="yx") == 0


@pytest.mark.parametrize(
    ("prediction", "expected"), [("hello", 100), ("Helo", 80), ("hxxxx", 0), ("something else", 0)]
)
def test_anls_gives_shares_for_near_texts(prediction, expected):
    assert points("anls", prediction, "goodbye", "hello") == pytest.approx(expected)
    assert anls(prediction, "hello") == anls("hello", prediction)


def test_grounding_counts_an_overlap_of_exactly_one_half():
    assert points("grounding", "[0.10,0.20,0.30,0.60]", "[0.10,0.20,0.50,0.60]") == 100
    assert points("grounding", "[0.10,0.20,0.29,0.60]", "[0.10,0.20,0.50,0.60]") == 0


def test_grounding_takes_the_unit_from_the_task():
    grid = {"answer_bbox": [0, 0, 1, 1], "size": [4, 4], "box_unit": "pixels"}
    assert points("grounding", "[0,0,1,1]", "unused", **grid) == 100
    assert points("grounding", "[0,0,4,4]", "unused", **grid) == 0
    with pytest.raises(UserError, match="box_unit"):
        points("grounding", "[0,0,1,1]", "unused", answer_bbox=BOX, box_unit="inches")


def test_grounding_names_the_sample_whose_reference_holds_no_box():
    with pytest.raises(UserError, match="s0"):
        points("grounding", "[0.1,0.2,0.5,0.6]", "top left")
    with pytest.raises(UserError, match="size"):
        points("grounding", "[0.1,0.2,0.5,0.6]", "unused", answer_bbox=[10, 20, 50, 60])


CAPTION = "A red ring on a blue background."


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (CAPTION, 100),
        ("red ring blue", 100),
        ("A red disc on a blue background.", 200 / 3),
        ("A blue disc on a red background.", 100 / 3),
        ("A ring, red, on a blue background.", 200 / 3),
        ("A red green blue ring disc square on a blue background.", 0),
        ("red red red on red", 100 / 3),
        ("nothing", 0),
    ],
)
def test_slots_counts_the_words_due_in_their_order(prediction, expected):
    assert points("slots", prediction, CAPTION, slots=["red", "ring", "blue"]) == pytest.approx(expected)


def test_slots_takes_alternatives_and_a_limit_of_its_own():
    assert points("slots", "a crimson ring", CAPTION, slots=[["red", "crimson"], "ring"]) == 100
    assert points("slots", "a crimson ring", CAPTION, slots=[["red", "crimson"], "ring"], max_words=2) == 0
    with pytest.raises(UserError, match="slots"):
        points("slots", "a ring", CAPTION)


def test_cider_ignores_case_and_punctuation_where_the_published_scorer_does_not():
    samples = [
        sample("a man holding a phone", "man with a phone"),
        sample("a red car on a street", "red car parked"),
        sample("a bottle on a table", "a brown bottle"),
    ]
    plain = ["a man holding a phone", "red car parked", "a brown bottle"]
    dressed = ["A man holding a phone.", "Red car, parked.", "A brown bottle!"]
    strict, published = SCORERS["cider"], STRCVIT_SCORERS["textcaps"]
    assert strict(dressed, samples) == pytest.approx(strict(plain, samples))
    assert published(plain, samples) == pytest.approx(strict(plain, samples))
    assert published(dressed, samples).mean() < strict(dressed, samples).mean() / 2


def test_cider_survives_references_without_a_word():
    assert SCORERS["cider"](["a dog", "a cat"], [sample("."), sample("!")]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("There's an outdoor dining area.", "there 's an outdoor dining area"),
        ("I can't, don't; they've gone!", "i ca n't do n't they 've gone"),
        ('The "best" dog\'s toy - really…', "the best dog 's toy really"),
        ("Three giraffe’s – leaning", "three giraffe 's leaning"),
        ("An ice-cream (vanilla) for $3.50, 50% off", "an ice-cream -lrb- vanilla -rrb- for $ 3.50 50 % off"),
        ("The letter k with k.", "the letter k with k."),
        ("Mr. Smith of the U.S. at 10:30 a.m. in No. 5", "mr. smith of the u.s. at 10:30 a.m. in no. 5"),
        ("Gimme what I'm gonna get 'em", "gim me what i 'm gon na get 'em"),
        ("He cannot see 1,000 and/or 3/4 of AT&T's y'all", "he can not see 1,000 and/or 3/4 of at&t 's y' all"),
        ("café 北京 😀", "café 北京"),
        ("", ""),
    ],
)
def test_caption_tokens_are_those_of_the_ptb_step(text, tokens):
    assert ptb_tokenise(text) == tokens


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_can_be_scored_and_a_copy_of_the_reference_is_right(text):
    meta = {"answer_bbox": BOX, "slots": ["red"], "choices": ["dog", "cat"]}
    for name, scorer in SCORERS.items():
        (value,) = scorer([text], [sample("dog" if name == "choice" else text or "x", **meta)])
        assert 0.0 <= value <= (1000.0 if name == "cider" else 100.0)
    if plain(text):
        assert all(points(name, text, text) == 100 for name in ("exact", "number", "anls", "vqa"))
    if text.strip():
        assert points("format_exact", text, text) == 100


def test_a_number_too_large_to_hold_is_none():
    assert parse_number("1e999") is None


def test_the_published_normal_form_keeps_its_slips():
    assert vqa_normalise("somebody'd") == "somebodyd"
    assert vqa_normalise("someoned") == "someone'd"
    assert vqa_normalise("x" + "." * 40 + "y") == "x" + "." * 8 + "y"
    assert vqa_normalise("3. 5") == "3 5"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_a_printed_number_is_read_back(value):
    assert parse_number(repr(value)) == value
    assert parse_number(f"{value!r}%") == pytest.approx(value / 100)
