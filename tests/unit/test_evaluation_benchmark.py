"""The evaluation's benchmark runs on any machine, compares answers for real, and writes what it prints."""

from __future__ import annotations

import json
import sys

from benchmarking import load_benchmark


def test_command_prints_a_row_a_way_and_tells_answers_that_differ(monkeypatch, tmp_path, capsys) -> None:
    benchmark, file = load_benchmark("evaluation"), tmp_path / "figures.json"
    tasks = {name: benchmark.embedded.TASKS[name] for name in ("shape", "count")}
    monkeypatch.setattr(benchmark.embedded, "TASKS", tasks)
    answer = benchmark.Ours.answer
    monkeypatch.setattr(benchmark.Ours, "boundary", lambda self: {**answer(self), "count": ["?", "?"]})
    words = ["--samples", "2", "--rounds", "1", "--steps", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *words])
    benchmark.main()
    record, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert [row["way"] for row in record["rows"]] == list(benchmark.WAYS)
    assert record["rows"][0]["times"] == 1.0 and record["answers"] == 4 and record["compared"] == 12
    assert [(one["way"], one["task"], one["ours"]) for one in record["differ"]] == [("boundary", "count", "?")] * 2
    assert "12 answers compared with the published way's, 2 differ" in printed
    for row in record["rows"]:
        assert f"| {row['way']} | {row['answers_per_second']:.1f} | {row['times']:.1f} (" in printed


def test_the_committed_record_keeps_the_promise() -> None:
    path = load_benchmark("evaluation").RESULT
    record = json.loads(path.read_text())
    (boundary,) = [row for row in record["rows"] if row["way"] == "boundary"]
    assert boundary["times"] >= 12 and record["differ"] == []
    table = (path.parents[2] / "docs" / "scoring.md").read_text()
    assert load_benchmark("evaluation").table(record) in table
