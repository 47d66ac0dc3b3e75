"""A user's mistake is one clear line and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, SMALL, command, environment, streamcvit

EMBEDDED = str(ROOT / "pipelines" / "embedded.yaml")


def one_line_error(cwd: Path, *words: str) -> str:
    done = streamcvit(*words, cwd=cwd)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["run", EMBEDDED, "--method", "nonsense"], "unknown method 'nonsense'"),
        (["run", EMBEDDED, "--set", "methods.lora.adapter=nonsense"], "unknown adapter 'nonsense'"),
        (["run", EMBEDDED, "--set", "model.name_or_path=./nowhere"], "nowhere"),
        (["run", EMBEDDED, "--resume"], "no run to resume"),
        (["run", str(ROOT / "pipelines")], "pipelines: is a folder. Give the path of a YAML file"),
        (["run", "/dev/null"], "/dev/null: is empty"),
        (["status", EMBEDDED], "embedded.yaml: is a file, not a run's folder"),
        (
            ["run", EMBEDDED, "--method", "smolora", "--set", "methods.smolora.options.rank=4"],
            "methods.smolora.options: smolora has no option 'rank'",
        ),
        (
            ["run", EMBEDDED, "--method", "smolora", "--set", "methods.smolora.options.r=many"],
            "methods.smolora.options: smolora: r must be a whole number (got 'many')",
        ),
        (
            ["run", EMBEDDED, "--local", "--set", "out=/dev/null/runs"],
            "/dev/null/runs/embedded: the folder cannot be made (Not a directory)",
        ),
        (["run", EMBEDDED, "--set", "name=2024-02-30"], "--set name: bad value (day is out of range"),
        (["run", str(ROOT / "pipelines/real-small.yaml"), "--data", "nowhere", "--local"], "nowhere"),
        (["scenario", "show", EMBEDDED, "--set", "stream.scenario.preset=nonsense"], "nonsense"),
        (["verify", "nowhere"], "nowhere"),
        (["status", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["adapters", "import", "nowhere", "--to", "out"], "nowhere"),
        (["shard", EMBEDDED, "out", "--set", "stream.scenario.chunks=99"], "15 chunks"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    assert said in one_line_error(tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["shard", EMBEDDED, "afile/s"], ["run", EMBEDDED, "--local", "--set", "out=afile/r"]]
)
def test_a_folder_below_a_file_is_named(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "afile").touch()
    assert "afile" in one_line_error(tmp_path, *words, *SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]


@pytest.mark.parametrize("words", [["shard", EMBEDDED, "s"], ["run", EMBEDDED, "--local"]])
def test_a_stream_that_finds_no_room_is_one_line_and_leaves_nothing(tmp_path: Path, words: list[str]) -> None:
    with_a_limit = ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh", *command(*words, *SMALL)]
    done = subprocess.run(with_a_limit, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "too large" in line
    assert list(tmp_path.rglob("*.tar")) == [] and not (tmp_path / "s").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = streamcvit("--debug", "run", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_run_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: mine\n")
    assert "this run exists" in one_line_error(tmp_path, "run", EMBEDDED, "--name", "mine")
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def rows(n: int, image: str) -> list[dict]:
    return [
        {
            "id": f"r{i}",
            "image": image,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?\nAnswer with one word."},
                {"from": "gpt", "value": "cat"},
            ],
        }
        for i in range(n)
    ]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline over four rows of one task whose picture exists."""
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "train.json").write_text(json.dumps(rows(4, "a.png")))
    (tmp_path / "test.json").write_text(
        json.dumps([{"question_id": 1, "image": "a.png", "text": "What?\nOne word.", "answer": "cat"}])
    )
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: p\nstream:\n  source: files\n  data: .\n  scenario: {preset: generate, chunks: 1, tasks_per_chunk: 1}\n"
        "  tasks:\n    cats: {train: train.json, test: test.json}\nmethods: {lora: {adapter: lora}}\n"
    )
    return path


def test_a_task_without_test_set_is_named(pipeline: Path) -> None:
    (pipeline.parent / "test.json").unlink()
    assert "test.json" in one_line_error(pipeline.parent, "run", "p.yaml", "--local")
    assert not (pipeline.parent / "runs" / "p" / "stream").exists()


def test_a_plan_that_asks_for_too_much_is_named(pipeline: Path) -> None:
    words = ["--set", "stream.scenario.samples_per_chunk=9", "--set", "stream.scenario.recurrence_gap=0"]
    line = one_line_error(pipeline.parent, "shard", "p.yaml", "out", *words)
    assert "9 samples of task 'cats'" in line and "there are 4" in line
    assert not (pipeline.parent / "out").exists()


def test_an_unknown_scorer_is_named_before_anything_runs(pipeline: Path) -> None:
    line = one_line_error(pipeline.parent, "run", "p.yaml", "--local", "--set", "stream.tasks.cats.scorer=nonsense")
    assert "stream.tasks.cats.scorer" in line and "nonsense" in line and "exact" in line


def test_a_test_sample_without_what_its_scorer_needs_is_named_before_anything_is_written(pipeline: Path) -> None:
    row = {"question_id": 1, "image": "a.png", "text": "What?\nOne word.", "answer": "cat", "choices": 5}
    (pipeline.parent / "test.json").write_text(json.dumps([row]))
    for words in (["run", "p.yaml", "--local"], ["shard", "p.yaml", "out"]):
        settings = ["--set", "stream.tasks.cats.scorer=choice", "--set", "stream.scenario.recurrence_gap=0"]
        line = one_line_error(pipeline.parent, *words, *settings)
        assert 'sample 1: meta "choices" is 5. Give meta "choices" as a list of texts' in line
    assert not (pipeline.parent / "out").exists() and not (pipeline.parent / "runs" / "p" / "config.yaml").exists()


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["run", EMBEDDED, "--method", "zero-shot", *SMALL, "--set", f"monitor.port={port}"]
        assert str(port) in one_line_error(tmp_path, *words)


def test_missing_ray_is_named_with_the_way_without_it(tmp_path: Path) -> None:
    words = ["streamcvit", "run", EMBEDDED, "--method", "zero-shot", *SMALL]
    code = f"import sys; sys.modules['ray'] = None; sys.argv = {words!r}; from streamcvit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Ray is not installed" in done.stderr and "--local" in done.stderr
    assert not (tmp_path / "runs" / "embedded" / "config.yaml").exists()


def test_too_little_memory_is_said_before_ray_starts(tmp_path: Path) -> None:
    words = ["run", EMBEDDED, "--method", "zero-shot", *SMALL, "--set", "cluster.evaluators=256"]
    assert "too little memory" in one_line_error(tmp_path, *words)
