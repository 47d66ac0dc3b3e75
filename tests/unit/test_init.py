"""`streamcvit init`: from a folder of data to a pipeline that runs, and what it says of the folder."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rowmaking import llava, qa, swift, write
from streams import TASKS, picture, stream_samples
from streams import test_sets as tested
from typer.testing import CliRunner

from streamcvit.cli import app
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError
from streamcvit.pipeline import load_config
from streamcvit.run.stream import prepare_stream
from streamcvit.start import begin
from streamcvit.start.words import said

COLOURS = ("red", "green", "blue", "grey")


def pictures(folder: Path, count: int = 30) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))


def rows(count: int = 30, **changes) -> list[dict]:
    """LLaVA rows, each of its own picture."""
    return [
        llava(number, answer=COLOURS[number % 4], **{"image": f"{number}.png", **changes}) for number in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    """Thirty pictures and nothing else."""
    data = tmp_path / "data"
    pictures(data)
    return data


def prepared(start, tmp_path):
    """The written pipeline's config, and its stream."""
    config = load_config(start.pipeline)
    return config, prepare_stream(config, tmp_path / "stream")


def test_training_and_test_files_are_told_by_their_names_and_nothing_is_copied(folder, tmp_path):
    write(folder, "train.json", rows())
    write(folder, "test.json", [qa(number, image=f"{number}.png") for number in range(5)])
    start = begin(folder)
    config, index = prepared(start, tmp_path)
    assert start.written == [folder / "pipeline.yaml"] == [start.pipeline]
    (task,) = config.stream.tasks.values()
    assert (task.train, task.format, task.test, task.test_format) == ("train.json", "llava", "test.json", "qa")
    assert (len(index), len(index.eval_index())) == (30, 5)


@pytest.mark.parametrize(
    ("train", "test", "task"),
    [
        ("vqa/train.json", "vqa/test.json", "vqa"),
        ("train/vqa.json", "val/vqa.json", "vqa"),
        ("vqa_train.json", "vqa_eval.json", "vqa"),
        ("vqa-v2.json", "vqa-v2_questions.json", "vqa-v2"),
    ],
)
def test_task_and_part_are_told_by_file_or_folder(folder, train, test, task):
    for name, made in ((train, rows()), (test, [qa(number) for number in range(5)])):
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder, name, made)
    found = load_config(begin(folder).pipeline).stream.tasks
    got = {name.replace("_", "-") for name in found}
    assert got == {task}
    assert [(one.train, one.test) for one in found.values()] == [(train, test)]


def test_a_test_set_is_drawn_by_the_seed_apart_from_the_training_set_by_pictures(folder, tmp_path):
    twice = [{**row, "id": f"{row['id']}-{time}"} for row in rows() for time in range(2)]
    for row in twice:
        row["conversations"][0] = {
            **row["conversations"][0],
            "value": f"<image>\nRow {row['id']}?\nAnswer in one word.",
        }
    path = write(folder, "rows.json", twice)
    before = path.read_bytes()
    start = begin(folder, test_share=0.2)
    assert path.read_bytes() == before
    config, index = prepared(start, tmp_path)
    assert (len(index), len(index.eval_index())) == (48, 12)
    drawn = {json.loads(line)["image"] for line in (folder / "pipeline-rows/rows-test.jsonl").open()}
    learned = {json.loads(line)["image"] for line in (folder / "pipeline-rows/rows-train.jsonl").open()}
    assert len(drawn) == 6 and not drawn & learned
    text = start.pipeline.read_text()
    again = begin(folder, test_share=0.2, force=True)
    assert again.pipeline.read_text() == text
    assert {json.loads(line)["image"] for line in (folder / "pipeline-rows/rows-test.jsonl").open()} == drawn
    begin(folder, test_share=0.2, seed=1, force=True)
    assert {json.loads(line)["image"] for line in (folder / "pipeline-rows/rows-test.jsonl").open()} != drawn


def test_rows_that_share_a_few_pictures_are_parted_by_row_and_that_is_said(folder):
    write(folder, "rows.json", [llava(number, f"Row {number}? Say it.") for number in range(40)])
    start = begin(folder)
    assert any("so few pictures" in line for line in start.odd)
    assert start.table[1][1:3] == ("36", "4 (drawn)")


@pytest.mark.parametrize(
    ("answers", "scorer", "follow"),
    [
        (["A", "B", "C"], "choice", "letter"),
        (["yes", "No"], "exact", "yes_no"),
        (["1", "2", "12"], "exact", "number"),
        (["1.5", "200", "3%"], "number", "number"),
        (["1.5", "200", "red"], "number", "single_word"),
        (["[0.1, 0.2, 0.5, 0.6]", "[0.0, 0.2, 0.15, 0.65]"], "grounding", "box"),
        (["red", "green"], "classification", "single_word"),
        (["A dog runs over a wide field.", "Two cats sleep on a mat."], "cider", "sentence"),
    ],
)
def test_scorer_and_form_follow_from_the_answers(folder, answers, scorer, follow):
    made = [llava(number, answer=answers[number % len(answers)], image=f"{number}.png") for number in range(30)]
    write(folder, "rows.jsonl", made)
    (task,) = load_config(begin(folder).pipeline).stream.tasks.values()
    assert (task.scorer, task.follow) == (scorer, follow)
    assert task.max_new_tokens >= 16


def test_boxes_in_pixels_without_a_size_are_not_scored_as_boxes_and_that_is_said(folder, tmp_path):
    write(folder, "rows.json", [llava(n, answer=f"[{n}, 20, 50, 60]", image=f"{n}.png") for n in range(30)])
    start = begin(folder)
    (task,) = prepared(start, tmp_path)[0].stream.tasks.values()
    assert task.scorer == "exact"
    assert any("look like boxes" in line for line in start.odd)


def test_wordings_that_end_the_prompts_become_instructions_and_options_do_not(folder):
    wordings = ["Answer the question in one word.", "Use a single word to answer."]
    prompts = [f"<image>\nWhat is number {n}?\n{wordings[n % 2]}" for n in range(30)]
    write(folder, "worded.json", [llava(n, prompts[n], image=f"{n}.png") for n in range(30)])
    options = [f"<image>\nWhich is number {n}?\nA. a small cat\nB. a large dog" for n in range(30)]
    write(folder, "options.json", [llava(n, options[n], "AB"[n % 2], id=f"o{n}", image=f"{n}.png") for n in range(30)])
    tasks = load_config(begin(folder).pipeline).stream.tasks
    assert sorted(tasks["worded"].instructions) == sorted(wordings)
    assert tasks["options"].instructions == []


def test_the_image_root_is_found(folder, tmp_path):
    pictures(folder / "media" / "coco")
    write(folder, "rows.json", [{**row, "image": f"coco/{row['image']}"} for row in rows()])
    config, index = prepared(begin(folder), tmp_path)
    assert [task.images for task in config.stream.tasks.values()] == ["media"]
    assert len(index) + len(index.eval_index()) == 30


def test_a_table_of_pictures_and_labels_becomes_rows(folder, tmp_path):
    lines = ["file_name,label", *(f"{number}.png,{COLOURS[number % 4]}" for number in range(30))]
    (folder / "labels.csv").write_text("\n".join(lines))
    start = begin(folder)
    config, index = prepared(start, tmp_path)
    (task,) = config.stream.tasks.values()
    assert (task.format, task.scorer) == ("qa", "classification")
    assert (len(index), len(index.eval_index())) == (27, 3)
    assert any("'file_name'" in line and "'label'" in line for line in start.odd)


def test_a_csv_of_questions_is_read_as_it_is(folder, tmp_path):
    for name, count in (("train.csv", 20), ("test.csv", 5)):
        lines = [f'{n}.png,"What, then, is {n}?",red' for n in range(count)]
        (folder / name).write_text("\n".join(["image,question,answer", *lines]))
    start = begin(folder)
    _, index = prepared(start, tmp_path)
    assert (len(index), len(index.eval_index()), len(start.written)) == (20, 5, 1)


def test_parquet_parts_with_pictures_in_them_are_one_task(tmp_path):
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    for part, numbers in (("train-00000-of-00002", range(12)), ("train-00001-of-00002", range(12, 20))):
        made = [
            {"image": {"bytes": picture(n), "path": None}, "question": f"What is {n}?", "answer": "red"}
            for n in numbers
        ]
        pq.write_table(pa.Table.from_pylist(made), data / f"{part}.parquet")
    start = begin(tmp_path / "hub")
    config, index = prepared(start, tmp_path)
    assert (len(index), len(index.eval_index())) == (18, 2)
    assert start.table[1][3] == "1"
    (task,) = config.stream.tasks.values()
    assert task.train.endswith("-train.jsonl")


def test_a_folder_that_datasets_saved_is_one_task_with_its_splits(tmp_path):
    for part, count in (("train", 12), ("test", 4)):
        inner = tmp_path / "saved" / part
        inner.mkdir(parents=True)
        made = [{"image": {"bytes": picture(n)}, "question": f"What is {n}?", "answer": "red"} for n in range(count)]
        table = pa.Table.from_pylist(made)
        with (
            pa.OSFile(str(inner / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
        (inner / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        (inner / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    start = begin(tmp_path / "saved")
    config, index = prepared(start, tmp_path)
    assert {name: (task.train, task.test) for name, task in config.stream.tasks.items()} == {"saved": ("train", "test")}
    assert (len(index), len(index.eval_index()), start.unused) == (12, 4, [])


def test_swift_rows_with_a_split_of_their_own_stay_where_they_are(folder, tmp_path):
    write(folder, "train.jsonl", [swift(n, f"<image>What is {n}?", images=[f"{n}.png"]) for n in range(20)])
    write(folder, "val.jsonl", [swift(n, f"<image>What is {n}?", images=[f"{n}.png"]) for n in range(20, 25)])
    config, index = prepared(begin(folder), tmp_path)
    assert (len(index), len(index.eval_index())) == (20, 5)
    assert {(task.format, task.test_format) for task in config.stream.tasks.values()} == {("swift", "swift")}


def test_folders_by_class_become_rows_with_an_instruction_that_names_them(tmp_path):
    for part, count in (("train", 12), ("test", 4)):
        for label in ("cat", "dog"):
            pictures(tmp_path / "pets" / part / label, count)
    start = begin(tmp_path / "pets")
    config, index = prepared(start, tmp_path)
    (task,) = config.stream.tasks.values()
    assert (task.instructions, task.wording) == (["Answer with one of: cat, dog."], "single")
    assert (task.scorer, len(index), len(index.eval_index())) == ("classification", 24, 8)


def write_tar(path, files):
    """A tar of files by name."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_tars_become_rows_with_their_pictures(tmp_path):
    data = tmp_path / "tars"
    data.mkdir()
    for shard in range(2):
        files = {}
        for n in range(10 * shard, 10 * shard + 10):
            files[f"{n:03d}.json"] = json.dumps({"text": f"What is {n}?", "answer": "red"}).encode()
            files[f"{n:03d}.png"] = picture(n)
        write_tar(data / f"{shard:05d}.tar", files)
    start = begin(data)
    _, index = prepared(start, tmp_path)
    assert (len(index), len(index.eval_index()), start.table[1][3]) == (18, 2, "1")


@pytest.mark.parametrize(("ending", "label"), [("cls", b"3"), ("txt", b"a red circle on grass")])
def test_tars_of_labelled_pictures_become_rows(tmp_path, ending, label):
    data = tmp_path / "tars"
    data.mkdir()
    write_tar(
        data / "all.tar",
        {f"{n:03d}.{end}": held for n in range(10) for end, held in ((ending, label), ("png", picture(n)))},
    )
    start = begin(data)
    _, index = prepared(start, tmp_path)
    assert (len(index), len(index.eval_index())) == (9, 1)
    (row,) = map(json.loads, (data / "pipeline-rows/all-test.jsonl").open())
    assert (row["answer"], row["text"]) == (
        label.decode(),
        "What is in the picture?" if ending == "cls" else "Describe the picture.",
    )


def test_a_stream_of_our_own_is_used_as_it_is(tmp_path):
    index = write_stream(tmp_path / "made", stream_samples(), TASKS, tested(), 0)
    start = begin(tmp_path / "made", tmp_path / "mine.yaml")
    config, adopted = prepared(start, tmp_path)
    assert config.stream.source == "shards" and adopted.digest == index.digest
    assert [row[:3] for row in start.table[1:]] == [("colour", "30", "3"), ("shape", "10", "3")]


def test_a_folder_of_other_things_is_not_written_over_even_if_forced(folder):
    write(folder, "rows.json", rows())
    (folder / "pipeline-rows").mkdir()
    (folder / "pipeline-rows" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="pipeline-rows: is there already"):
        begin(folder, force=True)
    assert (folder / "pipeline-rows" / "mine.txt").read_text() == "x"


def test_links_are_followed_once_and_names_no_pipeline_can_hold_are_said(tmp_path):
    data, media = tmp_path / "data", tmp_path / "media"
    data.mkdir()
    pictures(media)
    (data / "linked").symlink_to(media, target_is_directory=True)
    (media / "back").symlink_to(data, target_is_directory=True)
    (data / "a\nb.json").write_text("[]")
    os.mkfifo(data / "pipe.json")
    write(data, "rows.json", rows())
    start = begin(data)
    config, index = prepared(start, tmp_path)
    assert [task.images for task in config.stream.tasks.values()] == ["linked"]
    assert len(index) + len(index.eval_index()) == 30
    assert {"'a\\nb.json'", "pipe.json"} == {name for name, _ in start.unused}


def test_what_is_odd_is_said(folder):
    made = rows()
    made[0]["image"] = "gone.png"
    made[1]["conversations"] = made[1]["conversations"][:1]
    made[3]["id"] = made[2]["id"]
    write(folder, "train.json", made)
    write(
        folder, "test.json", [{"question_id": 1, "image": "2.png", "text": "What is it?\nOne word.", "answer": "blue"}]
    )
    write(folder, "train.jsonl", rows(10))
    write(folder, "notes.json", [{"a": 1}])
    (folder / "cut.png").write_bytes(picture(3)[:-30])
    start = begin(folder)
    odd, unused = "\n".join(start.odd), dict(start.unused)
    assert "2 of 30 rows cannot be read: 1 missing, 1 turns" in odd
    assert "row 0: the picture 'gone.png' cannot be opened" in odd
    assert "rows with the id of an earlier one, which get `#2` ... behind it: 1" in odd
    assert "1 of 1 test samples are in the training set too" in odd
    assert unused["train.jsonl"].startswith("train.json is the training file")
    assert "keys: a" in unused["notes.json"]


def test_the_same_rows_in_other_words_are_no_second_task(folder):
    write(folder, "train.json", rows())
    write(folder, "test.json", [qa(number) for number in range(5)])
    five = rows()
    for row in five:
        row["conversations"][0] = {**row["conversations"][0], "value": "<image>\nWhat is it?\nIn a word."}
    write(folder, "train_5type.json", five)
    start = begin(folder)
    assert list(load_config(start.pipeline).stream.tasks) == ["data"]
    assert any("again" in why for _, why in start.unused)


def test_nothing_is_written_over_unless_forced_and_own_rows_are_no_data(folder):
    write(folder, "rows.json", rows())
    begin(folder)
    with pytest.raises(UserError, match=r"pipeline\.yaml: is there already.*--force"):
        begin(folder)
    text = (folder / "pipeline.yaml").read_text()
    assert begin(folder, force=True).pipeline.read_text() == text


@pytest.mark.parametrize("kind", ["empty", "absent", "file", "useless", "no-target"])
def test_mistakes_are_one_line_and_leave_nothing_behind(tmp_path, kind):
    data, to = tmp_path / "data", tmp_path / "out" / "mine.yaml"
    to.parent.mkdir()
    if kind == "file":
        data.write_text("x")
    elif kind != "absent":
        data.mkdir()
    if kind in ("useless", "no-target"):
        write(data, "notes.json", [{"a": 1}] * 3 if kind == "useless" else [qa(n, image=None) for n in range(9)])
    if kind == "no-target":
        to = tmp_path / "nowhere" / "mine.yaml"
    with pytest.raises(UserError) as fault:
        begin(data, to)
    wanted = {"empty": "Looked for", "absent": "no such folder", "file": "not a folder", "useless": "notes.json"}
    assert wanted.get(kind, "no such folder") in str(fault.value)
    assert not any((tmp_path / "out").iterdir())


def test_the_command_says_what_it_found_and_the_pipeline_runs(folder, tmp_path, monkeypatch):
    write(folder, "rows.json", rows(12))
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    done = runner.invoke(app, ["init", "data", "--to", "mine.yaml"])
    assert done.exit_code == 0, done.output
    assert "streamcvit run mine.yaml" in done.output and "mine-rows/rows-test.jsonl" in done.output
    done = runner.invoke(app, ["run", "mine.yaml", "--method", "lora", "--local", "--set", "evaluation.draws=10"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "data" / "report.html").is_file()


def test_the_real_benchmark_gives_five_tasks(shared_dir, tmp_path):
    start = begin(shared_dir / "real", tmp_path / "real.yaml")
    tasks = load_config(start.pipeline).stream.tasks
    assert {name: task.scorer for name, task in tasks.items()} == {
        "bccd_ground": "grounding",
        "clothing_cls": "classification",
        "nlvr_count": "exact",
        "nlvr_truth": "classification",
        "tabmwp_qa": "number",
    }
    assert all(len(task.instructions) == 1 for task in tasks.values())
    assert not start.odd and start.written == [start.pipeline]
    assert any("again" in line for line in said(start))
