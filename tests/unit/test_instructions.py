"""The instruction of a prompt is named by the task, and no text of a prompt is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rowmaking import llava

from streamcvit.data.formats import FORMATS, BadRow
from streamcvit.data.instructions import Naming
from streamcvit.data.sample import PICTURE, Picture, Sample
from streamcvit.errors import UserError

GUESS = Naming(guess=True)


@pytest.mark.parametrize(
    ("prompt", "naming", "parts"),
    [
        ("What?\nOne word.", Naming(), ("What?\nOne word.", "", None, False)),
        ("What?\nOne word.", Naming(("One word.",)), ("What?", "One word.", None, True)),
        ("What is it? One word.", Naming(("One word.",)), ("What is it?", "One word.", "What is it? One word.", True)),
        ("What?\n\nOne word.", Naming(("One word.",)), ("What?", "One word.", "What?\n\nOne word.", True)),
        ("A\nB\nC", Naming(("C", "B\nC")), ("A", "B\nC", None, True)),
        ("One word.\nWhat?", Naming(("One word.",)), ("What?", "One word.", "One word.\nWhat?", True)),
        ("Describe it.", Naming(("Describe it.",)), ("", "Describe it.", None, True)),
        ("A\nOne word.\nB", Naming(("One word.",)), ("A\nB", "One word.", "A\nOne word.\nB", True)),
        ("What?\nElse.", Naming(("One word.",)), ("What?\nElse.", "", None, False)),
        ("Draw a sword.", Naming(("word.",)), ("Draw a sword.", "", None, False)),
        ("What?\nOne word.", GUESS, ("What?", "One word.", None, True)),
        ("What?\nOne word.", Naming(("What?",), guess=True), ("One word.", "What?", "What?\nOne word.", True)),
        ("What?\n\nOne word.", GUESS, ("What?", "One word.", "What?\n\nOne word.", True)),
        ("What? One word.", GUESS, ("What? One word.", "", None, False)),
        (f"What?\n{PICTURE}", GUESS, (f"What?\n{PICTURE}", "", None, False)),
        ("What?\nOne word.", Naming(("Say.", "One word."), "single"), ("What?", "Say.", None, True)),
        ("One word. What?", Naming(("Say.", "One word."), "single"), ("What?", "Say.", "Say. What?", True)),
        ("What?\nA. x\nB. y", Naming(("Say.",), "single"), ("What?\nA. x\nB. y", "Say.", None, False)),
    ],
)
def test_prompts_come_apart_by_the_stated_rule(prompt, naming, parts):
    assert naming.split(prompt) == parts


def test_a_field_of_the_row_names_the_instruction_which_stands_behind_the_prompt_unless_it_holds_it():
    naming = Naming(field="style")
    behind = FORMATS["llava"](llava(1, "What?", style="One word."))
    inside = FORMATS["llava"](llava(1, "One word. What?", style=" One word.\n"))
    assert behind.parts(naming) == ("What?", "One word.", None, True)
    assert inside.parts(naming) == ("What?", "One word.", "One word. What?", True)
    assert FORMATS["llava"](llava(1, "What?")).parts(naming) == ("What?", "", None, False)
    assert FORMATS["llava"](llava(1, "What?", style="")).parts(naming) == ("What?", "", None, False)
    with pytest.raises(BadRow, match="'style', which names the instruction, is 5"):
        FORMATS["llava"](llava(1, "What?", style=5)).parts(naming)


def test_wordings_are_drawn_by_the_id_and_all_come():
    naming = Naming(("One word.", "Say it briefly.", "A single word, please."), "drawn")
    drawn = [naming.split("What?\nOne word.", key=f"r{number}").instruction for number in range(30)]
    assert set(drawn) == set(naming.wordings)
    assert drawn == [naming.split("What?\nOne word.", key=f"r{number}").instruction for number in range(30)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"wording": "single"}, "no instruction wordings are listed"),
        ({"wordings": (" ",)}, "wording is empty"),
        ({"field": "x", "wordings": ("a",)}, "`instruction_field` stands beside"),
        ({"field": "x", "guess": True}, "`instruction_field` stands beside"),
        ({"wordings": ("a",), "wording": "drawn", "guess": True}, "`guess_instruction` stands beside"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        Naming(**settings)


WORDS = st.text("ab .\n", max_size=12)


@given(WORDS, st.lists(WORDS.filter(str.strip), max_size=3), st.booleans(), WORDS)
def test_no_text_of_a_prompt_is_lost_or_moved(prompt, wordings, guess, own):
    question, instruction, whole, _ = Naming(tuple(wordings), guess=guess).split(prompt, own.strip())
    made = Sample("s", "t", question, instruction, ("x",), whole=whole).prompt
    assert made in (prompt, f"{prompt}\n{own.strip()}", prompt or own.strip())
    assert instruction in made


@given(WORDS, st.lists(WORDS.filter(str.strip), min_size=1, max_size=3))
def test_an_exchanged_wording_leaves_everything_around_it(prompt, wordings):
    question, instruction, whole, found = Naming(("NEW", *wordings), "single").split(prompt)
    made = Sample("s", "t", question, instruction, ("x",), whole=whole).prompt
    before, _, after = made.partition("NEW")
    assert instruction == "NEW" and prompt.startswith(before.removesuffix("\n") if not found else before)
    assert prompt.endswith(after)
    if found:
        assert prompt in {before + wording + after for wording in wordings}
    else:
        assert made == (f"{prompt}\nNEW" if prompt else "NEW")


def test_a_record_of_ours_keeps_the_instruction_it_has():
    one = Sample("s", "t", "What? ", "One word.", ("red",), (Picture(b""),))
    record = FORMATS["streamcvit"](
        {"id": "s", "task": "t", "answers": ["red"], "question": "What? ", "instruction": "One word."}
    )
    for naming in (Naming(), Naming(("What?",)), Naming(guess=True)):
        assert record.sample("s", "t", [Picture(b"")], record.parts(naming)) == one
    assert record.parts(Naming(("Say.",), "single")) == ("What?", "Say.", "What? \nSay.", True)
