"""A whole run: what it leaves behind, and that Ray changes nothing about it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from running import OWN_FILE, Run, streamcvit
from safetensors import safe_open

from streamcvit.data.shards.index import StreamIndex
from streamcvit.learning import commit, read_ledger
from streamcvit.monitoring import RunRecord

LEARNED = ("lora", "smolora", "replay", "joint")
ALL = ("zero-shot", *LEARNED)


def boundary_digests(folder: Path) -> list[str]:
    return [commit.read_state(path)["digest"] for path in commit.list_commits(folder / "commits")]


@pytest.mark.parametrize("method", LEARNED)
def test_ray_and_the_plain_loop_give_the_same_adapters_to_the_bit(ray_run: Run, local_run: Run, method: str) -> None:
    with_ray, without = boundary_digests(ray_run.folder / method), boundary_digests(local_run.folder / method)
    assert len(with_ray) == (1 if method == "joint" else 4)
    assert with_ray == without


@pytest.mark.parametrize("method", ALL)
def test_ray_and_the_plain_loop_give_the_same_answers_and_scores(ray_run: Run, local_run: Run, method: str) -> None:
    ours, theirs = ray_run.folder / method, local_run.folder / method
    assert json.loads((ours / "summary.json").read_text()) == json.loads((theirs / "summary.json").read_text())
    files = sorted(path.relative_to(ours) for path in ours.glob("predictions/*/*.parquet"))
    assert files == sorted(path.relative_to(theirs) for path in theirs.glob("predictions/*/*.parquet"))
    for file in files:
        assert pq.read_table(ours / file).equals(pq.read_table(theirs / file))


@pytest.mark.parametrize("method", ["lora", "smolora"])
def test_ray_and_the_plain_loop_measure_the_same_drift(ray_run: Run, local_run: Run, method: str) -> None:
    found = [
        [(event["drift"], event["routes_moved"]) for event in RunRecord.load(run.folder / method).chunk_events()]
        for run in (ray_run, local_run)
    ]
    assert found[0] == found[1]
    newest, probed = found[0][-1]
    tasks = {task for own in newest.values() for task in own["tasks"]}
    assert tasks and tasks <= probed.keys()
    assert all(len(samples) == 4 for samples in probed.values())
    if method == "lora":  # all its tasks share one expert, which goes on learning
        assert newest["adapter"]["router"] == 0 and newest["adapter"]["expert"] > 0


@pytest.mark.parametrize("method", LEARNED)
def test_every_position_is_learned_once(ray_run: Run, method: str) -> None:
    rows = read_ledger(ray_run.folder / method / "ledger")
    positions = rows["position"].to_pylist()
    assert Counter(positions) == Counter(range(4 * 48))
    if method != "joint":
        assert positions == sorted(positions)
        index = StreamIndex.open(ray_run.folder / "stream")
        assert rows["sample_id"].to_pylist() == [index.sample_id_of[p] for p in positions]


def test_a_file_of_ones_own_reaches_every_process_of_a_run_and_is_kept_with_it(ray_run: Run) -> None:
    (path,) = commit.list_commits(ray_run.folder / "joint" / "commits")
    with safe_open(path / "resume" / "state.safetensors", "pt") as state:
        assert any(name.endswith("draws") for name in state.keys())  # noqa: SIM118  # what that file's strategy keeps
    (kept,) = (ray_run.folder / "own_code").iterdir()
    assert kept.read_bytes() == OWN_FILE.read_bytes()
    saved = yaml.safe_load((ray_run.folder / "config.yaml").read_text())
    assert saved["own_code"] == {str(OWN_FILE): hashlib.sha256(kept.read_bytes()).hexdigest()}
    assert "lowest" in json.loads((ray_run.folder / "joint" / "summary.json").read_text())["metrics"]
    assert re.search(r'own_metric_points\{method="lora",metric="lowest",run="small"\} \d', "".join(ray_run.scrapes))


@pytest.mark.parametrize("method", ALL)
def test_some_answers_of_the_last_boundary_are_given_again_one_by_one(ray_run: Run, method: str) -> None:
    audit = json.loads((ray_run.folder / method / "summary.json").read_text())["audit"]
    assert audit == {"asked": 16, "differ": []}
    assert f"{method}: audit: 16 answers given again one by one, 0 of them differ" in ray_run.printed
    assert re.search(rf"<tr><td>{method}</td><td class=\"n\">16</td>", (ray_run.folder / "report.html").read_text())


@pytest.mark.parametrize("method", ALL)
def test_every_chunk_boundary_is_scored_on_every_seen_task(ray_run: Run, method: str) -> None:
    folder = ray_run.folder / method
    plan = json.loads((folder / "plan.json").read_text())
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    scored = {(row["chunk"], row["task"]) for row in rows if row["family"] == "strict"}
    expected = {(-1, task) for task in plan["tasks"]} if method == "zero-shot" else set()
    for chunk in range(len(plan["chunks"])):
        seen = {
            t for t, n in zip(plan["tasks"], map(sum, zip(*plan["chunks"][: chunk + 1], strict=True)), strict=True) if n
        }
        expected |= {(chunk, task) for task in seen}
    assert scored == expected
    assert {row["n"] for row in rows} == {12}
    assert all(row["family"] in ("strict", "strcvit") for row in rows)


def test_every_score_carries_the_digest_of_its_snapshot(ray_run: Run) -> None:
    folder = ray_run.folder / "smolora"
    digests = dict(enumerate(boundary_digests(folder)))
    for row in pq.read_table(folder / "scores.parquet").to_pylist():
        assert row["digest"] == digests[row["chunk"]]


def test_the_run_folder_holds_only_open_formats(ray_run: Run) -> None:
    endings = Counter(path.suffix for path in ray_run.folder.rglob("*") if path.is_file())
    # A log for people, and the sources of a strategy of one's own, beside them.
    assert set(endings) <= {".json", ".jsonl", ".yaml", ".parquet", ".safetensors", ".html", ".tar", ".log", ".py"}
    assert (ray_run.folder / "report.html").stat().st_size > 10_000


def test_the_resolved_config_and_versions_are_saved(ray_run: Run) -> None:
    config = yaml.safe_load((ray_run.folder / "lora" / "config.yaml").read_text())
    assert config["stream"]["scenario"]["samples_per_chunk"] == 48
    record = json.loads((ray_run.folder / "lora" / "run.json").read_text())
    assert record["finished"] and record["base_digest"] and record["index_digest"] and record["versions"]["torch"]


def test_the_learner_does_not_wait_for_evaluations(ray_run: Run) -> None:
    """Evaluating four methods' boundaries takes longer than learning them; the learner's idle time stays a trifle."""
    rows = [
        json.loads(line)
        for method in ("lora", "smolora", "replay")
        for line in (ray_run.folder / method / "events.jsonl").read_text().splitlines()
    ]
    chunks = [row for row in rows if row["event"] == "chunk"]
    evaluating = sum(
        row["seconds"]
        for method in ("lora", "smolora", "replay")
        for row in pq.read_table(ray_run.folder / method / "scores.parquet").to_pylist()
    )
    waiting = sum(row["wait_evaluation_s"] for row in chunks)
    assert len(chunks) == 12
    assert waiting < 0.25 * evaluating


def test_metrics_are_scraped_while_the_run_goes_on(ray_run: Run) -> None:
    assert ray_run.scrapes, ray_run.printed
    families = {f.name: f for f in text_string_to_metric_families(ray_run.scrapes[-1])}
    for name in (
        "streamcvit_task_score_points",
        "streamcvit_average_performance_points",
        "streamcvit_prequential_loss",
        "streamcvit_samples_learned",
        "streamcvit_stream_position",
        "streamcvit_learner_step_seconds",
        "streamcvit_router_expert_share_ratio",
        "streamcvit_build_info",
    ):
        assert name in families, name
    learned = {}
    for text in ray_run.scrapes:
        for family in text_string_to_metric_families(text):
            if family.name == "streamcvit_chunks_completed":
                for sample in family.samples:
                    run = sample.labels["run"], sample.labels["method"]
                    assert sample.value >= learned.get(run, 0)
                    learned[run] = sample.value
    assert learned


def test_without_a_terminal_each_chunk_is_one_plain_line(ray_run: Run) -> None:
    assert "\x1b" not in ray_run.printed
    for chunk in range(1, 5):
        assert len(re.findall(rf"^[\d:]{{8}} lora: chunk {chunk}/4 learned", ray_run.printed, re.M)) == 1


def test_a_finished_run_resumed_says_so_and_changes_nothing(ray_run: Run) -> None:
    before = (ray_run.folder / "smolora" / "summary.json").read_text()
    (ray_run.folder / "report.html").unlink()  # killed before it was written
    config = str(ray_run.folder / "config.yaml")
    done = streamcvit("run", config, "--resume", cwd=ray_run.folder.parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "already finished" in done.stdout
    assert (ray_run.folder / "report.html").exists()
    assert (ray_run.folder / "smolora" / "summary.json").read_text() == before


def test_a_finished_run_resumed_with_other_settings_is_refused(ray_run: Run) -> None:
    words = ["run", str(ray_run.folder / "config.yaml"), "--resume", "--set", "learner.batch_size=4"]
    done = streamcvit(*words, cwd=ray_run.folder.parent.parent)
    assert done.returncode == 2 and "learner.batch_size: 8 -> 4" in done.stderr, done.stderr
    done = streamcvit(*words, "--allow-change", "learner.batchsize", cwd=ray_run.folder.parent.parent)
    assert done.returncode == 2 and "--allow-change learner.batchsize: there is no such setting" in done.stderr


def test_status_and_report_read_a_run_folder(ray_run: Run, tmp_path: Path) -> None:
    status = streamcvit("status", str(ray_run.folder), cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    assert "small is finished" in status.stdout
    assert re.search(r"smolora +finished, chunk 4 of 4, 192 of 192 samples, AP \d", status.stdout)
    page = tmp_path / "page.html"
    report = streamcvit("report", str(ray_run.folder / "smolora"), "--to", str(page), cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "grounding" in page.read_text() or "shape" in page.read_text()


def test_a_shard_is_verified_and_damage_is_named(ray_run: Run, tmp_path: Path) -> None:
    config = str(ray_run.folder / "config.yaml")
    stream = tmp_path / "stream"
    made = streamcvit("shard", config, str(stream), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert StreamIndex.open(stream).digest == StreamIndex.open(ray_run.folder / "stream").digest
    assert streamcvit("verify", str(stream), cwd=tmp_path).returncode == 0
    shard = next(stream.glob("*.tar"))
    damaged = bytearray(shard.read_bytes())
    damaged[5000] ^= 0xFF
    shard.write_bytes(damaged)
    found = streamcvit("verify", str(stream), cwd=tmp_path)
    assert found.returncode == 1
    assert shard.name in found.stdout
