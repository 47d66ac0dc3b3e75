"""`streamcvit import`: streams of benchmarks and files, ended early and gone on with, the same bytes each time."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rowmaking import llava
from streams import picture
from typer.testing import CliRunner

from streamcvit import cli
from streamcvit.config import RunConfig
from streamcvit.data.files.origins import Noting, origins_of
from streamcvit.data.layouts import LAYOUTS
from streamcvit.data.shards import write as writing
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.write import kept_part
from streamcvit.data.verify import verify
from streamcvit.errors import UserError
from streamcvit.importing import begun, import_stream
from streamcvit.run.losses import lost_list
from streamcvit.run.stream import plan_of, prepare_stream

SMALL_SHARDS = ["stream.samples_per_shard=10"]


def contents(folder):
    """Every file of a stream, and the list beside it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    beside = lost_list(folder)
    return {**found, "lost": beside.read_bytes() if beside.exists() else b""}


@pytest.fixture(scope="module")
def coin(tmp_path_factory):
    """Small files in CoIN's layout."""
    folder = tmp_path_factory.mktemp("coin")
    LAYOUTS["coin"].write_small(folder, 8)
    return folder


@pytest.fixture(scope="module")
def undisturbed(coin, tmp_path_factory):
    """The stream of them, imported in one go."""
    to = tmp_path_factory.mktemp("undisturbed") / "s"
    import_stream("coin", coin, to, settings=SMALL_SHARDS)
    return contents(to)


@pytest.fixture
def rows(tmp_path):
    """A folder of one file of 60 rows, two of which cannot be used."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number, 32))
    lines = [json.dumps(llava(number, f"<image>\nWhat is {number}?\nOne word.")) for number in range(60)]
    lines[7] = "no row"
    lines[40] = json.dumps(llava(40, image="gone.png"))
    (folder / "colours.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def kill_after(shards, coin, to):
    """Import in a process that kills itself once so many shards are whole; returns the signal that ended it."""
    if not (child := os.fork()):
        note, count = writing._note_shard, [0]

        def killing(*words):
            note(*words)
            count[0] += 1
            if count[0] == shards:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            writing._note_shard = killing
            import_stream("coin", coin, to, settings=SMALL_SHARDS)
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_an_import_that_was_killed_goes_on_and_gives_the_same_bytes(coin, undisturbed, tmp_path):
    to = tmp_path / "s"
    assert kill_after(9, coin, to) == signal.SIGKILL
    assert not to.exists() and begun(to)  # nothing that `verify` or a run would take for a stream
    with pytest.raises(UserError, match="index.parquet is missing"):
        verify(kept_part(to))
    whole = {path.name: path.stat().st_ino for path in kept_part(to).glob("shard-*.tar")}
    assert whole
    import_stream("coin", coin, to, settings=SMALL_SHARDS)
    assert contents(to) == undisturbed
    assert all((to / name).stat().st_ino == place for name, place in whole.items())  # kept, not written again
    assert not begun(to) and [path.name for path in tmp_path.iterdir()] == ["s"]


def stop_after(count):
    def watch(what, done, total):
        if what == "writing" and done == count:
            raise KeyboardInterrupt

    return watch


def test_a_stopped_import_whose_pictures_changed_writes_them_again(tmp_path):
    folder, to = tmp_path / "coin", tmp_path / "s"
    LAYOUTS["coin"].write_small(folder, 8)
    with pytest.raises(KeyboardInterrupt):
        import_stream("coin", folder, to, settings=SMALL_SHARDS, watch=stop_after(35))
    assert begun(to)
    changed = sorted((folder / "cl_dataset/ScienceQA/images").iterdir())[0]
    changed.write_bytes(picture(77, 32))
    import_stream("coin", folder, to, settings=SMALL_SHARDS)
    import_stream("coin", folder, tmp_path / "again", settings=SMALL_SHARDS)
    assert contents(to) == contents(tmp_path / "again")
    assert any(picture(77, 32) in data for name, data in contents(to).items() if name.endswith(".tar"))


def test_files_of_ones_own_are_parted_imported_and_what_is_left_out_is_named(rows, tmp_path):
    said = []
    to = tmp_path / "s"
    index = import_stream("files", rows, to, settings=SMALL_SHARDS, say=said.append)
    tests = index.eval_index()
    assert (len(index) + len(tests), len(index.tasks)) == (58, 1) and len(tests) == 6
    lost = [json.loads(line) for line in lost_list(to).read_text().splitlines()]
    assert {(one["reason"], one["detail"].partition(": the")[0].partition(": Exp")[0]) for one in lost} == {
        ("json", f"{rows / 'colours.jsonl'}: row 7"),
        ("missing", f"{rows / 'colours.jsonl'}: row 40"),
    }
    assert any(line.startswith("colours ") for line in said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "s", "s.quarantined.jsonl"]
    import_stream("files", rows / "colours.jsonl", tmp_path / "other", settings=SMALL_SHARDS)
    assert contents(tmp_path / "other") == contents(to)


def test_files_go_on_from_the_rows_that_were_looked_at(rows, tmp_path, monkeypatch):
    to = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        import_stream("files", rows, to, settings=SMALL_SHARDS, watch=stop_after(30))
    said = []
    with monkeypatch.context() as patched:
        patched.setattr("streamcvit.importing.begin", None)
        import_stream("files", rows, to, settings=SMALL_SHARDS, say=said.append)
    assert said == ["going on with the rows that were looked at before"]
    import_stream("files", rows, tmp_path / "again", settings=SMALL_SHARDS)
    assert contents(to) == contents(tmp_path / "again")


def test_a_file_that_came_meanwhile_is_imported_too(rows, tmp_path):
    to = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        import_stream("files", rows, to, settings=SMALL_SHARDS, watch=stop_after(30))
    (rows / "shapes.jsonl").write_text(
        "".join(json.dumps(llava(n, f"<image>\nWhich is {n}?")) + "\n" for n in range(30))
    )
    assert set(import_stream("files", rows, to, settings=SMALL_SHARDS).tasks) == {"colours", "shapes"}


def test_a_wrong_setting_leaves_no_copy_of_the_rows(rows, tmp_path):
    with pytest.raises(UserError, match="stream.nothing"):
        import_stream("files", rows, tmp_path / "s", settings=["stream.nothing=1"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_made_file_that_a_person_changed_is_named_itself(tmp_path):
    made, noting = tmp_path / "a.jsonl", Noting()
    made.write_text("{}\n")
    noting.add("theirs.csv", 7)
    noting.save(made)
    assert origins_of(made).of(0) == ("theirs.csv", 7)
    made.write_text("{}\nnot json\n")
    assert origins_of(made) is None


def test_tables_of_hugging_face_and_csv_are_imported_by_their_kind(tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    names = [str(number) for number in range(20)]
    table = {"id": names, "question": [f"What is {name}?" for name in names], "answer": names}
    table["image"] = [picture(number, 32) for number in range(20)]
    for part in ("train", "test"):
        pq.write_table(pa.table(table), folder / f"numbers_{part}.parquet")
    lines = ["id,question,answer", *(f"{name},Which is {name}?,{name}" for name in names)]
    (folder / "words.csv").write_text("\n".join(lines))
    tables = import_stream("hf", folder, tmp_path / "hf")
    assert list(tables.tasks) == ["numbers"] and (len(tables), len(tables.eval_index())) == (20, 20)
    csv = import_stream("csv", folder, tmp_path / "csv", test_share=0.25)
    assert list(csv.tasks) == ["words"] and (len(csv), len(csv.eval_index())) == (15, 5)
    assert verify(tmp_path / "hf").ok and verify(tmp_path / "csv").ok


def test_an_imported_stream_is_one_that_a_pipeline_reads(coin, tmp_path):
    index = import_stream("coin", coin, tmp_path / "s")
    config = RunConfig.model_validate({"stream": {"source": "shards", "data": str(tmp_path / "s")}})
    assert plan_of(config) == index.plan
    assert prepare_stream(config, tmp_path / "run" / "stream").digest == index.digest
    direct = {"source": "benchmark", "benchmark": "coin", "data": str(coin)}
    assert prepare_stream(RunConfig.model_validate({"stream": direct}), tmp_path / "direct").digest == index.digest


def one_line(*words):
    """What is said of a mistake."""
    with pytest.raises(UserError) as fault:
        import_stream(*words)
    return str(fault.value)


def test_mistakes_are_said_before_anything_is_written(coin, rows, tmp_path):
    to = tmp_path / "s"
    assert "no benchmark or kind of source 'coim'. Did you mean coin? Benchmarks: strcvit" in one_line("coim", coin, to)
    assert "no such file or folder" in one_line("cvit", tmp_path / "gone", to)
    assert "files of UCIT are missing" in one_line("ucit", coin, to)
    assert "holds none of: CSV or TSV files" in one_line("csv", rows / "colours.jsonl", to)
    assert "holds none of: Parquet or Arrow" in one_line("hf", rows, to)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is there already, and holds no stream" in one_line("coin", coin, tmp_path / "full")
    import_stream("coin", coin, to)
    other = tmp_path / "other"
    LAYOUTS["coin"].write_small(other, 2)
    before = contents(to)
    assert "another stream lies here" in one_line("coin", other, to)
    assert contents(to) == before and StreamIndex.open(to)
    twice = tmp_path / "twice"

    def again(what, *_):
        if what == "writing":
            import_stream("coin", coin, twice)

    with pytest.raises(UserError, match="is being written by another process"):
        import_stream("coin", coin, twice, watch=again)


def test_the_command_says_what_it_made(coin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["import", "coin", str(coin), "--to", "s", "--set", "stream.test_samples=2"])
    assert done.exit_code == 0, done.output
    assert "scienceqa: 8 training samples" in done.output and "64 samples in 8 chunks" in done.output
    assert f"index {StreamIndex.open(Path('s')).digest}" in done.output
    assert not os.path.exists(".s.part")


def test_a_disk_that_is_full_leaves_what_can_be_gone_on_with(coin, undisturbed, tmp_path, monkeypatch):
    to = tmp_path / "s"
    flush, count = writing._flush, [0]

    def full(stream):
        count[0] += 1
        if count[0] == 9:
            raise OSError(28, "No space left on device", stream.name)
        flush(stream)

    monkeypatch.setattr(writing, "_flush", full)
    with pytest.raises(UserError, match="No space left.*make room; then the same command goes on"):
        import_stream("coin", coin, to, settings=SMALL_SHARDS)
    assert begun(to)
    monkeypatch.undo()
    import_stream("coin", coin, to, settings=SMALL_SHARDS)
    assert contents(to) == undisturbed
