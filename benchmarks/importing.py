"""What `streamcvit import` takes: a benchmark's layout with generated rows of text, imported in a process of its own.

    python benchmarks/importing.py [--rows 10000 100000 1000000]

The layout is that of He et al. (nine tasks, JSON lists of LLaVA rows, a chunk a task). Prints, a size a line, seconds,
rows a second, by how much the process grew at its peak (`VmHWM`) beyond an import of 900 rows, and the size of the
index; writes them to results/importing.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from streamcvit.data.layouts import LAYOUTS
from streamcvit.importing import import_stream
from streamcvit.run.folder import machine

RESULT = Path(__file__).parent / "results" / "importing.json"
BENCHMARK = "he"
TESTS = 20
MIB = 1 << 20


def row(number: int) -> dict[str, Any]:
    """A training row without a picture."""
    asked = f"What is {number} and {number % 7}?\nAnswer the question using a single word or phrase."
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"{number % 7 + number}"}]
    return {"id": str(number), "conversations": turns}


def write(folder: Path, count: int) -> None:
    """The benchmark's files with so many training rows."""
    tasks = LAYOUTS[BENCHMARK].tasks
    for place, files in enumerate(tasks.values()):
        (folder / files.train).parent.mkdir(parents=True)
        with (folder / files.train).open("w") as out:
            numbers = range(place, count, len(tasks))
            out.write("[" + json.dumps(row(numbers[0])))
            out.writelines(",\n" + json.dumps(row(number)) for number in numbers[1:])
            out.write("]")
        tests = [{"question_id": one, "text": f"What is {one}?", "answer": [str(one)] * 10} for one in range(TESTS)]
        if files.strcvit in ("gqa", "ocrvqa"):
            tests = [{**one, "answer": one["answer"][0]} for one in tests]
        (folder / files.test).write_text(json.dumps(tests))


def peak() -> int:
    """The process's greatest size so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def measure(folder: Path) -> None:
    """Import a folder and print what it took; warmed by a small one."""
    import_stream(BENCHMARK, folder / "few", folder / "few-stream")
    before, began = peak(), time.perf_counter()
    index = import_stream(BENCHMARK, folder / "many", folder / "many-stream")
    seconds, grown = time.perf_counter() - began, peak() - before
    size = (folder / "many-stream" / "index.parquet").stat().st_size
    print(json.dumps({"rows": len(index), "seconds": seconds, "grown": grown, "index": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return
    record: dict[str, Any] = {"date": f"{datetime.date.today()}", "machine": machine(), "sizes": []}
    for count in given.rows:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place, "few"), 900)
            write(Path(place, "many"), count)
            words = [sys.executable, __file__, "--measure", place]
            found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True).stdout)
        record["sizes"].append(found)
        print(
            f"{found['rows']} rows: {found['seconds']:.1f} s, {found['rows'] / found['seconds']:.0f} rows/s, grown by "
            f"{found['grown'] / MIB:.0f} MiB ({found['grown'] / found['rows']:.0f} bytes a row), index "
            f"{found['index'] / MIB:.1f} MiB",
            flush=True,
        )
    print(f"({record['machine']}, {record['date']})")
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
