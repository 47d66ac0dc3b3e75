"""Does anything grow? A long stream of small chunks; memory, descriptors and CPU time of every process.

    python benchmarks/soak.py [--chunks 1000] [--methods lora]

The metrics are asked for every ten seconds meanwhile. Memory is USS (what a process would give back), for the object
store the pages that Ray's arena has touched. The first quarter of the chunks is warm-up; over the rest a line is fitted
to the least values of ten-chunk bins (what is held between two pieces of work; a leak raises it). Given are its slope
per 100 chunks with a 95 % interval, and the largest step from bin to bin; chunks are those learned for learner and
ingest, which may be ahead, else those scored. What follows the last of them counts for the peak alone; once the actors
are gone, pages of libraries that the driver shared with them are its own. Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "soak.json"
MIB = 2**20
BIN = 10  # chunks a bin
SAMPLES = 32  # a chunk
SCRAPE = 10.0  # seconds, as a Prometheus would
LEARNING = ("LearnerActor", "IngestActor")
FLAT = 1.0  # MiB a 100 chunks: less is no leak worth the name


def role(process: psutil.Process, driver: int) -> str:
    """What a process is in the run."""
    if process.pid == driver:
        return "driver"
    title = (process.cmdline() or [""])[0]
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split("(")[0]
    return process.name()


def look(driver: psutil.Process) -> dict[str, dict[str, float]]:
    """Role -> MiB, descriptors and CPU seconds, summed over the processes of that role."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for process in [driver, *driver.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            name, cpu = role(process, driver.pid), process.cpu_times()
            row = found[name]
            row["uss"] += process.memory_full_info().uss / MIB
            row["descriptors"] += process.num_fds()
            row["cpu"] += cpu.user + cpu.system
            if name == "raylet":
                maps = [m.rss for m in process.memory_maps() if "plasma" in m.path]
                found["object store"]["uss"] += sum(maps) / MIB
    return found


def sizes(folder: Path) -> Counter[str]:
    """Bytes of the stream, and of each part of the methods' run folders."""
    found: Counter[str] = Counter()
    for place, _, names in os.walk(folder):  # goes on where a folder is gone by now
        for name in names:
            path = Path(place, name)
            parts = path.relative_to(folder).parts
            with contextlib.suppress(OSError):
                found[parts[0] if parts[0] == "stream" or len(parts) < 2 else parts[1]] += path.stat().st_size
    return found


def slope(chunks: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Slope per 100 chunks of the bins' least values, half the width of its 95 % interval, their largest step up."""
    from scipy import stats

    bins = chunks // BIN
    names = np.unique(bins)
    x = np.array([chunks[bins == b].mean() for b in names]) / 100
    y = np.array([values[bins == b].min() for b in names])
    if np.ptp(y) == 0:
        return 0.0, 0.0, 0.0
    fit = stats.linregress(x, y)
    return float(fit.slope), float(fit.stderr * stats.t.ppf(0.975, len(names) - 2)), float(np.diff(y).max())


def run(
    chunks: int, methods: list[str], place: Path
) -> tuple[list[tuple[int, int, dict]], list[tuple[int, Counter]], list[float], float]:
    """Run the stream; returns looks with the chunks scored and learned by then, folder sizes, seconds that the metrics
    took each time, and in all."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "streamcvit", "run", str(ROOT / "pipelines" / "embedded.yaml"), "--name", "soak"]
    for method in methods:
        words += ["--method", method]
    for setting in (
        f"out={place}", "stream.scenario.preset=generate", f"stream.scenario.chunks={chunks}",
        f"stream.scenario.samples_per_chunk={SAMPLES}", "stream.test_samples=4", "evaluation.draws=100",
        f"monitor.port={port}",
    ):  # fmt: skip
        words += ["--set", setting]
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    driver = psutil.Process(process.pid)
    looks: list[tuple[int, int, dict]] = []
    parts: list[tuple[int, Counter]] = []
    answered: list[float] = []
    scraped = began
    try:
        while process.poll() is None:
            scored = [place.joinpath("soak", method, "predictions") for method in methods]
            done = sum(len(os.listdir(folder)) for folder in scored if folder.is_dir())
            told = [place.joinpath("soak", method, "events.jsonl") for method in methods]
            learned = sum(path.read_text().count('"event": "chunk"') for path in told if path.exists())
            with contextlib.suppress(psutil.Error):
                found = look(driver)
                if found["driver"]["descriptors"]:  # else it is ending
                    looks.append((done, learned, found))
            if not parts or done >= parts[-1][0] + BIN:
                parts.append((done, sizes(place / "soak")))
            if time.monotonic() - scraped >= SCRAPE:
                scraped = time.monotonic()
                with contextlib.suppress(ConnectionError, urllib.error.URLError):  # not there yet, or gone
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read()
                    answered.append(time.monotonic() - scraped)
            time.sleep(1.0)
    finally:
        process.terminate()  # with Ray, where the soak itself ends early
        process.wait()
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    parts.append((chunks * len(methods), sizes(place / "soak")))
    return looks, parts, answered, time.monotonic() - began


def table(looks: list[tuple[int, int, dict]], total: int) -> list[dict[str, Any]]:
    """A row a role: slopes after warm-up, and CPU seconds a chunk in the second and the last quarter."""
    rows = []
    names = Counter(name for *_, found in looks for name in found)
    for name, seen in names.most_common():
        steps = [(learned if name in LEARNING else done, found.get(name)) for done, learned, found in looks]
        kept = [(done, row) for done, row in steps if row and total // 4 <= done < total]
        if name == "IDLE" or seen < len(looks) / 2 or len({done // BIN for done, _ in kept}) < 4:
            continue
        chunks = np.array([done for done, _ in kept], float)
        row: dict[str, Any] = {"process": name}
        for what in ("uss", "descriptors"):
            values = np.array([found.get(what, 0.0) for _, found in kept])
            row[what] = float(values[-1])
            row[f"{what}_slope"], row[f"{what}_half"], row[f"{what}_step"] = slope(chunks, values)
        row["uss_peak"] = max(row["uss"] for _, row in steps if row)
        cpu = np.array([found.get("cpu", 0.0) for _, found in kept])
        marks = [float(np.interp(total * q, chunks, cpu)) for q in (0.25, 0.5, 0.75, 1.0)]
        row["cpu_second_quarter"] = (marks[1] - marks[0]) / (total / 4)
        row["cpu_last_quarter"] = (marks[3] - marks[2]) / (total / 4)
        row["flat"] = (
            row["uss_slope"] - row["uss_half"] < FLAT and row["descriptors_slope"] - row["descriptors_half"] < 1
        )
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--methods", default="lora")
    args = parser.parse_args()
    methods = args.methods.split(",")
    with tempfile.TemporaryDirectory(prefix="scv-soak-") as place:
        looks, parts, answered, seconds = run(args.chunks, methods, Path(place))
        resumable = sum(1 for _ in Path(place).glob("soak/*/commits/*/resume"))
    total = args.chunks * len(methods)
    rows = table(looks, total)
    scrapes = {"times": len(answered), "median_seconds": float(np.median(answered)), "max_seconds": max(answered)}
    print(f"{total} chunks in {seconds:.0f} s; {resumable} commits resumable at the end")
    print(f"metrics: answered {len(answered)} times in {np.median(answered):.2f} s, at most {max(answered):.2f} s")
    print(
        f"{'process':22} {'USS MiB':>8} {'peak':>6} {'MiB/100 chunks':>18} {'step':>5} {'fds':>6} "
        f"{'fds/100 chunks':>17}   CPU s/chunk, 2nd and last quarter"
    )
    for row in rows:
        print(
            f"{row['process']:22} {row['uss']:8.0f} {row['uss_peak']:6.0f} "
            f"{row['uss_slope']:+9.2f} +- {row['uss_half']:5.2f} {row['uss_step']:5.1f} "
            f"{row['descriptors']:6.0f} {row['descriptors_slope']:+8.2f} +- {row['descriptors_half']:4.2f} "
            f"{row['cpu_second_quarter']:18.3f} {row['cpu_last_quarter']:10.3f}{'' if row['flat'] else '  GROWS'}"
        )
    early, late = next(p for p in parts if p[0] >= total // 4), parts[-1]
    grown = {name: (late[1][name] - early[1][name]) / MIB / (late[0] - early[0]) * 100 for name in late[1]}
    for name, mib in sorted(grown.items(), key=lambda item: -item[1]):
        if mib > 0.01:
            print(f"folder {name}: {late[1][name] / MIB:.1f} MiB, {mib:+.2f} MiB/100 chunks")
    from streamcvit.run.folder import machine, versions

    RESULT.parent.mkdir(exist_ok=True)
    record = {
        "date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions(), "chunks": total,
        "seconds": seconds, "resumable_commits": resumable, "metrics": scrapes, "processes": rows,
        "folder_mib_per_100_chunks": grown,
    }  # fmt: skip
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row["flat"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
