"""Run folders are read as they are, finished or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import TASKS, write_run

from streamcvit.errors import UserError
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.page import render_report
from streamcvit.monitoring.runs import compared, find_runs, labels_of


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "smolora", "smolora")


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "smolora"))


def test_a_finished_run_is_read_whole(finished_run: Path) -> None:
    record = RunRecord.load(finished_run)
    assert (record.method, record.finished, record.problems) == ("smolora", True, [])
    assert record.tasks == list(TASKS)
    assert record.plan.shape == (15, 11)
    assert record.chunks_done == record.n_chunks == 15
    assert record.position == record.total_samples == len(record.ledger) == 960
    assert record.metric("ap")[0] == pytest.approx(record.summary["metrics"]["ap"]["value"])
    assert record.forgetting() == record.summary["forgetting"]


def test_quarantined_rows_at_the_end_and_a_shuffled_order_leave_the_position_right(run_copy: Path) -> None:
    for path in (run_copy / "ledger").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.compute.less(table["position"], 957)), path)
    assert RunRecord.load(run_copy).position == 960
    events = (run_copy / "events.jsonl").read_text().splitlines()
    begun = [line for line in events if json.loads(line).get("chunk") != 14]
    (run_copy / "events.jsonl").write_text("\n".join(begun) + "\n")
    # Of a chunk that is being learned its rows count, not its highest position: a shuffled one may come first.
    assert RunRecord.load(run_copy).position == 957
    for path in (run_copy / "ledger").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.compute.not_equal(table["position"], 930)), path)
    assert RunRecord.load(run_copy).position == 956


def test_skipped_steps_are_counted_from_the_chunks_and_leave_the_loss_curve_whole(run_copy: Path) -> None:
    path = sorted((run_copy / "ledger").glob("*.parquet"))[-1]
    table = pq.read_table(path)
    loss = table["loss"].to_numpy().copy()
    loss[:2] = np.nan, np.inf
    pq.write_table(table.set_column(table.schema.get_field_index("loss"), "loss", pa.array(loss, pa.float32())), path)
    with open(run_copy / "events.jsonl", "a") as file:
        for skipped in ({"loss": 9}, {"loss": 1, "gradient": 2}, "hostile"):
            file.write(json.dumps({"event": "chunk", "chunk": 3 + isinstance(skipped, str), "skipped": skipped}) + "\n")
    record = RunRecord.load(run_copy)
    assert record.skipped == {"loss": 1, "gradient": 2}
    assert np.isfinite(record.ledger.curve(4)[1]).all()
    store = MetricStore()
    store.load(record)
    found = {tuple(s.labels.values()): s.value for m in store.collect() for s in m.samples if "skipped" in s.name}
    assert found == {("smolora", "smolora", "loss"): 1, ("smolora", "smolora", "gradient"): 2}
    assert "3 steps skipped" in render_report([record])


def test_the_matrix_has_scores_of_seen_tasks_and_of_no_others(finished_run: Path) -> None:
    record = RunRecord.load(finished_run)
    table = record.matrix()
    np.testing.assert_array_equal(~np.isnan(table), record.seen())
    for family in ("strict", "strcvit"):
        rows = [r for r in record.scores if r["kind"] == "boundary" and r["family"] == family and r["task"] == "digit"]
        for row in rows:
            assert record.matrix(family)[row["chunk"], TASKS.index("digit")] == row["score"]


def test_without_a_summary_the_curve_and_forgetting_come_from_the_scores(run_copy: Path) -> None:
    whole = RunRecord.load(run_copy)
    (run_copy / "summary.json").unlink()
    record = RunRecord.load(run_copy)
    np.testing.assert_allclose(record.ap_by_chunk(), whole.ap_by_chunk())
    assert record.forgetting() == pytest.approx(whole.forgetting())
    assert record.metric("ap") == (pytest.approx(whole.metric("ap")[0]), None, None)
    assert record.metric("maf_best") is None


def test_an_average_waits_for_all_seen_tasks(run_copy: Path) -> None:
    (run_copy / "summary.json").unlink()
    rows = pq.read_table(run_copy / "scores.parquet").to_pylist()
    kept = [row for row in rows if not (row["chunk"] == 14 and row["task"] == "land")]
    pq.write_table(pa.Table.from_pylist(kept), run_copy / "scores.parquet")
    curve = RunRecord.load(run_copy).ap_by_chunk()
    assert np.isnan(curve[14]) and not np.isnan(curve[:14]).any()


def test_a_run_that_has_only_begun_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"method": "lora"}')
    record = RunRecord.load(tmp_path)
    assert (record.method, record.finished, record.position, record.n_chunks) == ("lora", False, 0, 0)
    assert record.metric("ap") is None
    assert record.forgetting() == {}


def test_half_written_files_are_left_out_and_named(run_copy: Path) -> None:
    with (run_copy / "events.jsonl").open("a") as file:
        file.write('{"event": "chu')
    last = sorted((run_copy / "ledger").glob("*.parquet"), key=lambda path: int(path.stem))[-1]
    last.write_bytes(last.read_bytes()[:100])
    (run_copy / "summary.json").write_text('{"metrics": {')
    record = RunRecord.load(run_copy)
    assert len(record.ledger) == 960 - 64
    assert record.events_of("finished")
    named = " ".join(record.problems)
    assert "ledger/120.parquet" in named and "summary.json" in named and "events.jsonl" not in named


@pytest.mark.parametrize(
    "text", ['{"tasks": 5}', '{"tasks": ["a"], "chunks": 7}', "[]", '{"tasks": ["a"], "in_average": 3}']
)
def test_a_plan_that_is_none_is_named(run_copy: Path, text: str) -> None:
    (run_copy / "plan.json").write_text(text)
    (run_copy / "run.json").write_text('{"versions": 3}')
    record = RunRecord.load(run_copy)
    assert len(record.problems) == 1 and "plan.json" in record.problems[0]
    assert render_report([record])


def test_a_broken_line_within_the_events_is_named(run_copy: Path) -> None:
    lines = (run_copy / "events.jsonl").read_text().splitlines()
    (run_copy / "events.jsonl").write_text("\n".join([lines[0], "\x00garbage", *lines[1:]]) + "\n")
    record = RunRecord.load(run_copy)
    assert record.chunks_done == 15
    assert record.problems == ["events.jsonl line 2 is not JSON"]


def test_a_position_learned_again_after_a_crash_counts_once_with_its_newest_row(run_copy: Path) -> None:
    rows = pq.read_table(run_copy / "ledger" / "120.parquet").to_pylist()
    again = [{**row, "loss": 9.0, "step": 999} for row in rows[:8]]
    pq.write_table(pa.Table.from_pylist(again), run_copy / "ledger" / "1000.parquet")
    ledger = RunRecord.load(run_copy).ledger
    assert len(ledger) == 960
    assert (ledger.loss[-64:-56] == 9.0).all() and (ledger.loss[-56:] < 9.0).all()
    assert (np.diff(ledger.position) == 1).all()


def test_a_chunk_reported_twice_counts_once(run_copy: Path) -> None:
    again = {"event": "chunk", "chunk": 14, "step": 120, "samples": 64, "loss": 0.5}
    with (run_copy / "events.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    record = RunRecord.load(run_copy)
    assert record.chunks_done == 15
    assert record.chunk_events()[-1] == again


def test_the_prequential_curve_keeps_chunks_apart_and_every_sample(finished_run: Path) -> None:
    ledger = RunRecord.load(finished_run).ledger
    places, losses, hits = ledger.curve(4)
    assert places.tolist() == [k + (part + 0.5) / 4 for k in range(15) for part in range(4)]
    assert losses.mean() == pytest.approx(ledger.loss.mean())
    assert hits.mean() == pytest.approx(ledger.correct.mean())


def test_what_is_scored_once_stands_at_every_chunk_of_the_others(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "zero-shot", "zero-shot", once=True),
        write_run(tmp_path / "joint", "joint", once=True),
        write_run(tmp_path / "lora", "lora"),
    ]
    runs = dict(compared([RunRecord.load(folder) for folder in folders]))
    lora = runs["lora"]
    assert (runs["zero-shot"].single, runs["joint"].single, lora.single) == (True, True, False)
    for name, kind in (("zero-shot", "zero"), ("joint", "boundary")):
        raw = [r for r in RunRecord.load(tmp_path / name).scores if r["kind"] == kind and r["family"] == "strict"]
        once = np.array([next(r["score"] for r in raw if r["task"] == task) for task in lora.tasks])
        np.testing.assert_array_equal(runs[name].matrix(), np.where(lora.seen(), once, np.nan))
        # AP_t is of the tasks seen by then, as for the others.
        np.testing.assert_allclose(runs[name].ap_by_chunk(), [once[row].mean() for row in lora.seen()])
        assert runs[name].metric("map") == (pytest.approx(runs[name].ap_by_chunk().mean()), None, None)
        assert runs[name].metric("maf_best") is None


def test_a_single_run_of_one_chunk_stays_as_it_is(tmp_path: Path) -> None:
    ((_, record),) = compared([RunRecord.load(write_run(tmp_path / "joint", "joint", once=True))])
    assert not record.single and record.n_chunks == 1 and record.metric("ap") is not None


def test_what_a_method_is_may_stand_in_its_settings() -> None:
    def record(**settings: str) -> RunRecord:
        return RunRecord(Path("x"), run={"method": "mine"}, config={"methods": {"mine": settings}})

    assert record(adapter="none").untrained and not record(adapter="lora").untrained
    assert record(order="joint").upper_bound and not record(order="stream").upper_bound


def test_tasks_kept_out_of_the_average_are_left_out_of_it(run_copy: Path) -> None:
    plan = json.loads((run_copy / "plan.json").read_text())
    (run_copy / "plan.json").write_text(json.dumps({**plan, "in_average": ["digit", "land"]}))
    (run_copy / "summary.json").unlink()
    record = RunRecord.load(run_copy)
    both = [TASKS.index("digit"), TASKS.index("land")]
    assert record.ap_by_chunk()[-1] == pytest.approx(record.matrix()[-1, both].mean())


def test_predictions_are_read_from_inside_the_run_only(finished_run: Path) -> None:
    record = RunRecord.load(finished_run)
    assert len(record.predictions(120, "digit")) == 20
    assert record.predictions(120, "../120/digit") == []
    assert record.predictions(1, "digit") == []


@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "x"
    if content:
        folder.mkdir()
        (folder / content).write_text("hello")
    with pytest.raises(UserError, match="run folder"):
        RunRecord.load(folder)
    with pytest.raises(UserError, match="no"):
        find_runs(folder)


def test_runs_are_found_at_a_path_and_below_it(tmp_path: Path) -> None:
    for name in ("b", "a", "stream"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "run.json").write_text("{}")
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]


def test_runs_are_found_below_the_folder_of_all_runs_where_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("x/b", "x/a", "y/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no run"):
        find_runs(tmp_path)
    assert find_runs(tmp_path, deep=True) == [tmp_path / "x/a", tmp_path / "x/b", tmp_path / "y/a"]


def _named(folder: str, method: str, seed: int = 0, ap: float | None = None) -> RunRecord:
    summary = {} if ap is None else {"metrics": {"ap": {"value": ap}, "maf_best": {"value": -ap}}}
    run = {"method": method, "seed": seed, "finished": "2026"}
    return RunRecord(Path(folder), run=run, summary=summary)


def test_labels_are_distinct() -> None:
    assert labels_of([_named("a", "lora"), _named("b", "smolora")]) == ["lora", "smolora"]
    assert labels_of([_named("a", "lora", 0), _named("b", "lora", 1)]) == ["lora (seed 0)", "lora (seed 1)"]
    assert labels_of([_named("x/a", "lora"), _named("x/b", "lora")]) == ["lora (a)", "lora (b)"]
    assert labels_of([_named("x/a", "lora"), _named("y/a", "lora")]) == ["lora (x)", "lora (y)"]
    three = [_named("x/a", "ewc"), _named("x/a", "lora"), _named("y/a", "lora")]
    assert labels_of(three) == ["ewc", "lora (x)", "lora (y)"]


def test_untrained_come_first_and_upper_bounds_last() -> None:
    records = [_named("a", "joint"), _named("b", "smolora"), _named("c", "zero-shot"), _named("d", "lora")]
    assert [label for label, _ in compared(records)] == ["zero-shot", "smolora", "lora", "joint"]


@pytest.mark.parametrize("name", ["ledger", "scores.parquet", "predictions"])
def test_a_flipped_bit_is_named_or_harmless_and_never_an_error(run_copy: Path, name: str) -> None:
    place = run_copy / name
    path = place if place.is_file() else sorted(place.rglob("*.parquet"))[0]
    pq.write_table(pq.read_table(path), path, compression="zstd", write_page_checksum=True)  # as a run writes it
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    there = RunRecord.load(run_copy)
    for bit in rng.integers(0, 8 * len(whole), 150):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        record = RunRecord.load(run_copy)
        record.matrix("strict", "low"), record.ledger.curve()
        assert record.problems or (len(record.ledger), len(record.scores)) == (len(there.ledger), len(there.scores))
        if name == "predictions":
            record.predictions(int(path.parent.name), path.stem)
        MetricStore().load(record)


@pytest.mark.parametrize("column", ["position", "chunk", "task", "loss", "correct"])
def test_a_ledger_part_with_other_columns_is_named_and_the_rest_is_read(run_copy: Path, column: str) -> None:
    whole = len(RunRecord.load(run_copy).ledger)
    path = sorted((run_copy / "ledger").glob("*.parquet"))[0]
    table = pq.read_table(path)
    place = table.column_names.index(column)
    for other in (pa.nulls(len(table)), pa.array([{"x": 1}] * len(table))):
        pq.write_table(table.set_column(place, column, other), path)
        record = RunRecord.load(run_copy)
        assert len(record.ledger) == whole - len(table)
        assert any(path.name in problem for problem in record.problems)
    shutil.copy(path, path.with_name(f"{path.stem} (copy).parquet"))
    assert len(RunRecord.load(run_copy).problems) == len(record.problems)
