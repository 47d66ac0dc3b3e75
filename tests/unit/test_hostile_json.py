"""JSON that parsers read in different ways, or choke on: a verdict that depends on the text alone."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace

import pytest
from streams import TASKS, picture, raw_tar, sample, test_sets

from streamcvit.data import strictjson
from streamcvit.data.files.tasks import Row, load_tasks, read_rows
from streamcvit.data.sample import Quarantined, Sample
from streamcvit.data.shards.foreign import index_shards
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError
from streamcvit.learning import Replay
from streamcvit.models.batch import Batch

REFUSED = {
    b"\xff\xfe{}": "utf-8",
    b"\xef\xbb\xbf{}": "Expecting|BOM",
    '{"a": 1}'.encode("utf-16"): "utf-8|codec|Expecting",
    b'{"a": NaN}': "NaN is no number",
    b"[-Infinity]": "Infinity is no number",
    b"[1e999]": "out of range",
    b"[" + b"9" * 5000 + b"]": "5000 digits",
    b"[" + b"9" * 21 + b"]": "21 digits",
    b'{"a": {"b": 1, "b": 2}}': "'b' comes twice",
    b'["\\ud83d"]': "surrogate",
    b'{"\\udc00": 1}': "surrogate",
    b"[" * 65 + b"]" * 65: "deeper than 64",
    b'{"a":' * 65 + b"1" + b"}" * 65: "deeper than 64",
    b"[" * 100_000: "deeper than 64",
    b"[1] 2": "follows",
    b"": "Expecting",
    b"\0": "Expecting",
    b'["\x01"]': "control character",
}


@pytest.mark.parametrize("text", REFUSED, ids=[repr(text[:20]) for text in REFUSED])
def test_what_is_no_sound_json_is_refused_with_the_reason(text):
    with pytest.raises(ValueError, match=f"(?i){REFUSED[text]}"):
        strictjson.loads(text)


@pytest.mark.parametrize(
    "value", [[[[]]], {"a": "\U0001f600\0"}, -(10**18), 1.5e300, "x" * 1_000_000, [[1] * 100] * 100, None]
)
def test_what_is_sound_is_read_as_it_is(value):
    assert strictjson.loads(json.dumps(value)) == value


def test_64_levels_are_read_and_the_verdict_does_not_depend_on_the_stack():
    good, bad = "[" * 64 + "]" * 64, "[" * 900 + "]" * 900
    verdicts = []

    def at_depth(frames):
        if frames:
            return at_depth(frames - 1)
        for text in (good, bad):
            try:
                strictjson.loads(text)
                verdicts.append("")
            except ValueError as fault:
                verdicts.append(str(fault))
        return None

    for frames in (0, sys.getrecursionlimit() - 300):
        thread = threading.Thread(target=at_depth, args=(frames,))
        thread.start()
        thread.join()
    assert verdicts == ["", "nested deeper than 64 levels"] * 2


def test_many_keys_that_come_twice_at_the_end_cost_no_square_of_them():
    pairs = ",".join(f'"{number}": 0' for number in range(200_000))
    with pytest.raises(ValueError, match="'0' comes twice"):
        strictjson.loads(f'{{{pairs}, "0": 1}}')


def test_a_row_that_is_refused_costs_only_itself(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(1))
    good = '{"question_id": %d, "image": "0.png", "text": "What?", "answer": "red"}'
    bad = ['{"question_id": 1, "question_id": 2}', '{"answer": NaN}', '{"answer": ' + "9" * 5000 + "}", '["\\ud800"]']
    rows = [good % 0, *bad, good % 9]
    (tmp_path / "x.json").write_text("[\n " + ",\n".join(rows) + " ]\n")
    (tmp_path / "x.jsonl").write_text("\n".join([*rows, '{"text": "\u2028"', ""]))
    for name, more in (("x.json", 0), ("x.jsonl", 1)):
        found = list(read_rows(tmp_path / name, "qa", "colour", tmp_path))
        assert [row.sample_id for row in found if isinstance(row, Row)] == ["0", "9"]
        assert [row.reason for row in found if isinstance(row, Quarantined)] == ["json"] * (len(bad) + more)


@pytest.mark.parametrize(
    "text", ["[1", "[1,", "[1,]", "[1 2]", "[1] 2", '{"a": 1}', "[[" + "[" * 5000, "[,1]", "[nul]"]
)
def test_a_file_that_is_no_list_is_refused_as_a_whole(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="x.json: is no JSON list of rows"):
        list(read_rows(tmp_path / "x.json", "qa", "colour", tmp_path))


@pytest.mark.parametrize("change", [{"answers": ("x y " * 250_000,)}, {"question": "x" * 1_000_000}])
def test_a_megabyte_of_text_is_a_sample_like_any_other_until_the_model_refuses_it(change):
    from streamcvit.models.collate import Collator, UnusableSamples

    long = sample(1, **change)
    assert Sample.from_bytes(long.text_bytes(), long.pictures) == long
    collator = Collator.from_pretrained("embedded", max_length=2048)
    with pytest.raises(UnusableSamples, match="1000... characters; at most 131072 are looked at") as fault:
        collator.train([sample(0), long])
    assert set(fault.value.reasons) == {"colour-1"}
    with pytest.raises(UnusableSamples, match="tokens are more than max_length=2048"):
        collator.prompts([sample(0, question="x y " * 25_000)])


def test_texts_that_spell_control_tokens_or_hold_nul_become_inputs():
    from streamcvit.models.collate import Collator

    collator = Collator.from_pretrained("embedded", max_length=2048)
    odd = [
        replace(sample(number), question=text, answers=(text,))
        for number, text in enumerate(["<image>" * 5, "a\0b", "\u202eabc", "", "\U0001f600", "</s><s>", "\r\n\t"])
    ]
    inputs = collator.train(odd)
    assert inputs.image_mask.sum(1).unique().numel() == 1


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def llava(number, **more):
    turns = [{"from": "human", "value": f"What {number}?\nOne word."}, {"from": "gpt", "value": "red"}]
    return {"id": f"r{number}", "conversations": turns, **more}


def test_a_row_that_is_too_deep_as_a_record_of_ours_costs_itself_alone(tmp_path):
    """What a row says besides lies one level deeper in a record: depth 64 was read, and never again once written."""
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = [llava(number, image="a.png") for number in range(40)]
    rows[7]["note"], rows[8]["note"] = nested(63), nested(62)
    (tmp_path / "train.json").write_text(json.dumps(rows))
    test = [{"question_id": 1, "image": "a.png", "text": "What?\nOne word.", "answer": "red"}]
    (tmp_path / "test.json").write_text(json.dumps(test))
    task = load_tasks(tmp_path, {"colour": {"train": "train.json", "test": "test.json"}})["colour"]
    assert [(bad.sample_id, bad.reason) for bad in task.quarantined] == [("r7", "json")]
    assert "row 7: nested deeper than 64" in task.quarantined[0].detail
    stream = write_stream(tmp_path / "s", ((0, one) for one in task.train), [task.spec], {"colour": task.test}, 0)
    assert len(stream) == 39


def test_a_row_that_is_too_long_as_a_record_of_ours_costs_itself_alone(tmp_path, monkeypatch):
    """Numbers and separators take more room in a record than they may in a row."""
    monkeypatch.setattr(strictjson, "MAX_TEXT", 4000)
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = [llava(0, image="a.png"), llava(1, image="a.png", note=[1] * 1800)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row, separators=(",", ":")) for row in rows))
    good, bad = read_rows(tmp_path / "train.jsonl", "llava", "colour", tmp_path)
    assert isinstance(good, Row)
    assert bad.reason == "json" and "at most 4000 are read" in bad.detail


def test_a_shards_row_that_replay_could_not_keep_is_left_out_of_the_index(tmp_path):
    members = []
    for number in range(20):
        row = llava(number, **({"note": nested(63)} if number == 7 else {}))
        members += [(f"k{number:02d}.json", json.dumps(row).encode()), (f"k{number:02d}.png", picture(number))]
    index = index_shards([raw_tar(tmp_path / "x.tar", members)], tmp_path, TASKS, format="llava", task="colour")
    assert [fault["reason"] for fault in index.meta["faults"]] == ["json"]
    found = ShardReader(index).read(range(len(index)))
    assert len(found) == 19
    replay, again = Replay(0), Replay(0)
    replay.after_step(Batch(0, 19, 0, tuple(range(19)), tuple(found), None), None)
    again.load_state_dict(*replay.state_dict())
    assert again.kept == replay.kept == found


def test_a_sample_that_could_not_be_read_again_is_named_before_it_is_written(tmp_path):
    rows = [(0, sample(1)), (0, sample(2, meta={"note": nested(63)}))]
    with pytest.raises(UserError, match="'colour-2' could not be read again: nested deeper"):
        write_stream(tmp_path / "s", rows, TASKS, test_sets(), 0)
    assert list(tmp_path.iterdir()) == []
