"""Tasks made of files: ids, pictures, what is left out and why, and what an import says of it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import pytest
from rowmaking import llava, qa, swift, talk, write
from streams import only, picture

from streamcvit.data.files.mixed import load_mixed
from streamcvit.data.files.report import ImportReport
from streamcvit.data.files.spool import Spool
from streamcvit.data.files.tasks import Row, TaskFiles, load_tasks, read_rows, report_of
from streamcvit.data.sample import Quarantined, Turn
from streamcvit.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for number, (ext, format) in enumerate([("png", "PNG"), ("png", "JPEG"), ("png", "WEBP")]):
        (tmp_path / f"{number}.{ext}").write_bytes(picture(number, format=format))
    (tmp_path / "no.picture").write_bytes(b"%PDF-1.4" + bytes(20))
    return tmp_path


def files(**changes):
    return TaskFiles(**{"train": "train.json", "test": "test.json", "scorer": "exact", "follow": "any", **changes})


def load(folder, rows, **changes):
    """One task of these training rows."""
    write(folder, "train.json", rows)
    write(folder, "test.json", [qa(1)])
    return load_tasks(folder, {"colour": files(**changes)})["colour"]


def test_rows_of_a_file_are_good_or_quarantined_with_file_and_row(folder):
    rows = [llava(0), llava(1, image="no.png"), llava(2, image="no.picture"), llava(3), llava(4, image=None)]
    path = write(folder, "train.json", rows)
    found = list(read_rows(path, "llava", "colour", folder))
    assert [type(row) for row in found] == [Row, Quarantined, Quarantined, Row, Quarantined]
    assert [(row.reason, row.sample_id) for row in only(Quarantined, found)] == [
        ("missing", "r1"),
        ("image", "r2"),
        ("pictures", "r4"),
    ]
    assert f"{path}: row 1: " in only(Quarantined, found)[0].detail
    assert "the texts mark the places of 1 pictures, the row names none" in only(Quarantined, found)[2].detail


def test_pictures_keep_their_bytes_and_are_called_what_they_are(folder):
    path = write(folder, "train.json", [llava(number) for number in range(3)])
    samples = [row.load() for row in only(Row, read_rows(path, "llava", "colour", folder))]
    assert [one.pictures[0].ext for one in samples] == ["png", "jpg", "webp"]
    assert [one.pictures[0].data for one in samples] == [(folder / f"{number}.png").read_bytes() for number in range(3)]


def test_several_pictures_and_those_in_the_row_come_in_their_order(folder):
    inside = picture(7)
    row = talk("<image> or <image>?", "red", image=["1.png", {"bytes": base64.b64encode(inside).decode()}])
    one = load(folder, [row]).train[0]
    assert [(one.data, one.ext) for one in one.pictures] == [((folder / "1.png").read_bytes(), "jpg"), (inside, "png")]


def test_paths_written_on_windows_find_their_pictures_and_a_file_called_so_comes_first(folder):
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(picture(1))
    row = llava(0, image="images\\a.png")
    assert load(folder, [row]).train[0].pictures[0].data == picture(1)
    (folder / "images\\a.png").write_bytes(picture(2))
    assert load(folder, [row]).train[0].pictures[0].data == picture(2)


def test_ids_that_come_again_are_numbered_and_equal_rows_quarantined(folder):
    rows = [llava(0), llava(0, answer="blue"), llava(0), llava(0, answer="green"), swift(0)]
    path = write(folder, "train.json", rows[:4])
    found = list(read_rows(path, "llava", "colour", folder))
    assert [row.sample_id for row in found if isinstance(row, Row)] == ["r0", "r0#2", "r0#3"]
    assert [row.reason for row in only(Quarantined, found)] == ["duplicate"]
    path = write(folder, "s.json", [swift(0), swift(1)])
    assert [row.sample_id for row in read_rows(path, "swift", "colour", folder)] == [
        "colour/s/000000",
        "colour/s/000001",
    ]


def test_a_number_or_task_that_an_id_gets_never_makes_it_another_rows_id(folder):
    rows = [llava(0), llava(0, answer="blue"), {**llava(1), "id": "r0#2"}, {**llava(2), "id": "b/r0"}]
    write(folder, "train.json", rows)
    write(folder, "test.json", [qa(0)])
    found = load_tasks(folder, {"a": files(), "b": files()})
    ids = [row.sample_id for task in found.values() for row in task.train.rows]
    assert len(set(ids)) == len(ids) == 8
    assert ids[:4] == ["a/r0", "a/r0#2", "a/r0#2#2", "a/b/r0"]
    assert [one.sample_id for one in found["a"].train] == ids[:4]


def test_half_a_surrogate_pair_is_quarantined_before_it_stops_a_writer(folder):
    for place, row in enumerate([llava(0, answer="\ud83d"), llava(0, note=["\udc00"]), llava(0, answer="\U0001f600")]):
        (found,) = read_rows(write(folder, f"{place}.json", [row]), "llava", "colour", folder)
        assert getattr(found, "reason", "good") == ("json", "json", "good")[place]


def test_tasks_load_and_too_many_bad_rows_stop(folder):
    write(folder, "train.json", [llava(number) for number in range(40)] + [llava(99, image="no.png")])
    write(folder, "test.json", [qa(number) for number in range(4)])
    data = load_tasks(folder, {"colour": files()})["colour"]
    assert (len(data.train), len(data.test), len(data.quarantined)) == (40, 4, 1)
    assert data.train[3].question == "What is it?\nOne word."
    assert [one.sample_id for one in data.test[:2]] == ["0", "1"]
    with pytest.raises(UserError, match=r"train.json: 1 of 41 rows cannot be read \(1 missing\).*row 40.*`images`"):
        load_tasks(folder, {"colour": files()}, bad_share=0.02)


def test_the_first_three_bad_rows_are_shown_and_a_format_that_reads_them_is_named(folder):
    write(folder, "train.json", [qa(number) for number in range(9)])
    with pytest.raises(
        UserError, match="row 0: .*row 1: .*row 2: .*Format 'qa' reads such rows, 'llava' does not"
    ) as bad:
        load_tasks(folder, {"colour": files(test="train.json")})
    assert "row 3" not in str(bad.value) and "\n" not in str(bad.value)


def test_ids_that_tasks_share_get_the_task_in_front(folder):
    write(folder, "train.json", [llava(number) for number in range(3)])
    write(folder, "test.json", [qa(1)])
    data = load_tasks(folder, {"a": files(), "b": {**vars(files())}})
    assert [one.sample_id for one in data["b"].train] == ["b/r0", "b/r1", "b/r2"]
    assert data["a"].test[0].sample_id == "a/1"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test": ""}, "has no test set"),
        ({"test": "empty.json"}, "test set of task 'colour' is empty"),
        ({"test": "absent.json"}, "absent.json: cannot be read"),
        ({"test": "tests.json"}, r"No such file.*there is test.json"),
        ({"test": "deep/down/test.json"}, r"down/test.json: cannot be read: there is no .*/deep\."),
        ({"format": "coco"}, "unknown format 'coco'"),
        ({"wording": "single"}, "task 'colour'.*no instruction wordings"),
        ({"max_new_tokens": 0}, "max_new_tokens is not from 1"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(folder, changes, says):
    write(folder, "train.json", [llava(0)])
    write(folder, "test.json", [qa(1)])
    write(folder, "empty.json", [])
    with pytest.raises(UserError, match=says):
        load_tasks(folder, {"colour": files(**changes)})


def test_a_name_that_no_file_can_have_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="stream.tasks: 'a/b' is no name of a task.*Rename it"):
        load_tasks(tmp_path, {"a/b": files()})


def test_a_forgotten_data_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"train.json: there is no such file, and no data folder is named.*--data FOLDER"
    ):
        load_tasks("", {"colour": files()})
    with pytest.raises(UserError, match=r"nowhere: there is no such folder.*--data FOLDER"):
        load_tasks("nowhere", {"colour": files()})


def test_an_unknown_setting_of_a_task_is_named(folder):
    with pytest.raises(UserError, match="colour.*metric"):
        load_tasks(folder, {"colour": {"train": "a", "test": "b", "metric": "x"}})


def test_wordings_can_be_made_one_or_many_in_training_and_in_the_test_set(folder):
    wordings = ("One word.", "Say it briefly.", "A single word, please.")
    rows = [llava(number) for number in range(30)]
    single = load(folder, rows, instructions=[wordings[1], wordings[0]], wording="single")
    drawn = load(folder, rows, instructions=wordings, wording="drawn")
    assert {one.instruction for one in [*single.train, *single.test]} == {wordings[1]}
    assert {one.instruction for one in drawn.train} == set(wordings)
    assert {one.question for one in [*single.train, *drawn.train]} == {"What is it?"}
    assert load(folder, rows, instructions=["Else."], wording="single").train[0].prompt == (
        "What is it?\nOne word.\nElse."
    )


def test_turns_are_split_where_that_is_asked_for(folder):
    rows = [talk("<image>\nWhat?", "red", "Sure?", "yes", image="0.png"), llava(1)]
    whole = load(folder, rows, instructions=["Sure?"])
    assert [one.sample_id for one in whole.train] == ["r0", "r1"]
    parts = load(folder, rows, instructions=["Sure?"], split_turns=True)
    assert [one.sample_id for one in parts.train] == ["r0/0", "r0/1", "r1"]
    assert parts.train[1].turns == (Turn("What?", "red"),) and parts.train[1].instruction == "Sure?"
    assert len(parts.train[1].pictures) == 1


def test_an_import_says_what_it_found(folder):
    rows = [llava(number, f"<image>\nWhat {number}?\nOne word.") for number in range(40)]
    rows += [llava(40, "What?", image=None), llava(41, image="no.png")]
    data = load(folder, rows, guess_instruction=True)
    report = report_of({"colour": data})
    lines = report.lines()
    assert lines[0] == "colour: 41 training samples (1 without a picture); 1 test samples"
    assert any("1 row of" in line and "(1 missing); the first: row 41: " in line for line in lines)
    assert any("1 of 41 samples of" in line and "whole prompt is the question" in line for line in lines)
    guessed = [line for line in lines if "guessed instruction: 'One word.' after 'What " in line]
    assert len(guessed) == 4  # three of the training rows, one of the test set's
    assert ImportReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report_of({"colour": load(folder, [llava(1)])}).lines() == ["colour: 1 training samples; 1 test samples"]


def test_published_chunk_files_keep_their_order_and_find_their_tasks(folder):
    for name in ("vqa", "vqa/charts", "ads"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(picture(1))
    roots = [["vqa/0.png", "ads/0.png", "vqa/charts/0.png"], ["ads/0.png", "vqa/0.png"]]
    for number, paths in enumerate(roots):
        write(folder, f"data_{number:03d}.json", [swift(0, images=[f"<STRCVIT_IMAGE_ROOT>/{p}"]) for p in paths])
    tasks = {"vqa": "vqav2", "vqa/charts": "chartqa", "ads": "ad"}
    names = ["data_000.json", "data_001.json"]

    def read():
        return load_mixed(folder, names, list(tasks.values()), lambda row: tasks.get(row.pictures[0][:-6], ""))

    mixed = read()
    assert mixed.plan.tasks == ("vqav2", "chartqa", "ad")
    assert mixed.plan.counts.tolist() == [[1, 1, 1], [1, 0, 1]]
    chunks = mixed.plan.chunk_of.tolist()
    assert [(chunk, mixed.plan.tasks[label]) for chunk, label in zip(chunks, mixed.plan.labels, strict=True)] == [
        (0, "vqav2"),
        (0, "ad"),
        (0, "chartqa"),
        (1, "ad"),
        (1, "vqav2"),
    ]
    assert mixed.quarantined == []
    assert len({name for rows in mixed.rows.values() for name in rows.ids}) == 5
    assert all(sample.task == task for task, rows in mixed.rows.items() for sample in rows)
    del tasks["ads"]
    with pytest.raises(UserError, match="2 task"):
        read()


def test_a_spool_that_grows_past_its_memory_gives_back_what_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr("streamcvit.data.files.spool.IN_MEMORY", 100)
    spool = Spool(tmp_path)
    parts = [os.urandom(60) for _ in range(5)]
    places = [spool.put(part) for part in parts]
    assert [spool.get(place, 60) for place in places] == parts
    assert spool.get(places[0], 60) == parts[0] and spool.put(b"x") == 300
    assert list(tmp_path.iterdir()) == []  # its file has no name


IMPORT = """
import re, sys
from streamcvit.data.files.tasks import load_tasks

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

before = most()
files = {"train": sys.argv[2], "test": "test.json", "format": sys.argv[3]}
task = load_tasks(sys.argv[1], {"colour": files})["colour"]
assert len(task.train[0].pictures) == 1
print(len(task.train), most() - before)
"""


def test_long_files_are_imported_in_little_memory(folder):
    """50 MB of rows, and 60 MB of pictures in groups of ten: neither is ever held as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(folder / "train.jsonl", "w") as lines:
        for number in range(1000):
            lines.write(json.dumps(llava(number, f"<image>\n{'why ' * 12_500}?")) + "\n")
    pictures = [picture(1) + os.urandom(1 << 20) for _ in range(60)]
    names = list(map(str, range(60)))
    table = {"id": names, "image": pictures, "question": ["What?"] * 60, "answer": names}
    pq.write_table(pa.table(table), folder / "train.parquet", row_group_size=10)
    write(folder, "test.json", [qa(1)])
    for name, format, rows in (("train.jsonl", "llava", 1000), ("train.parquet", "qa", 60)):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT, str(folder), name, format],
            env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},  # as the command has it
            capture_output=True,
            text=True,
            check=True,
        )
        found, grown = map(int, done.stdout.split())
        assert found == rows
        assert grown < 110, f"{name}: {grown} MiB"  # the spool keeps 32 of them in memory


REAL = {
    "bccd_ground": (408, 113),
    "clothing_cls": (600, 145),
    "nlvr_count": (500, 120),
    "nlvr_truth": (600, 150),
    "tabmwp_qa": (500, 150),
}


@pytest.mark.parametrize("wordings", ["", "_5type"])
def test_the_small_real_benchmark_reads_completely(shared_dir, wordings):
    root = shared_dir / "real"
    listed = json.loads((root / "instructions.json").read_text())
    data = load_tasks(
        root,
        {
            task: TaskFiles(
                train=f"{task}/train{wordings}.json", test=f"{task}/test{wordings}.json", instructions=listed[task]
            )
            for task in REAL
        },
    )
    assert {task: (len(one.train), len(one.test)) for task, one in data.items()} == REAL
    assert sum(len(one.quarantined) for one in data.values()) == 0
    for task, one in data.items():
        rows = [row.sample for row in (*one.train.rows, *one.test.rows)]
        assert {row.instruction for row in rows} == set(listed[task][: 5 if wordings else 1])
        assert all(row.question and row.whole is None for row in rows)
        prompts = {
            row["id"]: row["conversations"][0]["value"]
            for row in json.loads((root / task / f"train{wordings}.json").read_text())
        }
        assert all(f"<image>\n{row.sample.prompt}" == prompts[row.sample_id] for row in one.train.rows)
