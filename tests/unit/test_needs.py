"""What rules read of a sample's `meta` comes with the data: misfits are named before they reach a rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from streams import sample

from streamcvit.data.sample import TaskSpec
from streamcvit.errors import UserError
from streamcvit.evaluation import FOLLOW_RULES, SCORERS, STRCVIT_SCORERS, check_test_set

MISFITS = [
    ("classification", "", "single_word", "synonyms", [5, [3], "cat", {}]),
    ("choice", "", "single_word", "choices", [5, [1], [None], {}, {"a": 1}, "AB"]),
    ("exact", "", "letter", "choices", [5, {"a": 1}, [1, 2]]),
    ("exact", "scienceqa", "single_word", "choices", [5, "ABC", [None]]),
    ("grounding", "", "single_word", "size", ["x", [0, 0], 7, [4], [4, -1], [True, 2], {"w": 4, "h": 4}]),
    ("exact", "grounding", "single_word", "size", ["x", [0, 0], 7, [], ["4", "4"]]),
    ("grounding", "", "single_word", "box_unit", [[], {}, "inches", 4]),
    ("exact", "", "box", "box_unit", [[], "inches"]),
    ("slots", "", "single_word", "slots", [None, [], 5, [5], [[]], "red", {"red": 1}]),
    ("slots", "", "single_word", "max_words", ["x", -1, [3], True]),
    ("slots", "", "single_word", "follow_pattern", ["(", 7, "", "(?V0)(?V1)a", "{3i<L?$>"]),
    ("exact", "mcitlib_sci", "single_word", "image", [None, 5]),
    ("exact", "mcitlib_ocr", "single_word", "answer_type", [None, 5]),
    ("exact", "", "pattern", "follow_pattern", [None, 3, "", "(", "a" * 501]),
]
CASES = [(*rules, key, value) for *rules, key, values in MISFITS for value in values]
FITS = {"image": "TQA_1.png", "answer_type": "Doc-oriented VQA"}
FITS |= {"answer_bbox": [0.1, 0.1, 0.5, 0.5], "slots": ["red", ["ring", "hoop"]], "follow_pattern": "[a-z]+"}
SAID = ("A. cat", "[0.1,0.2,0.3,0.4]", "[1,2,3,4]", "red")


def asked(number, meta):
    return replace(sample(number, meta=meta), answers=("A",) * 10)


@pytest.mark.parametrize(("scorer", "strcvit", "follow", "key", "value"), CASES, ids=repr)
def test_a_misfit_is_named_with_sample_key_and_what_is_expected(scorer, strcvit, follow, key, value):
    one = asked(1, {**FITS, key: value})
    with pytest.raises(UserError, match="colour-1") as found:
        list(check_test_set(TaskSpec("colour", scorer, follow, strcvit), [asked(2, FITS), one]))
    assert key in str(found.value)


@pytest.mark.parametrize("kind", ["scorer", "strcvit", "follow"])
def test_whatever_passes_the_check_can_be_scored_and_what_is_null_counts_as_absent(kind):
    values = [value for *_, value in CASES] + [["A", "cat"], [4, 4], 9, "pixels"]
    keys = {key for *_, key, _ in CASES} | {"answer_bbox"}
    rules = {"scorer": SCORERS, "strcvit": STRCVIT_SCORERS, "follow": FOLLOW_RULES}[kind]
    passed = 0
    for name, rule in rules.items():
        spec = TaskSpec("colour", **{"scorer": "exact", "strcvit": "", "follow": "single_word", kind: name})
        assert list(check_test_set(spec, [asked(1, {**dict.fromkeys(keys), **FITS})]))
        for key in keys:
            for value in values:
                one = asked(1, {**FITS, key: value})
                try:
                    list(check_test_set(spec, [one]))
                except UserError:
                    continue
                passed += 1
                rule(SAID, [one] * len(SAID))
    assert passed > 1000


def test_a_test_set_is_checked_as_it_is_read():
    read = check_test_set(TaskSpec("colour", "choice", "letter"), (asked(1, {"choices": [one]}) for one in ("a", 1)))
    assert next(read).meta == {"choices": ["a"]}
    with pytest.raises(UserError, match="colour-1"):
        next(read)


@pytest.mark.parametrize(
    ("scorer", "strcvit", "answers", "meta", "said"),
    [
        ("choice", "", ("cow",), {"choices": ["dog", "cat"]}, "'cow' is none of the choices"),
        ("choice", "", ("C",), {"choices": ["dog", "cat"]}, "'C' is none of the choices"),
        ("choice", "", ("dog",), {}, "'dog' is no letter, and there are no choices"),
        ("exact", "scienceqa", ("dog",), {"choices": ["dog", "cat"]}, "'dog' is no letter of an option"),
        ("exact", "textvqa", ("dog",) * 9, {}, "9 human answers, the rule wants 10"),
        ("exact", "vqa_official", ("dog",), {}, "1 human answers, the rule wants 3"),
    ],
)
def test_a_sample_whose_every_answer_would_score_nothing_is_refused(scorer, strcvit, answers, meta, said):
    one = replace(sample(1), answers=answers, meta=meta)
    with pytest.raises(UserError, match=f"sample colour-1: no answer to it could be right: .*{said}"):
        list(check_test_set(TaskSpec("colour", scorer, "single_word", strcvit), [one]))
