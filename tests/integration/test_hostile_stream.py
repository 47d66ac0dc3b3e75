"""A run on a damaged stream, and one on a stream behind HTTP: nothing is lost unnoticed, nothing wrong is learned."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from running import ROOT, SMALL, command, environment, streamcvit
from webserver import serving, storing

from streamcvit.data.shards.index import StreamIndex
from streamcvit.learning import commit, read_ledger
from streamcvit.monitoring import RunRecord
from streamcvit.monitoring.metrics import MetricStore

EMBEDDED = str(ROOT / "pipelines/embedded.yaml")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small stream of the embedded tasks."""
    folder = tmp_path_factory.mktemp("shards") / "stream"
    made = streamcvit("shard", EMBEDDED, str(folder), *SMALL, cwd=folder.parent)
    assert made.returncode == 0, made.stderr
    return folder


def words(data: str, *more: str) -> list[str]:
    settings = ["--set", "stream.source=shards", "--set", f"stream.data={data}"]
    return ["run", EMBEDDED, "--name", "r", "--local", "--method", "lora", *SMALL, *settings, *more]


def damage(stream: Path) -> dict[int, str]:
    """Flip bytes of some members, cut the last shard's end, and note a picture as undecodable; position -> reason."""
    index = StreamIndex.open(stream)
    table, faults = index.table, [""] * len(index)
    faults[60] = "the picture cannot be decoded"
    place = table.schema.get_field_index("image_fault")
    StreamIndex(stream, table.set_column(place, table.schema.field(place), pa.array(faults)), index.meta).save()
    expected = {60: "image"}
    for position, part in ((3, "json"), (50, "image"), (51, "image"), (120, "json")):
        with open(index.shards[int(index.column("shard")[position])], "r+b") as shard:
            at = int(index.column(f"{part}_offset")[position]) + 5
            shard.seek(at)
            byte = shard.read(1)[0]
            shard.seek(at)
            shard.write(bytes([byte ^ 0x40]))
        expected[position] = "checksum"
    with open(index.shards[-1], "r+b") as shard:
        shard.truncate(int(index.column("image_offset")[190]) + 3)
    return expected | {190: "truncated", 191: "truncated"}


def test_every_sample_of_a_damaged_stream_is_learned_or_quarantined_with_its_reason(
    stream: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(stream, data)
    expected = damage(data)
    # Killed inside the second chunk and resumed from a commit there: its first part's quarantine must not be forgotten.
    process = subprocess.Popen(
        command(*words(str(data), "--set", "learner.commit_every=1")),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = tmp_path / "runs" / "r" / "lora"
    while not list((folder / "commits").glob("00000008-*")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed_at = commit.read_state(commit.list_commits(folder / "commits")[-1])
    assert killed_at["step"] >= 8 and killed_at["cursor"] < len(StreamIndex.open(data))
    done = streamcvit("run", str(folder.parent / "config.yaml"), "--resume", "--local", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ended_at = commit.read_state(commit.list_commits(folder / "commits")[-1])
    assert (ended_at["epoch"], ended_at["cursor"]) == (killed_at["epoch"] + 1, len(StreamIndex.open(data)))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    skipped = {e["position"]: e["reason"] for e in events if e["event"] == "quarantine"}
    assert skipped == expected
    assert len([e for e in events if e["event"] == "quarantine"]) == len(expected)
    learned = read_ledger(folder / "ledger")["position"].to_pylist()
    assert sorted([*learned, *skipped]) == list(range(len(StreamIndex.open(data))))
    store = MetricStore()
    store.load(RunRecord.load(folder))
    counted = {
        sample.labels["reason"]: sample.value
        for family in store.collect()
        if family.name == "streamcvit_samples_quarantined"
        for sample in family.samples
    }
    assert {reason: count for reason, count in counted.items() if count} == Counter(expected.values())


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_remote_stream_is_learned_as_a_local_one_and_resumed_after_an_outage(
    stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    done = streamcvit(*words(str(stream)), cwd=local)
    assert done.returncode == 0, done.stdout + done.stderr
    with serving(stream) if kind == "http" else storing(stream, monkeypatch) as site:
        site.faults.extend(["503", "cut", "wrong"])
        process = subprocess.Popen(
            command(*words(site.url)),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        folder = tmp_path / "runs" / "r" / "lora"
        while not list((folder / "commits").glob("0*")) and process.poll() is None:
            time.sleep(0.02)
        site.always = "503"
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 2, said
        assert f"error: {site.url}/shard-000000.tar: cannot be read: " in said
        assert ("503" if kind == "http" else "Service Unavailable") in said
        site.always = ""
        done = streamcvit("run", str(folder.parent / "config.yaml"), "--resume", "--local", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    digests = [
        [commit.read_state(path)["digest"] for path in commit.list_commits(root / "commits")]
        for root in (folder, local / "runs" / "r" / "lora")
    ]
    assert digests[0] == digests[1]
    assert not list((folder.parent / "stream").rglob("*.tar"))
