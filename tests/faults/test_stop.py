"""SIGINT and SIGTERM commit and stop; --resume goes on to the same result, and names whatever changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from chaos import differences, restarts
from running import METHODS, ROOT, SMALL, Run, boundaries, command, environment, streamcvit
from streams import TASKS, stream_samples, test_sets
from test_kill import ALL, actors_of

from streamcvit.data.shards.index import INDEX_NAME
from streamcvit.data.shards.write import write_stream
from streamcvit.learning import commit, read_ledger
from streamcvit.models.base import fetch

EMBEDDED = str(ROOT / "pipelines/embedded.yaml")


def stopped(cwd: Path, number: signal.Signals, *words: str) -> subprocess.CompletedProcess:
    """Start a run and send it a signal while it learns its second method."""
    process = subprocess.Popen(
        command("run", EMBEDDED, "--name", "small", *METHODS, *SMALL, *words),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (cwd / "runs/small/smolora/epochs/00000001.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=180)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def check_stopped(cwd: Path, done: subprocess.CompletedProcess, number: signal.Signals, how: str) -> None:
    assert done.returncode == 128 + number, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"stopped; continue with: streamcvit run runs/small/config.yaml --resume{how}\n" in done.stderr
    folder = cwd / "runs/small/smolora"
    found = commit.newest_resumable(folder / "commits")
    rows = read_ledger(folder / "ledger")["position"].to_pylist()
    assert rows == list(range(found[1]["cursor"] if found else 0))
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["event"] == "stopped"


@pytest.mark.parametrize(("number", "where"), [(signal.SIGINT, ["--local"]), (signal.SIGTERM, [])])
def test_a_signal_in_the_middle_of_a_chunk_stops_there_and_changed_sources_are_named(
    tmp_path: Path, number: signal.Signals, where: list[str]
) -> None:
    base, package = tmp_path / "base", tmp_path / "edited"
    shutil.copytree(fetch("embedded"), base)
    sizes = ("scenario.chunks=2", "scenario.samples_per_chunk=1500", "test_samples=2")
    words = ["run", EMBEDDED, "--name", "r", "--method", "lora", *where, "--set", f"model.name_or_path={base}"]
    for setting in (*(f"stream.{size}" for size in sizes), "learner.commit_every=40"):
        words += ["--set", setting]
    process = subprocess.Popen(command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs/r/lora"
    while not list((folder / "commits").glob("00000040-*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=180) == 128 + number
    found = commit.newest_resumable(folder / "commits")
    # In this process the next batch is always learned; on Ray the learner may wait for it, and has nothing to commit.
    assert found is not None and (40 if number == signal.SIGTERM else 41) <= found[1]["step"] < 80
    assert not found[1]["boundary"]

    settings = json.loads((base / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (base / "processor_config.json").write_text(json.dumps(settings))
    other = write_stream(tmp_path / "other", stream_samples(), TASKS, test_sets(), 0)
    shutil.copyfile(Path(other.folder, INDEX_NAME), folder.parent / "stream" / INDEX_NAME)
    shutil.copytree(ROOT / "streamcvit", package / "streamcvit")
    with open(package / "streamcvit/errors.py", "a") as file:
        file.write("\n")
    before = (folder / "events.jsonl").read_bytes()
    refused = subprocess.run(
        command("run", str(folder.parent / "config.yaml"), "--resume", *where),
        cwd=tmp_path, env=environment() | {"PYTHONPATH": str(package)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    for key in ("code: ", "model: ", "index: ", "--allow-change code", "--allow-change model", "--allow-change index"):
        assert key in refused.stderr
    assert (folder / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize("how", ["stopped", "gone"])
def test_a_signal_while_the_learner_waits_for_batches_commits_those_it_learned(tmp_path: Path, how: str) -> None:
    words = ["run", EMBEDDED, "--name", "r", "--method", "lora", "--set", "learner.commit_every=40"]
    words += ["--set", "cluster.backoff_seconds=60", "--set", "cluster.ingest_actors=2"]
    for size in ("scenario.chunks=2", "scenario.samples_per_chunk=1500", "test_samples=2"):
        words += ["--set", f"stream.{size}"]
    process = subprocess.Popen(command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs/r/lora"
    while not list((folder / "commits").glob("00000040-*")) and process.poll() is None:
        time.sleep(0.02)
    for life in range(1 if how == "stopped" else 2):  # the second successor is kept waiting
        while len(victims := actors_of(process, "IngestActor")) < 2 and process.poll() is None:
            time.sleep(0.1)
        for victim in victims:
            victim.suspend() if how == "stopped" else victim.kill()
        while how == "gone" and restarts(folder.parent)["ingest", "died"] < 2 * (life + 1) and process.poll() is None:
            time.sleep(0.1)
    (learner,) = actors_of(process, "LearnerActor")
    busy = -1.0
    while (now := learner.cpu_times().user) > busy + 0.1:  # it has the batches that it had asked for ahead
        busy = now
        time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=180) == 128 + signal.SIGTERM
    found = commit.newest_resumable(folder / "commits")
    assert found is not None and found[1]["step"] % 40 and not found[1]["boundary"]
    assert read_ledger(folder / "ledger")["position"].to_pylist() == list(range(found[1]["cursor"]))


@pytest.mark.parametrize("where", [["--local"], []], ids=["local", "ray"])
def test_ctrl_c_that_ends_the_reader_of_what_is_said_too_commits_and_stops(tmp_path: Path, where: list[str]) -> None:
    words = ["run", EMBEDDED, "--name", "r", "--method", "lora", *where, "--set", "learner.commit_every=40"]
    for size in ("scenario.chunks=2", "scenario.samples_per_chunk=1500", "test_samples=2"):
        words += ["--set", f"stream.{size}"]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    folder = tmp_path / "runs/r/lora"
    while not list((folder / "commits").glob("00000040-*")) and process.poll() is None:
        time.sleep(0.02)
    process.stdout.close()  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=180) == 128 + signal.SIGINT
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["event"] == "stopped"
    found = commit.newest_resumable(folder / "commits")
    assert found is not None and (41 if where else 40) <= found[1]["step"] < 80


@pytest.mark.parametrize("started", ["gcs_server", "raylet"])
def test_sigterm_while_ray_starts_stops_with_one_line(tmp_path: Path, started: str) -> None:
    process = subprocess.Popen(
        command("run", EMBEDDED, "--name", "small", *METHODS, *SMALL),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and started not in {child.name() for child in psutil.Process(process.pid).children()}:
        time.sleep(0.01)
    process.terminate()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said == "stopped before anything was learned; start it again with the same command\n"


def fingerprints(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sigterm_stops_a_local_run_whose_copies_go_on_where_they_lie_to_the_same_result(
    local_run: Run, tmp_path: Path
) -> None:
    done = stopped(tmp_path, signal.SIGTERM, "--local")
    check_stopped(tmp_path, done, signal.SIGTERM, " --local")
    folder = tmp_path / "runs/small"
    before = fingerprints(folder)
    copy, moved = tmp_path / "runs/other", tmp_path / "elsewhere/renamed"
    shutil.copytree(folder, copy)

    words = ["--resume", "--local", "--set", "learner.weight_decay=0.5", "--set", "evaluation.draws=50"]
    refused = streamcvit("run", str(copy / "config.yaml"), *words, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout
    assert "learner.weight_decay: 0.0 -> 0.5; evaluation.draws: 100 -> 50" in refused.stderr
    assert "Resume with the run's own config.yaml, or allow it: --allow-change learner.weight_decay" in refused.stderr
    allowed = [f"--allow-change={key}" for key in ("learner.weight_decay", "evaluation")]
    done = streamcvit("run", str(copy / "config.yaml"), *words, *allowed, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (copy / "smolora/events.jsonl").read_text().splitlines()]
    noted = {event["key"]: (event["before"], event["after"]) for event in events if event["event"] == "changed"}
    assert noted == {"learner.weight_decay": ("0.0", "0.5"), "evaluation.draws": ("100", "50")}
    assert boundaries(copy / "smolora")[3] != boundaries(local_run.folder / "smolora")[3]
    assert fingerprints(folder) == before

    moved.parent.mkdir()
    folder.rename(moved)
    lost = streamcvit("run", EMBEDDED, "--name", "small", "--resume", "--local", cwd=tmp_path)
    assert lost.returncode == 2 and "was moved goes on with: streamcvit run FOLDER/config.yaml" in lost.stderr
    done = streamcvit("run", "renamed/config.yaml", "--resume", "--local", cwd=moved.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(local_run.folder, moved, ALL) == []
    assert not folder.exists()


def test_sigint_stops_a_run_on_ray_which_goes_on_with_other_numbers_of_actors_to_the_same_result(
    local_run: Run, tmp_path: Path
) -> None:
    done = stopped(tmp_path, signal.SIGINT)
    check_stopped(tmp_path, done, signal.SIGINT, "")
    config = str(tmp_path / "runs/small/config.yaml")
    counts = ["--set", "cluster.ingest_actors=3", "--set", "cluster.evaluators=2"]
    done = streamcvit("run", config, "--resume", *counts, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(local_run.folder, tmp_path / "runs/small", ALL) == []


@pytest.mark.parametrize("where", [["--local"], []], ids=["local", "ray"])
def test_a_disk_that_fills_up_stops_the_run_in_one_line_and_it_goes_on_when_there_is_room(
    local_run: Run, tmp_path: Path, where: list[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("making a small disk needs the right to mount one")
    try:
        words = ["run", EMBEDDED, "--name", "small", *where, "--method", "lora", *SMALL]
        done = streamcvit(*words, cwd=disk)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1 and "the disk is full" in lines[0] and "--resume" in lines[0], done.stderr
        folder = disk / "runs/small/lora"
        found = commit.newest_resumable(folder / "commits")
        assert found is not None and found[2] == []
        resume = ["run", str(disk / "runs/small/config.yaml"), "--resume", *where]
        again = streamcvit(*resume, cwd=disk)
        assert again.returncode == 2 and "the disk is full" in again.stderr, again.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done = streamcvit(*resume, cwd=disk)
        assert done.returncode == 0, done.stdout + done.stderr
        assert boundaries(folder) == boundaries(local_run.folder / "lora")
        assert [path for path in folder.rglob(".*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
