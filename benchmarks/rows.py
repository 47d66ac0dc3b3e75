"""What importing rows takes: each kind of file, read as a run reads it, in a process of its own.

    python benchmarks/rows.py [--rows 100000]

Every row holds one question and one answer without a picture. Prints, a kind a line, the file's size, the seconds and
by how much the process grew at its peak (`VmHWM`), and writes them to results/rows.json.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamcvit.data.files.tasks import load_tasks
from streamcvit.run.folder import machine

RESULT = Path(__file__).parent / "results" / "rows.json"
KINDS = ("lines.jsonl", "list.json", "table.csv", "table.parquet")
MIB = 1 << 20


def row(number: int) -> dict[str, Any]:
    """A row of the format `qa`."""
    return {
        "id": f"row-{number}",
        "question": f"What is {number} and {number % 7}?",
        "answer": f"{number % 7 + number}",
    }


def write(path: Path, count: int) -> None:
    """A file of so many rows, of the kind that its name says."""
    rows = [row(number) for number in range(count)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


def peak() -> int:
    """The process's greatest size so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def read(path: Path) -> None:
    """Load the file as a task's training file and print what it took; warmed by a small one of its kind."""

    def load(name: str) -> int:
        return len(load_tasks(path.parent, {"t": {"train": name, "test": "test.jsonl", "format": "qa"}})["t"].train)

    load(f"few-{path.name}")
    before, began = peak(), time.perf_counter()
    count = load(path.name)
    print(json.dumps({"rows": count, "seconds": time.perf_counter() - began, "grown": peak() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read(given.read)
        return
    record: dict[str, Any] = {"date": f"{datetime.date.today()}", "machine": machine(), "kinds": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "test.jsonl", 10)
        for kind in KINDS:
            write(folder / f"few-{kind}", 10)
            write(folder / kind, given.rows)
            words = [sys.executable, __file__, "--read", str(folder / kind)]
            found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True).stdout)
            record["kinds"][kind] = found
            size = (folder / kind).stat().st_size / MIB
            print(
                f"{kind}: {found['rows']} rows, {size:.1f} MiB, {found['seconds']:.1f} s, "
                f"grown by {found['grown'] / MIB:.0f} MiB"
            )
    print(f"({record['machine']}, {record['date']})")
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
