"""Samples pushed from the command line arrive as complete shards, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from arrivals import following
from streams import picture
from typer.testing import CliRunner

from streamcvit import cli
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import UserError
from streamcvit.run.following import Following


def rows(folder: Path, name: str, numbers: range, **more: Any) -> str:
    """A JSONL file of questions with pictures beside it."""
    lines = []
    for number in numbers:
        (folder / f"{number}.png").write_bytes(picture(number))
        lines.append({"image": f"{number}.png", "text": f"Which {number}?", "answer": "red", **more})
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / name)


def push(*words: str) -> str:
    """What the command prints; its mistakes are raised."""
    done = CliRunner().invoke(cli.app, ["push", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A stream with one task and no sample."""
    words = [
        "--to",
        str(tmp_path / "in"),
        "--create",
        "--task",
        "colour",
        "--scorer",
        "vqa",
        "--set",
        "max_new_tokens=3",
    ]
    test = rows(tmp_path, "test.jsonl", range(100, 103))
    assert push(*words, "--test", test) == "task colour: 3 test samples\n"
    return tmp_path


def test_pushed_samples_are_taken_from_their_index_with_their_pictures_and_their_task(begun: Path) -> None:
    file = rows(begun, "more.jsonl", range(5))
    told = push(file, "--to", str(begun / "in"), "--task", "colour", "--samples-per-shard", "3")
    assert told == "5 samples (5 colour): push-00000001.tar, push-00000002.tar\n"
    push("--to", str(begun / "in"), "--end")
    follower = Following(following(begun, begun / "in", "stream.follow.samples_per_chunk=2"), begun / "stream")
    index = follower.first()
    assert follower.ended and index.plan.counts.tolist() == [[2], [2], [1]]
    assert index.tasks["colour"].scorer == "vqa" and index.tasks["colour"].max_new_tokens == 3
    with ShardReader(index) as reader:
        found = reader.read(range(5))
    assert [one.question for one in found] == [f"Which {number}?" for number in range(5)]
    assert [one.pictures[0].data for one in found] == [picture(number) for number in range(5)]
    assert not list((begun / "in").glob(".push.*.*"))


def test_rows_pushed_again_and_shards_of_another_stream_are_set_aside(begun: Path) -> None:
    file, to = rows(begun, "more.jsonl", range(5)), begun / "in"
    push(file, "--to", str(to), "--task", "colour")
    push(rows(begun, "again.jsonl", range(4, 6)), "--to", str(to), "--task", "colour")
    other = begun / "other"
    push("--to", str(other), "--create", "--task", "colour", "--test", str(begun / "test.jsonl"))
    push(rows(begun, "strange.jsonl", range(50, 52)), "--to", str(other), "--task", "colour")
    for ending in ("", ".parquet"):
        (other / f"push-00000001.tar{ending}").rename(to / f"strange-9.tar{ending}")
    follower = Following(following(begun, to, "stream.follow.samples_per_chunk=5"), begun / "stream")
    assert len(follower.first()) == 5
    aside = {event["what"]: event["reason"] for event in follower.news}
    assert aside == {"push-00000002.tar": "duplicate", "strange-9.tar": "stream"}


def test_several_tasks_lie_in_one_file_that_names_them(begun: Path) -> None:
    line = {"id": "1", "task": "colour", "question": "Which?", "instruction": "", "answers": ["red"], "pictures": 0}
    other = {**line, "id": "2", "task": "shape"}
    (begun / "mixed.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")
    told = push(str(begun / "mixed.jsonl"), "--to", str(begun / "in"), "--format", "streamcvit")
    assert told == "2 samples (1 colour, 1 shape): push-00000001.tar\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["more.jsonl", "--to", "nowhere"], "there is no such stream folder"),
        (["--to", "in"], "there is nothing to push"),
        (["no.jsonl", "--to", "in", "--task", "colour"], "no.jsonl: "),
        (["more.jsonl", "--to", "in"], "names? .*task|nor its answer tells the row's task"),
        (["--to", "in", "--task", "colour", "--test", "test.jsonl"], "the task 'colour' is there already"),
        (["--to", "in", "--task", "new", "--test", "test.jsonl", "--scorer", "my.py:Mine"], "unknown scorer"),
        (["more.jsonl", "--to", "in", "--scorer", "vqa"], "is of one task"),
        (["bad.jsonl", "--to", "in", "--task", "colour"], "bad.jsonl: row 1"),
        (["bad.jsonl", "--to", "in", "--task", "new", "--test", "test.jsonl"], "bad.jsonl: row 1"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_and_nothing_is_there(
    begun: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    rows(begun, "more.jsonl", range(2))
    (begun / "bad.jsonl").write_text('{"text": "a", "answer": "b"}\n{"text": "", "image": "no.png"}\n')
    monkeypatch.chdir(begun)
    before = sorted(path.name for path in (begun / "in").iterdir() if path.name != ".push.lock")
    with pytest.raises(UserError, match=said):
        push(*words)
    assert sorted(path.name for path in (begun / "in").iterdir() if path.name != ".push.lock") == before


def test_nothing_is_pushed_behind_the_end(begun: Path) -> None:
    push("--to", str(begun / "in"), "--end")
    with pytest.raises(UserError, match="this stream has ended"):
        push(rows(begun, "more.jsonl", range(2)), "--to", str(begun / "in"), "--task", "colour")
