"""Sinks have every point of a run once, whatever became of it meanwhile; traces join the actors; nothing is changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from running import ROOT, SMALL, Run, boundaries, command, environment, streamcvit

from streamcvit.config import RunConfig
from streamcvit.monitoring import traces
from streamcvit.monitoring.definitions import METRICS
from streamcvit.monitoring.record import RunRecord
from streamcvit.run.feeding import BETWEEN, Feed

SINKS = {"tensorboard": {}, "mlflow": {"tracking_uri": ""}, "wandb": {"mode": "offline"}}
Points = dict[str, list[tuple[int, float]]]
"""tag -> (step, value) in the order they lie there."""


def installed(name: str) -> None:
    """Skip where a sink's package is not."""
    pytest.importorskip(name, reason=f"not installed: pip install 'streamcvit[{name}]'")


def config_of(folder: Path, *names: str, **monitor: Any) -> RunConfig:
    """The config of a run that lies in a folder, with sinks."""
    config = RunConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    tree = config.model_dump(mode="json") | {"out": str(folder.parent), "name": folder.name}
    options = {name: SINKS[name] for name in names}
    tree["monitor"] |= {"sinks": list(names), "sink_options": options, **monitor}
    return RunConfig.model_validate(tree)


def kept(name: str, folder: Path) -> Points:
    """What a sink holds of the method whose run lies in a folder, read back from its files."""
    found: Points = defaultdict(list)
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        seen = EventAccumulator(str(folder), {"scalars": 0}).Reload()
        return {tag: [(e.step, e.value) for e in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}
    if name == "wandb":
        from streamcvit.monitoring.sinks.wandb import STEP, rows

        for path in sorted(
            (folder.parent / "wandb").glob(f"offline-run-*-{folder.parent.name}-{folder.name}-*/*.wandb")
        ):
            for row in rows(path):
                for tag in row.keys() - {STEP}:
                    if not tag.startswith("_"):
                        found[tag].append((row[STEP], row[tag]))
        return found
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder.parent.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("streamcvit")
    query = f"attributes.run_name = '{folder.parent.name}/{folder.name}'"
    (run,) = client.search_runs([experiment.experiment_id], query)
    return {
        tag: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)] for tag in run.data.metrics
    }


def fed(folder: Path, *names: str) -> None:
    """Feed the sinks of one life of a run with all that its folder says."""
    feed = Feed(config_of(folder.parent, *names), folder.name)
    feed.look(last=True)
    feed.close()
    assert feed.faults == []


def as_after(folder: Path, chunk: int) -> None:
    """Make a finished run's folder what it was when a chunk was scored and a part of the next was learned."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    end = next(i for i, event in enumerate(events) if event["event"] == "chunk" and event["chunk"] == chunk)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events[: end + 1]))
    scores = pq.read_table(folder / "scores.parquet")
    pq.write_table(scores.filter(pc.field("chunk") <= chunk), folder / "scores.parquet")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"finished": None}))


def close(points: Points) -> dict[str, Any]:
    """To compare with, where a sink holds 32 bits of a number."""
    return {tag: pytest.approx(rows, rel=1e-6) for tag, rows in points.items()}


def flat(points: Points) -> dict[str, list[float]]:
    return {tag: [number for row in rows for number in row] for tag, rows in points.items()}


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_has_every_boundary_once_after_a_run_that_was_cut_off_and_went_on(
    name: str, local_run: Run, tmp_path: Path
) -> None:
    installed(name)
    whole, folder = tmp_path / "one" / "small" / "lora", tmp_path / "two" / "small" / "lora"
    for copy in (whole, folder):
        shutil.copytree(local_run.folder, copy.parent)
    fed(whole, name)
    as_after(folder, 1)
    fed(folder, name)
    first = kept(name, folder)
    if name == "tensorboard":
        with open(folder / "events.out.tfevents.streamcvit", "ab") as file:
            file.write(b"\x10\0\0\0\0\0\0\0cut off")
    shutil.copytree(local_run.folder / "lora", folder, dirs_exist_ok=True)
    fed(folder, name)
    fed(folder, name)  # a third life that has nothing to add
    points, expected = kept(name, folder), kept(name, whole)
    for found in (points, expected):
        found.pop("mean_average_forgetting_points/cross", None)  # told of the newest boundary alone
    assert flat(points) == close(flat(expected))  # type: ignore[comparison-overlap]
    assert len(first["average_performance_points"]) == 2
    record = RunRecord.load(local_run.folder / "lora")
    steps = [event["step"] for event in record.chunk_events()]
    assert [step for step, _ in points["average_performance_points"]] == steps
    assert [value for _, value in points["average_performance_points"]] == pytest.approx(list(record.ap_by_chunk()))
    matrix = record.matrix()
    for number, task in enumerate(record.tasks):
        scored = [(step, score) for step, score in zip(steps, matrix[:, number], strict=True) if score == score]
        if scored:
            assert flat({task: points[f"task_score_points/{task}/strict"]}) == close(flat({task: scored}))


def test_every_tag_is_a_metric_of_the_one_list_and_tells_what_it_means(local_run: Run, tmp_path: Path) -> None:
    installed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "small" / "smolora"
    shutil.copytree(local_run.folder, folder.parent)
    fed(folder, "tensorboard")
    points = kept("tensorboard", folder)
    assert {tag.partition("/")[0] for tag in points} <= METRICS.keys()
    assert len({tag.partition("/")[0] for tag in points}) > 15
    assert any(tag.startswith("router_expert_share_ratio/instruction/") for tag in points)
    seen = EventAccumulator(str(folder)).Reload()
    for tag in points:
        assert seen.SummaryMetadata(tag).summary_description == METRICS[tag.partition("/")[0]].help


class Life(NamedTuple):
    """A run that was killed in its middle and went on, watched by sinks, one of which is broken, and traced.

    Attributes:
        folder: of the run.
        spans: of its second life.
    """

    folder: Path
    spans: list[Any]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Life:
    installed("tensorboard"), installed("mlflow")
    memory = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="not installed: pip install 'streamcvit[otel]'"
    )
    from streamcvit.launch import execute

    cwd = tmp_path_factory.mktemp("lives")
    (cwd / "no-folder").write_text("")
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", "--local", "--method", "lora", *SMALL]
    words += ["--set", "monitor.sinks=[tensorboard,mlflow]"]
    words += ["--set", f"monitor.sink_options.mlflow.tracking_uri={(cwd / 'no-folder' / 'x').as_uri()}"]
    process = subprocess.Popen(
        command(*words), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "chunk 3/4 learned" in line:
            process.kill()
    process.wait(timeout=60)
    folder = cwd / "runs" / "small"
    config = RunConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    exporter = memory.InMemorySpanExporter()
    traces.begin_with(exporter, "small", "local")
    try:
        execute(config, local=True, resume=True)
        traces.flush()
    finally:
        traces.end()
    return Life(folder, list(exporter.get_finished_spans()))


def test_a_watched_run_that_was_killed_learns_what_an_unwatched_one_learns(lives: Life, local_run: Run) -> None:
    assert boundaries(lives.folder / "lora") == boundaries(local_run.folder / "lora")


def test_the_points_of_two_lives_are_those_of_one(lives: Life, local_run: Run, tmp_path: Path) -> None:
    shutil.copytree(local_run.folder, tmp_path / "small")
    fed(tmp_path / "small" / "lora", "tensorboard")
    points, expected = kept("tensorboard", lives.folder / "lora"), kept("tensorboard", tmp_path / "small" / "lora")
    for tag in expected:
        if tag.partition("/")[0] not in {*BETWEEN, "own_metric_points"} and not tag.endswith("/cross"):
            assert flat({tag: points[tag]}) == close(flat({tag: expected[tag]}))
    for tag, rows in points.items():
        steps = [step for step, _ in rows]
        assert steps == sorted(set(steps)), tag
    assert [step for step, _ in points["stream_position"]][-1] == 24
    assert all(value == 8 * step for step, value in points["stream_position"])


def test_a_sink_that_fails_is_noted_once_and_stops_nothing(lives: Life) -> None:
    record = RunRecord.load(lives.folder / "lora")
    assert record.finished
    notes = [event["what"] for event in record.events_of("note")]
    assert len(notes) == 1
    assert notes[0].startswith("mlflow takes no more points of lora (")


def test_spans_tell_how_a_batch_and_an_evaluation_came_about(lives: Life) -> None:
    by_id = {span.context.span_id: span for span in lives.spans}
    named = defaultdict(list)
    for span in lives.spans:
        named[span.name].append(span)
    assert set(named) == {"ingest", "learn", "commit", "evaluate"}
    for span in named["learn"]:
        assert by_id[span.parent.span_id].name == "ingest"
        assert span.start_time >= by_id[span.parent.span_id].end_time
    last = max(named["learn"], key=lambda span: span.attributes["step"])
    (commit,) = [span for span in named["commit"] if span.attributes["chunk"] == 3]
    assert [link.context.span_id for link in commit.links] == [last.context.span_id]
    scored = [span for span in named["evaluate"] if span.attributes["chunk"] == 3]
    record = RunRecord.load(lives.folder / "lora")
    assert sorted(span.attributes["task"] for span in scored) == sorted(
        {row["task"] for row in record.scores if row["chunk"] == 3 and row["kind"] == "boundary"}
    )
    assert {span.parent.span_id for span in scored} == {commit.context.span_id}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with actors, traced into files and logged as JSON: its folder, and what it printed."""
    pytest.importorskip("opentelemetry.sdk", reason="not installed: pip install 'streamcvit[otel]'")
    cwd = tmp_path_factory.mktemp("traced")
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", "--method", "lora", *SMALL]
    words += ["--set", "stream.scenario.chunks=2", "--set", "cluster.ingest_actors=2", "--log-format", "json"]
    words += ["--set", "monitor.traces=file", "--set", "monitor.sinks=[tensorboard]"]
    done = streamcvit(*words, cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd / "runs" / "small", done.stdout


def test_traces_go_from_actor_to_actor(traced: tuple[Path, str]) -> None:
    spans: dict[str, dict[str, Any]] = {}
    actors: dict[str, set[str]] = defaultdict(set)
    for path in (traced[0] / "traces").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            span = json.loads(line)
            assert span["resource"]["attributes"]["service.instance.id"] == path.stem
            spans[span["context"]["span_id"]] = span
            actors[span["name"]].add(path.stem)
    assert dict(actors) == {
        "ingest": {"ingest-0", "ingest-1"},
        "learn": {"learner"},
        "commit": {"learner"},
        "publish": {"learner"},
        "evaluate": {"evaluator-0"},
    }
    above = {"learn": "ingest", "publish": "commit", "evaluate": "publish"}
    for span in spans.values():
        parent = spans[span["parent_id"]] if span["parent_id"] else None
        assert (parent and parent["name"]) == above.get(span["name"])
        assert parent is None or parent["context"]["trace_id"] == span["context"]["trace_id"]
    learned = [span for span in spans.values() if span["name"] == "learn"]
    assert sorted(span["attributes"]["step"] for span in learned) == list(range(12))


def test_the_monitor_feeds_the_sinks_of_a_run_with_actors(traced: tuple[Path, str]) -> None:
    installed("tensorboard")
    points = kept("tensorboard", traced[0] / "lora")
    record = RunRecord.load(traced[0] / "lora")
    assert [value for _, value in points["average_performance_points"]] == pytest.approx(list(record.ap_by_chunk()))
    assert (12, 96.0) in points["stream_position"]


def test_screen_and_log_are_lines_of_json_that_say_what_they_are_about(traced: tuple[Path, str]) -> None:
    folder, printed = traced
    for text in (printed, (folder / "run.log").read_text()):
        lines = [json.loads(line) for line in text.splitlines()]
        assert all(list(line)[:7] == ["time", "level", "run", "method", "actor", "step", "message"] for line in lines)
        assert {(line["level"], line["run"]) for line in lines} == {("info", "small")}
        learned = [line for line in lines if " learned, " in line["message"]]
        assert [(line["method"], line["actor"], line["step"]) for line in learned] == [
            ("lora", "learner", 6),
            ("lora", "learner", 12),
        ]
        scored = [line for line in lines if "scores after" in line["message"]]
        assert [(line["actor"], line["step"]) for line in scored] == [("evaluator", 6), ("evaluator", 12)]
    results = [json.loads(line) for line in printed.splitlines() if '"results"' in line]
    summary = json.loads((folder / "lora" / "summary.json").read_text())
    assert results[0]["metrics"]["ap"] == summary["metrics"]["ap"]["value"]
