"""`streamcvit index`: tasks, patterns and what is said, as a person gives them on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streams import pair, picture, raw_tar, sample
from typer.testing import CliRunner
from webserver import serving

from streamcvit import cli, indexing
from streamcvit.data.sample import Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import UserError


def streamcvit(*words: object) -> str:
    """What the command prints, in this process; its mistakes are raised."""
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 1), done.output
    return done.output


@pytest.fixture(autouse=True)
def printed(monkeypatch):
    """The command's own console keeps the stream it had when it was imported."""
    monkeypatch.setattr(cli, "out", type("Out", (), {"print": staticmethod(lambda *text, **_: print(*text))}))


@pytest.fixture
def shards(tmp_path):
    return [
        raw_tar(tmp_path / f"train-{n:02d}.tar", [m for k in range(30) for m in pair(f"{k}", 30 * n + k)])
        for n in range(3)
    ]


def test_one_task_is_named_by_flags_and_the_stream_is_said(tmp_path, shards):
    said = streamcvit(
        "index", tmp_path / "train-{00..02}.tar", "--to", tmp_path / "i", "--task", "colour", "--scorer", "vqa",
        "--follow", "single_word", "--set", "max_new_tokens=7", "--test-samples", 5, "--samples-per-chunk", 20,
    )  # fmt: skip
    index = StreamIndex.open(tmp_path / "i")
    assert f"85 samples in 5 chunks, 3 shards, 5 test samples of 1 tasks\nindex {index.digest}" in said
    (task,) = index.tasks.values()
    assert (task.name, task.scorer, task.follow, task.max_new_tokens) == ("colour", "vqa", "single_word", 7)
    assert len(ShardReader(index.eval_index()).read(range(5))) == 5
    assert "all well" in streamcvit("verify", tmp_path / "i")
    again = streamcvit("index", tmp_path / "train-*.tar", "--to", tmp_path / "i", "--task", "colour", "--scorer", "vqa",
                       "--set", "max_new_tokens=7", "--test-samples", 5, "--samples-per-chunk", 20)  # fmt: skip
    assert index.digest in again
    with pytest.raises(UserError, match="another stream is indexed here. Choose another folder"):
        streamcvit("index", shards[0], "--to", tmp_path / "i", "--task", "colour")
    assert StreamIndex.open(tmp_path / "i").digest == index.digest


def test_losses_and_missing_test_sets_are_said(tmp_path, shards):
    members = [m for k in range(100) for m in pair(f"{k}", k)]
    bad = [("w.json", sample(200).text_bytes()), ("w.png", picture(1)[:-30])]
    lost = [("x.png", picture(1)), ("y.npy", b"1"), ("z.json", b"{}"), ("._z.json", b"")]
    shard = raw_tar(tmp_path / "x.tar", [*members, *bad, *lost])
    for said in (
        streamcvit("index", shard, "--to", tmp_path / "i", "--task", "colour"),
        streamcvit("verify", tmp_path / "i"),
    ):
        assert "3 lost when the shards were indexed: no samples, or members of none; the first:\n  x.tar: byte" in said
        assert "key 'x' has no json" in said and "member 'y.npy' is none of" in said and "key 'z': key 'id'" in said
        assert "1 members passed over that no sample needs; the first:\n  x.tar: byte" in said
    said = streamcvit("index", shard, "--to", tmp_path / "i", "--task", "colour")
    assert (
        "1 samples have pictures that cannot be used; the first:\n  colour-200: the picture cannot be decoded" in said
    )
    assert "no test sets, which a run needs" in said


def test_several_tasks_come_from_a_file_each_with_its_shards_and_readings(tmp_path):
    for name in ("pets", "cars"):
        members = [(f"{k}.jpg", picture(k)) if j else (f"{k}.cls", b"%d" % (k % 2)) for k in range(4) for j in (0, 1)]
        for part in ("train", "test"):
            raw_tar(tmp_path / f"{name}-{part}.tar", members)
    (tmp_path / "pets.txt").write_text("cat\ndog\n")
    (tmp_path / "tasks.yaml").write_text(
        'pets: {shards: [pets-tr*.tar], test_shards: [pets-test.tar], question: "Which animal?", classes: pets.txt}\n'
        'cars: {shards: [cars-train.tar], test_shards: [cars-test.tar], question: "Which car?", classes: [vw, bmw]}\n'
    )
    said = streamcvit("index", "--to", tmp_path / "i", "--tasks", tmp_path / "tasks.yaml", "--format", "cls")
    assert "8 samples in 2 chunks, 2 shards, 8 test samples of 2 tasks" in said
    index = StreamIndex.open(tmp_path / "i")
    read = [one for one in ShardReader(index).read([0, 1, 4, 5]) if isinstance(one, Sample)]
    asked = [(one.task, one.question, one.answer) for one in read]
    assert asked == [
        ("pets", "Which animal?", "cat"), ("pets", "Which animal?", "dog"),
        ("cars", "Which car?", "vw"), ("cars", "Which car?", "bmw"),
    ]  # fmt: skip
    assert index.plan.counts.tolist() == [[4, 0], [0, 4]]


def test_a_guessed_instruction_is_shown_with_examples(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat is it?\nOne word."}, {"from": "gpt", "value": "red"}]
    members = [(f"{k}.json", json.dumps({"conversations": turns}).encode()) for k in range(5)]
    members = [m for k, row in enumerate(members) for m in (row, (f"{k}.png", picture(k)))]
    shard = raw_tar(tmp_path / "x.tar", members)
    words = ["index", shard, "--to", tmp_path / "i", "--task", "colour", "--format", "llava", "--set"]
    said = streamcvit(*words, "guess_instruction=true")
    assert "taken for the instruction of colour, as in:\n" + "  'What is it?' | 'One word.'\n" * 3 in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no task is named. Name it with --task"),
        (["--scorer", "exact"], "scorer is set, but of no task"),
        (["--task", "a/b"], "'a/b' is no name of a task: it holds '/'"),
        (["--task", "c", "--scorer", "guess"], "task 'c': unknown scorer 'guess'. Choose one of"),
        (["--task", "c", "--set", "colour=red"], "tasks.c.colour: no such setting.*Allowed here: shards, "),
        (["--task", "c", "--tasks", "none.yaml"], "none.yaml: there is no such file"),
        (["--task", "c", "--format", "cls"], "say what is asked"),
        (["--task", "c", "--classes", "none.txt", "--format", "cls"], "none.txt: the class names cannot be read"),
        (["--task", "c", "--test-shards", "none-*.tar"], "none-.*.tar: no file fits"),
    ],
)
def test_what_is_not_said_right_is_one_line_with_its_mend(tmp_path, monkeypatch, shards, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        streamcvit("index", shards[0], "--to", "i", *words)
    assert not Path("i").exists()


def test_patterns_count_and_match_and_keep_their_order(tmp_path):
    for name in ("a-2.tar", "a-1.tar", "b[1].tar"):
        (tmp_path / name).touch()
    here = str(tmp_path)
    assert indexing.expand([f"{here}/a-*.tar"]) == [f"{here}/a-1.tar", f"{here}/a-2.tar"]
    assert indexing.expand(["a-{1..2}.tar", "b[1].tar"], tmp_path) == [
        f"{here}/{n}" for n in ("a-1.tar", "a-2.tar", "b[1].tar")
    ]
    urls = [f"https://host/{a}/s-{b:03d}.tar" for a in (1, 2) for b in (9, 10)]
    assert indexing.expand(["https://host/{1..2}/s-{009..010}.tar"]) == urls
    assert indexing.expand(["pipe:cat *"]) == ["pipe:cat *"]  # refused where it would be opened
    with pytest.raises(UserError, match="counts 999999999 files"):
        indexing.expand(["x-{0..999999999}"])


def test_a_stream_behind_a_url_is_verified_and_indexed(tmp_path, shards):
    streamcvit("index", *shards, "--to", tmp_path, "--task", "colour", "--test-samples", 5)
    with serving(tmp_path) as site:
        assert f"{site.url}: 6 shards, 90 samples" in streamcvit("verify", site.url)
        url = f"{site.url}/train-{{00..02}}.tar"
        streamcvit("index", url, "--to", tmp_path / "i", "--task", "colour", "--test-samples", 5)
    assert StreamIndex.open(tmp_path / "i").digest == StreamIndex.open(tmp_path).digest
