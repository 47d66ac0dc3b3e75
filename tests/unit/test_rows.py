"""Files of rows: their kind is told by the file, and every kind gives the same rows."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rowmaking import llava, qa, swift
from streams import picture

from streamcvit.data.files.rows import rows_of
from streamcvit.data.files.tasks import load_tasks, read_rows
from streamcvit.errors import UserError

ROWS = [
    {"id": str(number), "image": f"{number % 3}.png", "question": f"What {number}?", "answer": "rot, blau"}
    for number in range(5)
]
BOM = b"\xef\xbb\xbf"


def found(path):
    """The good rows of a path."""
    return [row for _, _, row in rows_of(path)]


def says(path):
    """What is said of a path of which nothing can be read."""
    with pytest.raises(UserError) as fault:
        list(rows_of(path))
    assert "\n" not in str(fault.value)
    return str(fault.value)


def csv_text(rows, delimiter=",", end="\n"):
    lines = [delimiter.join(rows[0])]
    lines += [delimiter.join(f'"{cell}"' for cell in row.values()) for row in rows]
    return end.join(lines) + end


def arrow(path, rows, groups=1, stream=True):
    """An Arrow file as `datasets` writes it (a stream), or with a footer."""
    table = pa.Table.from_pylist(rows)
    opened = pa.OSFile(str(path), "wb")
    writer = (pa.ipc.new_stream if stream else pa.ipc.new_file)(opened, table.schema)
    with opened, writer:
        for batch in table.to_batches(max_chunksize=-(-len(rows) // groups)):
            writer.write_batch(batch)
    return path


def make(path):
    """`ROWS` in a file of this name."""
    text = json.dumps(ROWS).encode()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    content = {
        "list.json": text,
        "bom.json": BOM + text,
        "spread.json": json.dumps(ROWS, indent=1).encode(),
        "list.jsonl": text,
        "lines.jsonl": lines,
        "bom.jsonl": BOM + lines,
        "windows.jsonl": lines.replace(b"\n", b"\r\n\r\n"),
        "lines.json": lines,
        "t.csv": csv_text(ROWS).encode(),
        "bom.csv": BOM + csv_text(ROWS, end="\r\n").encode(),
        "semicolon.csv": csv_text(ROWS, ";").encode(),
        "t.tsv": csv_text(ROWS, "\t").encode(),
    }
    if path.name in content:
        path.write_bytes(content[path.name])
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    elif path.suffix == ".arrow":
        arrow(path, ROWS, groups=2, stream=path.stem == "stream")
    elif path.name == "saved":  # Dataset.save_to_disk
        path.mkdir()
        for number in (0, 1):
            arrow(path / f"data-0000{number}-of-00002.arrow", ROWS[3 * number : 3 * number + 3])
        (path / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": f"data-0000{number}-of-00002.arrow"} for number in (0, 1)]})
        )
        (path / "dataset_info.json").write_text("{}")
        arrow(path / "cache-1.arrow", ROWS)
    else:
        path.mkdir()
        for number in (0, 1):
            part = pa.Table.from_pylist(ROWS[3 * number : 3 * number + 3])
            pq.write_table(part, path / f"train-0000{number}-of-00002.parquet")
    return path


KINDS = [
    "list.json",
    "bom.json",
    "spread.json",
    "list.jsonl",
    "lines.jsonl",
    "bom.jsonl",
    "windows.jsonl",
    "lines.json",
    "t.csv",
    "bom.csv",
    "semicolon.csv",
    "t.tsv",
    "t.parquet",
    "named.txt.parquet",
    "stream.arrow",
    "file.arrow",
    "saved",
    "shards",
]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    assert found(make(tmp_path / name)) == ROWS


def test_the_kind_is_told_by_the_file_and_not_by_its_name(tmp_path):
    make(tmp_path / "t.parquet").rename(tmp_path / "t.json")
    assert found(tmp_path / "t.json") == ROWS


def test_a_pattern_stands_for_its_files_in_order_and_rows_are_named_after_theirs(tmp_path):
    make(tmp_path / "shards")
    (tmp_path / "shards" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    files = [(file.name, number) for file, number, _ in rows_of(tmp_path / "shards" / "train-*.parquet")]
    assert files == [("train-00000-of-00002.parquet", number) for number in range(3)] + [
        ("train-00001-of-00002.parquet", number) for number in range(2)
    ]
    assert "no-*.parquet" in says(tmp_path / "shards" / "no-*.parquet")


def test_a_folder_of_several_sets_is_asked_which(tmp_path):
    folder = make(tmp_path / "shards")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "test-00000-of-00001.parquet")
    assert f"holds files of several sets: test-, train-. Name one: {folder}/test-*.parquet" in says(folder)
    both = tmp_path / "both"
    both.mkdir()
    make(both / "saved").rename(both / "train")
    make(both / "saved").rename(both / "test")
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert f"holds the sets test, train. Name one: {both}/test" in says(both)
    (tmp_path / "empty").mkdir()
    assert "is a folder without Parquet or Arrow files" in says(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", b"{", "is no JSON list of rows"),
        ("x.json", b'{"a": 1}', "is no JSON list of rows: it is no list.*named? .*after its kind"),
        ("x.json", b'["\xff"]', "is not UTF-8"),
        ("x.json", json.dumps(ROWS).encode("utf-16"), "is UTF-16, not UTF-8. Convert"),
        ("x.jsonl", json.dumps(ROWS[0]).encode("utf-16-le"), "is UTF-16, not UTF-8. Convert"),
        ("x.json", gzip.compress(b"[]", mtime=0), "is packed with gzip. Unpack"),
        ("x.json", b"PK\x03\x04" + bytes(20), "a ZIP archive or an Excel workbook"),
        ("x.json", b"a,b\n1,2\n", r"\*\.csv"),
        ("x.csv", b"a,a\n1,2\n", "names the columns"),
        ("x.csv", "Größe\nx".encode("latin-1"), "is not UTF-8"),
        ("x.csv", b'a,b\n1,"2\n', "is no CSV"),
        ("x.parquet", b"PAR1" + bytes(60), "is damaged"),
        ("x.arrow", b"ARROW1\0\0" + bytes(60), "is damaged"),
        ("x.arrow", b"\xff\xff\xff\xff" + b"\xff\xff\xff\x7f" + bytes(60), "is damaged"),
    ],
)  # fmt: skip
def test_files_that_are_no_rows_say_what_they_are_and_what_to_do(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert re.search(f"{name}: .*{said}", says(tmp_path / name))


def test_a_file_cut_off_gives_its_first_rows_and_is_then_damaged(tmp_path):
    whole = arrow(tmp_path / "x.arrow", ROWS, groups=5).read_bytes()
    (tmp_path / "x.arrow").write_bytes(whole[: len(whole) * 2 // 3])
    rows = rows_of(tmp_path / "x.arrow")
    assert next(rows)[2] == ROWS[0]
    with pytest.raises(UserError, match="x.arrow: is damaged"):
        list(rows)


def test_a_forged_offset_of_an_arrow_file_leads_nowhere(tmp_path):
    path = arrow(tmp_path / "x.arrow", [{"text": "abcdefgh"}, {"text": "ij"}])
    offsets = (0).to_bytes(4, "little") + (8).to_bytes(4, "little") + (10).to_bytes(4, "little")
    forged = (0).to_bytes(4, "little") + (8).to_bytes(4, "little") + (1 << 30).to_bytes(4, "little")
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, forged))
    assert "is damaged" in says(path)


def test_json_lines_quarantine_a_bad_line(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "1.png").write_bytes(picture(1))
    path = tmp_path / "train.jsonl"
    path.write_bytes(
        b"\n".join([json.dumps(llava(0)).encode(), b"{broken", b"", b'{"a": "\xff"}', json.dumps(llava(1)).encode()])
    )
    rows = list(read_rows(path, "llava", "colour", tmp_path))
    assert [getattr(row, "reason", "good") for row in rows] == ["good", "json", "json", "good"]
    monkeypatch.setattr("streamcvit.data.files.rows.MAX_LINE", 300)
    path.write_bytes(b"x" * 5_000_000 + b"\n" + json.dumps(llava(1)).encode())
    bad, good = read_rows(path, "llava", "colour", tmp_path)
    assert "a line of more than 300 bytes" in bad.detail and good.sample_id == "r1"


def test_a_csv_row_of_another_length_is_bad_and_empty_cells_are_none(tmp_path):
    (tmp_path / "x.csv").write_text('image,question,answer\n,"Two\nlines, ""said""",red\n\na,b\n')
    good, bad = found(tmp_path / "x.csv")
    assert good == {"question": 'Two\nlines, "said"', "answer": "red"}
    assert str(bad) == "2 cells; the first line names 3 columns"


def test_values_of_a_table_that_json_lacks_become_text_or_are_left_out(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    row = {
        **qa(1, question_id=None),
        "image": {"bytes": picture(3), "path": "elsewhere/x.png"},
        "day": datetime.date(2026, 1, 2),
        "price": decimal.Decimal("1.50"),
        "thumbnail": b"\0\1",
        "more": {"inner": [b"x"], "none": None},
        "score": float("nan"),
        "size": [4, 5],
        "kept": {"a": 1.5, "b": None},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (one,) = read_rows(tmp_path / "x.parquet", "qa", "colour", tmp_path)
    sample = one.load()
    assert sample.meta == {"day": "2026-01-02", "price": "1.50", "size": [4, 5], "kept": {"a": 1.5}}
    assert sample.pictures[0].data == picture(3)
    assert sample.sample_id == "colour/x/000000"


def test_content_parts_of_a_table_leave_out_what_only_other_parts_have(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(0))
    row = swift(0, [{"type": "image", "image": "0.png"}, {"type": "text", "text": "What?"}], images=[])
    row["messages"][1]["content"] = [{"type": "text", "text": "red"}]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (one,) = read_rows(tmp_path / "x.parquet", "swift", "colour", tmp_path)
    assert one.sample.question == "What?" and len(one.pictures) == 1


def test_nothing_of_a_table_is_unpickled(tmp_path, monkeypatch):
    """An extension type that carries a pickle comes as what it is stored as."""
    monkeypatch.chdir(tmp_path)
    pickled = b"cos\nsystem\n(S'touch hit'\ntR."
    notes = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled}
    schema = pa.schema([pa.field("question", pa.string(), metadata=notes), pa.field("answer", pa.string())])
    table = pa.table([pa.array(["x"]), pa.array(["y"])], schema=schema)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as opened, pa.ipc.new_stream(opened, table.schema) as writer:
        writer.write_table(table)
    assert found(tmp_path / "x.arrow") == [{"question": "x", "answer": "y"}]
    assert not (tmp_path / "hit").exists()


def test_a_csv_with_pictures_is_a_task_in_the_question_answer_format(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    make(tmp_path / "t.csv")
    files = {"train": "t.csv", "test": "t.csv", "format": "qa"}
    task = load_tasks(tmp_path, {"colour": files})["colour"]
    assert [one.question for one in task.train] == [row["question"] for row in ROWS]
    assert task.train[4].pictures[0].data == picture(1) and task.train[4].answers == ("rot, blau",)
