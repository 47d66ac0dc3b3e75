"""From a config to a stream: plans that fit or are refused, whole test sets, and nothing lost in silence."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from rowmaking import llava, qa, write
from streams import picture

from streamcvit.config import RunConfig
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.embedded import tasks as embedded
from streamcvit.errors import UserError
from streamcvit.run import stream as preparing
from streamcvit.run.losses import import_report, lost_list, stream_lines
from streamcvit.run.stream import plan_of, prepare_stream


@pytest.fixture
def folder(tmp_path):
    """Data of one task: 40 training rows and 30 test rows, and a picture that is cut off."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number, 32))
    (tmp_path / "cut.png").write_bytes(picture(1, 32)[:-200])
    write(tmp_path, "train.json", [llava(number) for number in range(40)])
    write(tmp_path, "test.json", [qa(number) for number in range(30)])
    return tmp_path


def config(data, scenario=None, task=None, **stream):
    """A run on the data's one task."""
    files = {"train": "train.json", "test": "test.json", **(task or {})}
    plan = {"preset": "generate", "chunks": 2, "tasks_per_chunk": 1, "recurrence_gap": 0, **(scenario or {})}
    return RunConfig.model_validate(
        {"stream": {"source": "files", "data": str(data), "tasks": {"colour": files}, "scenario": plan, **stream}}
    )


def own(**scenario):
    """A run on the embedded tasks."""
    return RunConfig.model_validate({"stream": {"scenario": scenario, "test_samples": 2}})


def test_test_sets_of_files_are_used_whole(folder):
    index = prepare_stream(config(folder), folder / "s")
    assert len(index.eval_index()) == 30
    assert stream_lines(folder / "s", index) == ["colour: 40 training samples; 30 test samples"]


def test_a_test_set_that_is_cut_is_drawn_by_the_seed_and_said(folder):
    cut = config(folder, test_samples=10)
    index = prepare_stream(cut, folder / "s")
    ids = [int(name) for name in index.eval_index().sample_id_of]
    assert len(ids) == 10 and ids == sorted(ids) and ids != list(range(10))
    again = prepare_stream(cut, folder / "again").eval_index()
    assert [int(name) for name in again.sample_id_of] == ids
    other = prepare_stream(cut.model_copy(update={"seed": 1}), folder / "other").eval_index()
    assert [int(name) for name in other.sample_id_of] != ids
    assert "colour: 10 of 30 test samples are used, a draw (stream.test_samples)" in stream_lines(folder / "s", index)
    report = import_report(folder / "s")
    assert (report.tasks["colour"].used, report.tasks["colour"].test.samples) == (10, 30)


def lose(folder, name, count, read):
    """The first rows of a file get the picture that is cut off."""
    rows = json.loads((folder / name).read_text())
    write(
        folder,
        name,
        [{**row, "image": "cut.png", read: f"lost {row[read]}"} if i < count else row for i, row in enumerate(rows)],
    )


def test_samples_whose_pictures_do_not_decode_stop_past_the_share_and_three_are_shown(folder):
    lose(folder, "train.json", 6, "id")
    with pytest.raises(UserError) as fault:
        prepare_stream(config(folder), folder / "s")
    said = str(fault.value)
    assert "6 of 40 samples of task 'colour' cannot be used: lost r" in said and said.count("cannot be decoded") == 3
    assert "at most 5% may be bad (stream.bad_share)" in said and "\n" not in said
    assert not list(folder.glob("*s"))


def test_bad_rows_and_bad_pictures_count_together(folder):
    rows = [llava(number) for number in range(94)]
    rows += [llava(number, image="cut.png") for number in range(94, 97)] + [
        llava(n, image="no.png") for n in range(97, 100)
    ]
    write(folder, "train.json", rows)
    with pytest.raises(UserError, match="3 of 97 samples .* cannot be used, beside 3 of 100 rows: r9"):
        prepare_stream(config(folder), folder / "s")
    write(folder, "train.json", rows[:97])  # 3 %
    prepare_stream(config(folder), folder / "s")


def test_test_samples_count_apart(folder):
    lose(folder, "test.json", 3, "text")
    with pytest.raises(UserError, match="3 of 30 test samples of task 'colour' cannot be used: "):
        prepare_stream(config(folder), folder / "s")


def test_what_is_lost_below_the_share_is_said_and_listed(folder):
    rows = json.loads((folder / "train.json").read_text())
    write(folder, "train.json", [*rows, llava(41, image="no.png")])
    lose(folder, "train.json", 6, "id")
    lose(folder, "test.json", 1, "text")
    index = prepare_stream(config(folder, bad_share=0.5), folder / "s")
    lines = stream_lines(folder / "s", index)
    assert any("1 row of" in line and "(1 missing); the first: row 40: " in line for line in lines)
    assert "6 samples and 1 test samples have pictures that cannot be used and are left out" in lines
    assert lines[-1] == f"all that cannot be used is listed in {lost_list(folder / 's')}"
    listed = [json.loads(line) for line in lost_list(folder / "s").read_text().splitlines()]
    assert Counter(one["what"] for one in listed) == {"row": 1, "sample": 6, "test sample": 1}
    assert {one["reason"] for one in listed} == {"missing", "image"}
    assert import_report(folder / "s").tasks["colour"].lost == [6, 1]
    # The same shards under another run: the index knows, whoever wrote them.
    with pytest.raises(UserError, match="6 of 40 samples of task 'colour' cannot be used"):
        prepare_stream(
            RunConfig.model_validate({"stream": {"source": "shards", "data": str(folder / "s")}}), folder / "t"
        )
    shards = RunConfig.model_validate({"stream": {"source": "shards", "data": str(folder / "s"), "bad_share": 0.5}})
    index = prepare_stream(shards, folder / "t")
    assert any("6 samples and 1 test samples have pictures" in line for line in stream_lines(folder / "t", index))
    assert len(lost_list(folder / "t").read_text().splitlines()) == 7


def test_a_stream_made_anew_without_losses_is_listed_no_more(folder):
    rows = [llava(number) for number in range(60)] + [llava(60, image="no.png")]
    write(folder, "train.json", rows)
    prepare_stream(config(folder), folder / "s")
    assert lost_list(folder / "s").exists()
    write(folder, "train.json", rows[:60])
    prepare_stream(config(folder), folder / "s")
    assert not lost_list(folder / "s").exists()


def test_conversations_of_files_come_back_from_their_shards_as_they_were(folder):
    turns = [*llava(2)["conversations"], *llava(2, "Sure?\nOne word.")["conversations"]]
    rows = [
        llava(0, "<image> or <image>?", image=["0.png", "1.png"]),
        llava(1, "Who?", image=None),
        {**llava(2), "conversations": [{"from": "system", "value": "Be brief."}, *turns]},
    ]
    write(folder, "train.json", rows)
    asked = config(folder, {"chunks": 1}, {"instructions": ["One word."]})
    found = {one.sample_id: one for one in ShardReader(prepare_stream(asked, folder / "s")).read(range(3))}
    assert [len(found[name].pictures) for name in ("r0", "r1", "r2")] == [2, 0, 1]
    assert found["r2"].system == "Be brief." and len(found["r2"].turns) == 1
    assert found["r2"].instruction == "One word." and found["r1"].prompts == ("Who?",)


# -- plans -------------------------------------------------------------------------------------------------------------


def test_one_task_a_chunk_works_on_the_embedded_tasks(tmp_path):
    asked = own(preset="task-incremental", samples_per_chunk=4)
    assert np.array_equal(plan_of(asked).counts, np.diag([4] * 11))
    index = prepare_stream(asked, tmp_path / "s")
    assert (len(index), index.n_chunks) == (44, 11)
    assert plan_of(own(preset="task-incremental")).counts.max() == 480


def test_a_generated_plan_works_on_the_embedded_tasks(tmp_path):
    asked = own(preset="generate", chunks=3, samples_per_chunk=9)
    plan = plan_of(asked)
    assert plan.counts.sum(axis=1).tolist() == [9, 9, 9]
    assert prepare_stream(asked, tmp_path / "s").plan == plan


@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        (
            {"preset": "strcvit-25"},
            "of other tasks: there are no samples of ad\\+gqa\\+rs\\+vqav2, chartqa, .*task-incremental",
        ),
        ({"preset": "task-incremental", "chunks": 4}, "4 chunks are asked for; .* has one chunk a task, that is 11"),
        ({"preset": "nonsense"}, "unknown plan 'nonsense'"),
        ({"preset": "embedded", "chunks": 99}, "1 to 15 chunks"),
    ],
)
def test_plans_that_the_embedded_tasks_cannot_follow_are_refused_in_one_line(tmp_path, scenario, says):
    for attempt in (plan_of, lambda asked: prepare_stream(asked, tmp_path / "s")):
        with pytest.raises(UserError, match=says) as fault:
            attempt(own(**scenario))
        assert "\n" not in str(fault.value)
    assert list(tmp_path.iterdir()) == []


def test_published_plans_fit_tasks_of_their_names_or_are_refused(folder):
    write(folder, "train.json", [llava(number, f"What {number}?") for number in range(120)])
    names = ["ad", "gqa", "chartqa", "fin", "grounding", "imagenet", "places365", "textcaps"]
    files = {"train": "train.json", "test": "test.json"}
    tasks = dict.fromkeys(names, files)
    asked = config(folder, {"preset": "strcvit-25", "chunks": None}, tasks=tasks)
    plan = plan_of(asked)
    assert len(plan) == 25 and set(plan.tasks) == set(names)
    with pytest.raises(UserError, match="20 chunks are asked for; the plan 'strcvit-25' has its own 25"):
        plan_of(config(folder, {"preset": "strcvit-25", "chunks": 20}, tasks=tasks))
    with pytest.raises(UserError, match="gives no chunk to more"):
        plan_of(config(folder, {"preset": "strcvit-25", "chunks": None}, tasks={**tasks, "more": files}))
    write(folder, "train.json", [llava(0)])
    with pytest.raises(UserError, match="shrinks to nothing"):
        plan_of(asked)


def test_tasks_that_are_only_tested_get_no_chunk(folder):
    files = {"train": "train.json", "test": "test.json"}
    asked = config(
        folder,
        {"preset": "task-incremental", "chunks": None},
        tasks={"a": files, "b": {**files, "train": ""}, "c": files},
    )
    assert plan_of(asked).totals == {"a": 40, "c": 40}
    index = prepare_stream(asked, folder / "s")
    assert (index.n_chunks, sorted(set(index.eval_index().task_of))) == (2, ["a", "b", "c"])
    with pytest.raises(UserError, match="no task has training samples"):
        plan_of(config(folder, tasks={"b": {**files, "train": ""}}))


def test_a_plan_is_shown_without_setting_any_picture_aside(folder, monkeypatch):
    monkeypatch.setattr(preparing, "Spool", None)
    assert plan_of(config(folder)).counts.sum() == 40


def test_samples_are_drawn_as_they_are_written_and_a_long_writing_says_how_far_it_is(tmp_path, monkeypatch):
    drawn = iter(embedded.stream(np.full((1, 11), 10**5)))
    assert [next(drawn)[0] for _ in range(3)] == [0, 0, 0]  # not after 100,000 of each task
    monkeypatch.setattr(preparing, "_SAY_EVERY", 0.0)
    said = []
    prepare_stream(own(preset="generate", chunks=1, samples_per_chunk=9), tmp_path / "s", said.append)
    assert said[0].startswith("writing the stream: 1 of 9 samples, about ") and len(said) == 9
    assert len(StreamIndex.open(tmp_path / "s")) == 9
