"""Rows of the field's formats: what each says, whichever way it is written."""

from __future__ import annotations

import base64
import json

import pytest
from rowmaking import llava, qa, swift, talk
from streams import picture, sample

from streamcvit.data.formats import FORMATS, BadRow
from streamcvit.data.sample import PICTURE, Picture, Sample, Turn

ENCODED = picture(1)
BASE64 = base64.b64encode(ENCODED).decode()


def read(format, row):
    """The row as a sample; its pictures are as the row names them."""
    record = FORMATS[format](row)
    return record.sample("s", "colour", [Picture(b"")] * (record.count or 0)), record.pictures


def test_each_format_gives_the_same_sample():
    samples = [read(name, row)[0] for name, row in (("llava", llava(1)), ("swift", swift(1)), ("qa", qa(1)))]
    assert samples == [samples[0]] * 3
    assert samples[0].question == "What is it?\nOne word." and samples[0].instruction == ""
    assert samples[0].prompts == (f"{PICTURE}What is it?\nOne word.",)


def test_our_own_records_come_back_as_they_were():
    for one in (
        sample(1),
        sample(2, pictures=(), instruction=""),
        sample(3, system="Be brief.", turns=(Turn("Who?", "I."),), whole="One word. What?"),
        sample(4, question=f"{PICTURE} or {PICTURE}?", pictures=(Picture(b""), Picture(b""))),
    ):
        record = FORMATS["streamcvit"](json.loads(one.text_bytes()))
        assert record.count == len(one.pictures)
        assert record.sample(one.sample_id, one.task, one.pictures) == one


def test_test_rows_keep_what_a_scorer_needs_and_text_ids():
    record = FORMATS["qa"](qa(77, answer=["red", 3, 0.5], answer_bbox="[0, 0, 1, 1]", size=[4, 4], unit=None))
    assert record.sample_id == "77"
    assert record.answers == ("red", "3", "0.5")
    assert record.meta == {"answer_bbox": "[0, 0, 1, 1]", "size": [4, 4], "unit": None}


def test_flat_rows_may_call_their_columns_id_question_answers_and_instruction():
    row = {"id": "a", "image": "0.png", "question": "What?", "answers": ["red", "rot"], "instruction": "One word."}
    record = FORMATS["qa"](row)
    assert (record.sample_id, record.answers, record.meta) == ("a", ("red", "rot"), {})
    assert record.parts()[:3] == ("What?", "One word.", None)
    assert FORMATS["qa"]({**row, "instruction": None}).parts()[:3] == ("What?", "", None)


PARTS = [{"type": "image"}, {"type": "text", "text": "What is it?\nOne word."}]


@pytest.mark.parametrize(
    ("format", "row", "pictures"),
    [
        ("llava", llava(1, image=["1.png"]), ("1.png",)),
        ("llava", llava(1, image="./1.png"), ("1.png",)),
        ("llava", {**llava(1, image=None), "images": ["1.png"]}, ("1.png",)),
        ("llava", llava(1, image={"path": "1.png", "bytes": None}), ("1.png",)),
        ("llava", llava(1, prompt="What is it?\nOne word."), ("1.png",)),  # without a mark, in front
        ("swift", swift(1, images=[{"path": "<STRCVIT_IMAGE_ROOT>/a/1.png"}]), ("a/1.png",)),
        ("swift", swift(1, images=[{"bytes": ENCODED, "path": "x.png"}]), (ENCODED,)),
        ("swift", swift(1, images=[{"bytes": BASE64, "path": None}]), (ENCODED,)),
        ("swift", swift(1, images=[BASE64]), (ENCODED,)),
        ("swift", swift(1, images=[f"data:image/png;base64,{BASE64}"]), (ENCODED,)),
        ("swift", swift(1, content=PARTS), ("1.png",)),
        ("swift", swift(1, content=[{"type": "image", "image": "1.png"}, PARTS[1]], images=None), ("1.png",)),
        (
            "swift",
            swift(1, content=[{"type": "image_url", "image_url": {"url": "1.png"}}, PARTS[1]], images=[]),
            ("1.png",),
        ),
        ("swift", swift(1, content=[{"type": "image_url", "image_url": "1.png"}, PARTS[1]], images=[]), ("1.png",)),
        (
            "swift",
            swift(1, content=[{"type": "image", "image": None, "bytes": ENCODED, "text": None}, PARTS[1]], images=[]),
            (ENCODED,),
        ),
        ("qa", qa(1, image=ENCODED), (ENCODED,)),
        ("qa", qa(1, image=f"data:image/png;base64,{BASE64}"), (ENCODED,)),
    ],
)
def test_however_a_picture_is_written_it_stands_in_front_of_the_same_prompt(format, row, pictures):
    one, found = read(format, row)
    assert found == pictures
    assert (one.question, one.turns, len(one.pictures)) == ("What is it?\nOne word.", (), 1)


@pytest.mark.parametrize("format", ["llava", "swift", "qa"])
def test_a_row_without_a_picture_is_text(format):
    row = {
        "llava": llava(1, "What?", image=None),
        "swift": swift(1, "What?", images=[]),
        "qa": qa(1, text="What?", image=""),
    }
    one, pictures = read(format, row[format])
    assert (pictures, one.pictures, one.prompts) == ((), (), ("What?",))


def test_marks_stay_where_they_stand_unless_all_are_at_the_very_start():
    pair = {"image": ["0.png", "1.png"]}
    assert read("llava", talk("<image>\n\n <image>\nWhich?", "red", **pair))[0].question == "Which?"
    assert (
        read("llava", talk("<image> or <image>: which?", "red", **pair))[0].question
        == f"{PICTURE} or {PICTURE}: which?"
    )
    first = read("llava", talk("First: <image>\nSecond: <image>\nWhich?", "red", **pair))[0]
    assert first.prompts == (f"First: {PICTURE}\nSecond: {PICTURE}\nWhich?",)
    assert read("llava", talk("What?\n<image>", "red", image="0.png"))[0].question == f"What?\n{PICTURE}"
    later = read("llava", talk("<image>\nWhat?", "red", "And <image>?", "blue", **pair))[0]
    assert later.prompts == (f"{PICTURE}\nWhat?", f"And {PICTURE}?")


def test_picture_parts_stand_between_the_texts_and_take_their_pictures_in_turn():
    content = [
        {"type": "text", "text": "From "},
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": " to "},
        {"type": "image"},
        {"type": "text", "text": ": what changed?"},
    ]
    one, pictures = read("swift", swift(1, content, images=["b.png"]))
    assert one.question == f"From {PICTURE} to {PICTURE}: what changed?"
    assert pictures == ("a.png", "b.png")


def test_a_conversation_keeps_its_turns_and_its_system_prompt():
    row = talk("<image>\nWhat?", "red", "Sure?", "yes", image="0.png")
    row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    one, _ = read("llava", row)
    assert (one.system, one.turns, one.question, one.answers) == (
        "Be brief.",
        (Turn("What?", "red"),),
        "Sure?",
        ("yes",),
    )
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    assert read("swift", {"messages": messages, "images": ["0.png"]})[0] == one
    assert read("swift", {"messages": messages[1:], "system": "Be brief.", "images": ["0.png"]})[0] == one
    assert one.meta == {} and one.routing_text == "Be brief."


def test_sharegpt_roles_are_read_too():
    turns = [{"from": "user", "value": "What?"}, {"from": "assistant", "value": "red"}]
    assert read("llava", {"conversations": turns})[0].prompts == ("What?",)


def test_a_conversation_comes_apart_into_a_sample_of_each_question_with_the_turns_before_it():
    row = talk("<image>\nWhat?", "red", "And <image>?", "blue", "Both?", "no", image=["0.png", "1.png"], note=1)
    records = FORMATS["llava"](row).split()
    samples = [record.sample("s", "t", [Picture(b"")] * record.count) for record in records]
    assert [record.pictures for record in records] == [("0.png",), ("0.png", "1.png"), ("0.png", "1.png")]
    assert [one.answer for one in samples] == ["red", "blue", "no"]
    assert samples[0].prompts == (f"{PICTURE}What?",) and samples[0].turns == ()
    assert samples[1].prompts == (f"{PICTURE}\nWhat?", f"And {PICTURE}?")
    assert samples[2].turns == (Turn(f"{PICTURE}\nWhat?", "red"), Turn(f"And {PICTURE}?", "blue"))
    assert all(one.meta == {"note": 1} for one in samples)
    assert FORMATS["llava"](llava(1)).split() == [FORMATS["llava"](llava(1))]


def test_a_text_that_holds_our_own_picture_mark_loses_it():
    one, _ = read("llava", talk(f"What is {PICTURE}?", f"{PICTURE}red"))
    assert (one.question, one.answer) == ("What is  ?", " red")
    assert Sample.from_bytes(one.text_bytes(), []) == one


BAD = [
    ("llava", "text", "expected an object"),
    ("llava", llava(1, conversations=None), "'conversations' is missing"),
    ("llava", llava(1, conversations=[]), "'conversations' is empty"),
    ("llava", llava(1, conversations=[{"from": "human", "value": "x"}] * 2), "must alternate.*turn 1 is of 'human'"),
    ("llava", talk("<image>What?", "red", "Sure?", image="0.png"), "the last of 3 turns must be an answer"),
    ("llava", llava(1, conversations=llava(1)["conversations"][::-1]), "must alternate.*turn 0 is of 'gpt'"),
    ("llava", llava(1, conversations=[{"from": "tool", "value": "x"}]), "a turn is of 'tool'"),
    ("llava", llava(1, answer=" "), "gpt turn is empty"),
    ("llava", llava(1, prompt="<image>\n"), "empty but for the picture"),
    ("llava", llava(1, id=["x"]), "'id' is neither"),
    ("llava", llava(1, image=3), "path is 3"),
    ("llava", llava(1, image="../up.png"), "out of the image root"),
    ("llava", llava(1, image="a/../../up.png"), "out of the image root"),
    ("llava", llava(1, image="a\\..\\..\\up.png"), "out of the image root"),
    ("llava", llava(1, image="/etc/passwd"), "out of the image root"),
    ("llava", llava(1, image="\\\\server\\share\\x.png"), "out of the image root"),
    ("llava", llava(1, image="C:\\x.png"), "out of the image root"),
    ("llava", llava(1, image="file:///etc/passwd"), "out of the image root"),
    ("llava", llava(1, image="http://host/x.png"), "not fetched, download them"),
    ("llava", llava(1, image="s3://bucket/x.png"), "not fetched, download them"),
    ("llava", llava(1, image="x\0.png"), "out of the image root"),
    ("llava", llava(1, image="data:image/png,abc"), "no data URI of a picture"),
    ("llava", llava(1, image="data:image/png;base64,?!"), "no base64"),
    ("llava", llava(1, image={"bytes": None, "path": None}), "path is None"),
    ("llava", llava(1, image=["a.png", "b.png"]), "mark the places of 1 pictures, the row names 2"),
    ("llava", llava(1, images=["a.png"]), "pictures in 'image' and in 'images'"),
    ("llava", talk("<image><image> <image>?", "red", image=["a.png", "b.png"]), "of 3 pictures, the row names 2"),
    ("llava", llava(1, video="a.mp4"), "video and audio are not read"),
    ("llava", talk("<video>\nWhat?", "red"), "video and audio are not read"),
    ("swift", swift(1, images=["a.png", "b.png"]), "mark the places of 1 pictures, the row names 2"),
    ("swift", swift(1, images=["<STRCVIT_IMAGE_ROOT>/../x.png"]), "out of the image root"),
    ("swift", swift(1, [{"type": "video_url", "video_url": "x"}]), "video and audio are not read"),
    ("swift", swift(1, [{"type": "thing"}]), "has a part .*thing"),
    ("swift", swift(1, 5), "turn without text"),
    ("qa", qa(1, text=None), "'text' .* is missing"),
    ("qa", qa(1, answer=None), "neither text nor a number"),
    ("qa", qa(1, answer=[]), "empty list"),
    ("qa", qa(1, question_id=True), "'question_id'"),
    ("qa", qa(1, instruction=["x"]), "'instruction' is"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "says"), BAD)
def test_bad_rows_say_what_is_wrong(format, row, says):
    with pytest.raises(BadRow, match=says):
        FORMATS[format](row)


def test_a_mark_without_a_picture_asks_for_one_beside_the_row():
    """In shards it lies there; in a file of rows it is a fault (see test_taskfiles)."""
    record = FORMATS["llava"](llava(1, image=None))
    assert (record.count, record.pictures) == (1, ())
    assert FORMATS["llava"](llava(1, "What?", image=None)).count is None
