"""Which answers keep to the demanded form."""

from __future__ import annotations

import time

import numpy as np
import pytest

from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES


def follows(rule: str, prediction: str, *answers: str, **meta) -> bool:
    (value,) = FOLLOW_RULES[rule]([prediction], [Sample("s0", "t", "q", "", answers or ("dog",), meta=meta)])
    return bool(value)


STRICT = sorted(name for name in FOLLOW_RULES if not name.startswith("strcvit_"))


@pytest.mark.parametrize("rule", STRICT)
@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_an_empty_answer_never_follows(rule, blank):
    assert not follows(rule, blank, "dog", "", follow_pattern=".*")


@pytest.mark.parametrize("rule", sorted(FOLLOW_RULES))
def test_every_rule_gives_one_bool_a_row(rule):
    none = FOLLOW_RULES[rule]([], [])
    assert none.shape == (0,) and none.dtype == np.bool_


@pytest.mark.parametrize(
    ("rule", "prediction", "expected"),
    [
        ("single_word", "dog", True),
        ("single_word", "red dog", True),
        ("single_word", "the red dog", False),
        ("single_word", "New York City", True),
        ("single_word", "new york city", True),
        ("single_word", ".", False),
        ("sentence", "A dog on the street.", True),
        ("sentence", "A dog on the street", False),
        ("sentence", "A dog.", False),
        ("sentence", ".", False),
        ("sentence", "York City.", False),
        ("letter", "B", True),
        ("letter", "b", True),
        ("letter", "B.", False),
        ("letter", "é", False),
        ("letter", "1", False),
        ("number", "3.5", True),
        ("number", "1,000", True),
        ("number", "50%", True),
        ("number", "three", False),
        ("number", "3 dogs", False),
        ("box", "[0.1, 0.2, 0.5, 0.6]", True),
        ("box", "[0,0,1,1]", True),
        ("box", "[0.1, 0.2, 0.5]", False),
        ("box", "[10, 20, 50, 60]", False),
        ("box", "0.1, 0.2, 0.5, 0.6", False),
        ("box", "[0.1, 0.2, 0.5, 0.6].", False),
        ("yes_no", "Yes", True),
        ("yes_no", "no.", True),
        ("yes_no", "Yes, a dog", False),
        ("yes_no", "maybe", False),
    ],
)
def test_a_rule_follows_its_wording(rule, prediction, expected):
    assert follows(rule, prediction, "New York City") is expected


def test_a_letter_must_name_one_of_the_options():
    assert follows("letter", "B", choices=["dog", "cat"])
    assert not follows("letter", "C", choices=["dog", "cat"])


def test_a_box_may_have_another_unit_where_the_task_says_so():
    assert follows("box", "[10, 20, 50, 60]", box_unit="thousandths")


def test_a_pattern_matches_the_whole_answer():
    assert follows("pattern", "< red >", follow_pattern=r"< [a-z]+ >")
    assert follows("pattern", " < red >\n", follow_pattern=r"< [a-z]+ >")
    assert not follows("pattern", "it is < red >", follow_pattern=r"< [a-z]+ >")
    assert not follows("pattern", "a" * 1001, follow_pattern=r"a+")


@pytest.mark.parametrize("pattern", [None, 3, "(", "a" * 501])
def test_an_unusable_pattern_is_named_with_its_sample(pattern):
    with pytest.raises(UserError, match="s0"):
        follows("pattern", "dog", follow_pattern=pattern)


def test_a_pattern_that_backtracks_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr("streamcvit.evaluation.follow.MATCH_SECONDS", 0.05)
    start = time.monotonic()
    with pytest.raises(UserError, match="repetitions inside repetitions"):
        follows("pattern", "a" * 200 + "!", follow_pattern=r"(a|aa)+(b|bb)*c?(a|aa)+$")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("rule", "prediction", "expected"),
    [
        ("strcvit_short", "", True),
        ("strcvit_short", "red dog", True),
        ("strcvit_short", "the red dog", False),
        ("strcvit_short", "NEW york city", True),
        ("strcvit_caption", "A dog on the street.", True),
        ("strcvit_caption", "A dog on the street", False),
        ("strcvit_caption", ".", False),
        ("strcvit_caption", "", False),
        ("strcvit_letter", "b", True),
        ("strcvit_letter", "B.", False),
    ],
)
def test_the_published_rules_are_kept(rule, prediction, expected):
    assert follows(rule, prediction, "New York City") is expected


def test_the_published_caption_rule_takes_any_piece_of_a_reference():
    assert follows("strcvit_caption", ".", "A dog.")
    assert follows("strcvit_caption", "DOG.", "A dog.")


@pytest.mark.parametrize(
    ("rule", "kind", "column"),
    [
        ("strcvit_short", "short", "strcvit_eval_vqa_instruction"),
        ("strcvit_caption", "caption", "strcvit_eval_caption_instruction"),
    ],
)
def test_the_published_rules_give_what_the_scripts_gave(rule, kind, column, oracle):
    rows = [row for row in oracle("instruction_following")["rows"] if row["kind"] == kind]
    for row in rows:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        assert follows(rule, row["prediction"], *answers) == bool(row["expected"][column]), row["id"]
    assert len(rows) >= 30
