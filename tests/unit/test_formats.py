"""Rows of the field's formats, and task files made of them."""

from __future__ import annotations

import json

import pytest
from streams import only, picture, sample

from streamcvit.data.formats import FORMATS, BadRow, split_prompt
from streamcvit.data.sample import Quarantined
from streamcvit.data.taskfiles import Row, TaskFiles, load_chunks, load_tasks, read_rows
from streamcvit.errors import UserError


def llava(number, prompt="<image>\nWhat is it?\nOne word.", answer="red", **changes):
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": f"r{number}", "image": f"{number % 3}.png", "conversations": turns, **changes}


def qa(number, **changes):
    return {"question_id": number, "image": "0.png", "text": "What is it?\nOne word.", "answer": "red", **changes}


def swift(number, **changes):
    return {
        "messages": [
            {"role": "user", "content": "<image>What is it?\nOne word."},
            {"role": "assistant", "content": "red"},
        ],
        "images": [f"<STRCVIT_IMAGE_ROOT>/{number % 3}.png"],
        **changes,
    }


@pytest.fixture
def folder(tmp_path):
    for number, (ext, format) in enumerate([("png", "PNG"), ("png", "JPEG"), ("png", "WEBP")]):
        (tmp_path / f"{number}.{ext}").write_bytes(picture(number, format=format))
    (tmp_path / "anim.png").write_bytes(b"GIF89a" + bytes(20))
    return tmp_path


def write(folder, name, rows):
    path = folder / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("prompt", "known", "parts"),
    [
        ("What?\nOne word.", (), ("What?", "One word.")),
        ("Context.\n\nWhat?\nOne word.", (), ("Context.\n\nWhat?", "One word.")),
        ("What is it? One word.", (), ("What is it? One word.", "")),
        ("What is it? One word.", ("One word.",), ("What is it?", "One word.")),
        ("A\nB\nC", ("B\nC", "C"), ("A", "B\nC")),
        ("One word.\nWhat is it?", ("One word.",), ("What is it?", "One word.")),
        ("Describe it.", ("Describe it.",), ("", "Describe it.")),
        ("What?\nElse.", ("One word.",), ("What?", "Else.")),
    ],
)
def test_prompts_come_apart_by_the_stated_rule(prompt, known, parts):
    assert split_prompt(prompt, known) == parts


def test_each_format_gives_the_same_sample():
    for name, row in (("llava", llava(1)), ("swift", swift(1)), ("qa", qa(1))):
        record = FORMATS[name](row)
        assert record.parts() == ("What is it?", "One word.")
        assert record.answers == ("red",)
    canonical = FORMATS["streamcvit"](json.loads(sample(1).text_bytes()))
    assert canonical.parts() == (sample(1).question, sample(1).instruction)


def test_test_rows_keep_what_a_scorer_needs_and_text_ids():
    record = FORMATS["qa"](qa(77, answer=["red", 3, 0.5], answer_bbox="[0, 0, 1, 1]", size=[4, 4]))
    assert record.sample_id == "77"
    assert record.answers == ("red", "3", "0.5")
    assert record.meta == {"answer_bbox": "[0, 0, 1, 1]", "size": [4, 4]}


def test_swift_images_may_be_objects_and_system_turns_are_kept():
    row = swift(1, images=[{"path": "<STRCVIT_IMAGE_ROOT>/a/1.png"}])
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    record = FORMATS["swift"](row)
    assert (record.pictures, record.meta) == (("a/1.png",), {"system": "Be brief."})


BAD = [
    ("llava", "text", "expected an object"),
    ("llava", llava(1, conversations=None), "'conversations' is missing"),
    ("llava", llava(1, conversations=[{"from": "human", "value": "x"}] * 2), "one human and one gpt turn"),
    ("llava", llava(1, conversations=llava(1)["conversations"] * 2), "one human and one gpt turn"),
    ("llava", llava(1, answer=" "), "gpt turn is empty"),
    ("llava", llava(1, prompt="<image>\n"), "empty but for the picture"),
    ("llava", llava(1, id=["x"]), "'id' is neither"),
    ("llava", llava(1, image=3), "path is 3"),
    ("llava", llava(1, image="../up.png"), "out of the image root"),
    ("llava", llava(1, image="a/../../up.png"), "out of the image root"),
    ("llava", llava(1, image="/etc/passwd"), "out of the image root"),
    ("llava", llava(1, image="C:\\x.png"), "out of the image root"),
    ("llava", llava(1, image="http://host/x.png"), "out of the image root"),
    ("llava", llava(1, image="x\0.png"), "out of the image root"),
    ("swift", swift(1, images=[]), "one picture"),
    ("swift", swift(1, images=["a.png", "b.png"]), "one picture"),
    ("swift", swift(1, images=["<STRCVIT_IMAGE_ROOT>/../x.png"]), "out of the image root"),
    ("qa", qa(1, text=None), "'text' is missing"),
    ("qa", qa(1, answer=None), "neither text nor a number"),
    ("qa", qa(1, answer=[]), "empty list"),
    ("qa", qa(1, question_id=True), "'question_id'"),
]


@pytest.mark.parametrize(("format", "row", "says"), BAD)
def test_bad_rows_say_what_is_wrong(format, row, says):
    with pytest.raises(BadRow, match=says):
        FORMATS[format](row)


def test_rows_of_a_file_are_good_or_quarantined_with_file_and_row(folder):
    path = write(folder, "train.json", [llava(0), llava(1, image="no.png"), llava(2, image="anim.png"), llava(3)])
    rows = list(read_rows(path, "llava", "colour", folder))
    assert [type(row) for row in rows] == [Row, Quarantined, Quarantined, Row]
    assert [(row.reason, row.sample_id) for row in rows if isinstance(row, Quarantined)] == [
        ("missing", "r1"),
        ("image", "r2"),
    ]
    assert f"{path}: row 1: " in only(Quarantined, rows)[0].detail


def test_pictures_keep_their_bytes_and_are_called_what_they_are(folder):
    path = write(folder, "train.json", [llava(number) for number in range(3)])
    samples = [row.load() for row in only(Row, read_rows(path, "llava", "colour", folder))]
    assert [one.pictures[0].ext for one in samples] == ["png", "jpg", "webp"]
    assert [one.pictures[0].data for one in samples] == [(folder / f"{number}.png").read_bytes() for number in range(3)]


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
    files = {"train": "train.json", "test": "test.json"}
    found = load_tasks(folder, {"a": files, "b": files})
    ids = [row.sample_id for task in found.values() for row in task.train.rows]
    assert len(set(ids)) == len(ids) == 8
    assert ids[:4] == ["a/r0", "a/r0#2", "a/r0#2#2", "a/b/r0"]


def test_half_a_surrogate_pair_is_quarantined_before_it_stops_a_writer(folder):
    for place, row in enumerate([llava(0, answer="\ud83d"), llava(0, note=["\udc00"]), llava(0, answer="\U0001f600")]):
        (found,) = read_rows(write(folder, f"{place}.json", [row]), "llava", "colour", folder)
        assert getattr(found, "reason", "good") == ("json", "json", "good")[place]


def test_json_lines_quarantine_a_bad_line(folder):
    path = folder / "train.jsonl"
    path.write_text(json.dumps(llava(0)) + "\n{broken\n\n" + json.dumps(llava(1)) + "\n")
    found = list(read_rows(path, "llava", "colour", folder))
    assert [getattr(row, "reason", "good") for row in found] == ["good", "json", "good"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "no JSON"), (b'{"a": 1}', "no JSON list"), (b"\xff\xfe", "not UTF-8"), (None, "cannot be")],
)
def test_files_that_are_no_rows_at_all_stop(folder, content, says):
    if content is not None:
        (folder / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=f"x.json.*{says}"):
        list(read_rows(folder / "x.json", "llava", "colour", folder))


def files(**changes):
    return TaskFiles(**{"train": "train.json", "test": "test.json", "scorer": "exact", "follow": "any", **changes})


def test_tasks_load_and_too_many_bad_rows_stop(folder):
    write(folder, "train.json", [llava(number) for number in range(40)] + [llava(99, image="no.png")])
    write(folder, "test.json", [qa(number) for number in range(4)])
    data = load_tasks(folder, {"colour": files()})["colour"]
    assert (len(data.train), len(data.test), len(data.quarantined)) == (40, 4, 1)
    assert data.train[3].question == "What is it?"
    assert [one.sample_id for one in data.test[:2]] == ["0", "1"]
    with pytest.raises(UserError, match="1 of 41 rows cannot be read \\(1 missing\\).*row 40"):
        load_tasks(folder, {"colour": files()}, bad_share=0.02)


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
        ({"format": "coco"}, "unknown format 'coco'"),
        ({"wording": "single"}, "no instruction wordings"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(folder, changes, says):
    write(folder, "train.json", [llava(0)])
    write(folder, "test.json", [qa(1)])
    write(folder, "empty.json", [])
    with pytest.raises(UserError, match=says):
        load_tasks(folder, {"colour": files(**changes)})


def test_an_unknown_setting_of_a_task_is_named(folder):
    with pytest.raises(UserError, match="colour.*metric"):
        load_tasks(folder, {"colour": {"train": "a", "test": "b", "metric": "x"}})


def test_wordings_can_be_made_one_or_many(folder):
    write(folder, "train.json", [llava(number) for number in range(30)])
    write(folder, "test.json", [qa(1)])
    wordings = ("One word.", "Say it briefly.", "A single word, please.")
    single = load_tasks(folder, {"c": files(instructions=wordings[1:], wording="single")})["c"]
    drawn = load_tasks(folder, {"c": files(instructions=wordings, wording="drawn")})["c"]
    assert {one.instruction for one in single.train} == {wordings[1]}
    assert {one.instruction for one in drawn.train} == set(wordings)
    assert {one.question for one in drawn.train} == {"What is it?"}


def test_published_chunk_files_keep_their_order_and_find_their_tasks(folder):
    for name in ("vqa", "vqa/charts", "ads"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(picture(1))
    roots = [["vqa/0.png", "ads/0.png", "vqa/charts/0.png"], ["ads/0.png", "vqa/0.png"]]
    for number, paths in enumerate(roots):
        write(folder, f"data_{number:03d}.json", [swift(0, images=[f"<STRCVIT_IMAGE_ROOT>/{p}"]) for p in paths])
    tasks = {"vqa/": "vqav2", "vqa/charts/": "chartqa", "ads/": "ad"}
    names = ["data_000.json", "data_001.json"]
    rows, bad = load_chunks(folder, names, "", tasks)
    assert [(chunk, row.task) for chunk, row in rows] == [
        (0, "vqav2"),
        (0, "ad"),
        (0, "chartqa"),
        (1, "ad"),
        (1, "vqav2"),
    ]
    assert bad == []
    assert len({row.sample_id for _, row in rows}) == 5
    del tasks["ads/"]
    with pytest.raises(UserError, match="2 task"):
        load_chunks(folder, names, "", tasks)


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
    data = load_tasks(
        root,
        {task: TaskFiles(train=f"{task}/train{wordings}.json", test=f"{task}/test{wordings}.json") for task in REAL},
    )
    assert {task: (len(one.train), len(one.test)) for task, one in data.items()} == REAL
    assert sum(len(one.quarantined) for one in data.values()) == 0
    listed = json.loads((root / "instructions.json").read_text())
    for task, one in data.items():
        rows = [*one.train.rows, *one.test.rows]
        assert {row.instruction for row in rows} == set(listed[task][: 5 if wordings else 1])
        assert all(row.question for row in rows)
        prompts = {
            row["id"]: row["conversations"][0]["value"]
            for row in json.loads((root / task / f"train{wordings}.json").read_text())
        }
        assert all(f"<image>\n{row.question}\n{row.instruction}" == prompts[row.sample_id] for row in one.train.rows)
