"""Coverage-guided fuzzing of everything that reads: `python tests/faults/fuzz.py --minutes 10 [--target image]`.

Needs atheris (`pip install -e .[fuzz]`). A find is an exception other than the reader's own, a broken promise of
`tests/hostile.py`, a hang, memory without bounds, a file opened outside the folder, or anything run. They are minimised
into `--out`; once mended, they belong into `tests/data/hostile/<target>/`, from where a unit test replays them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
CORPUS = TESTS / "data" / "hostile"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
NAMES = ("tar", "reader", "index", "json", "image", "importers")
HANG_SECONDS, MEMORY_MIB = 20, 4096


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["streamcvit.data", "PIL", "json"]):
        import hostile
    warnings.simplefilter("ignore")  # printing one opens the source file it came from
    target = hostile.TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        for seed in hostile.seeds(name, Path(work)):  # also imports whatever is imported late
            target(seed, Path(work))

        def once(data: bytes) -> None:
            with hostile.guarded(Path(work)):
                target(data, Path(work))

        atheris.Setup([sys.argv[0], *options], once)
        atheris.Fuzz()


def minimise(name: str, path: Path) -> None:
    """Write `small-<path>`: the input without all that can go while it still fails in the same way."""
    import hostile

    def failure(data: bytes) -> str:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
            try:
                with hostile.guarded(Path(work), HANG_SECONDS):
                    hostile.TARGETS[name](data, Path(work))
            except BaseException as fault:  # whatever it is, it is what is looked for
                place = traceback.extract_tb(fault.__traceback__)[-1]
                return f"{type(fault).__name__} {place.filename}:{place.lineno}"
        return ""

    with tempfile.TemporaryDirectory() as work:
        for seed in hostile.seeds(name, Path(work)):
            hostile.TARGETS[name](seed, Path(work))
    data, deadline = path.read_bytes(), time.monotonic() + 60
    wanted, size = failure(data), len(data) // 2
    while wanted and size and time.monotonic() < deadline:
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            less = data[:at] + data[at + size :]
            if failure(less) == wanted:
                data = less
            else:
                at += size
        size //= 2
    path.with_name(f"small-{path.name}").write_bytes(data)
    print(f"  {wanted or 'not seen again'}: {len(data)} bytes in {path.parent}/small-{path.name}", flush=True)


def child(name: str, options: list[str], log: Path) -> int:
    """Fuzz in a process of its own; its output goes to `log`."""
    with log.open("w") as file:
        words = [sys.executable, __file__, "--target", name, "--inside", "--", *options]
        return subprocess.run(words, stdout=file, stderr=subprocess.STDOUT).returncode


def main() -> int:
    """Fuzz the targets one after another; 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together")
    parser.add_argument("--target", choices=NAMES, action="append")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for finds, logs and grown corpora")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--minimise", type=Path, help="only make this find of the target small")
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    names = asked.target or list(NAMES)
    if asked.inside:
        fuzz(names[0], asked.options)
        return 0
    if asked.minimise:
        minimise(names[0], asked.minimise)
        return 0
    found = 0
    for name in names:
        out = asked.out / name
        corpus = out / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        import hostile

        with tempfile.TemporaryDirectory() as work:
            for number, seed in enumerate(hostile.seeds(name, Path(work))):
                (corpus / f"seed-{number}").write_bytes(seed)
        seconds = asked.minutes * 60 / len(names)
        limits = [f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", "-max_len=16384", "-use_value_profile=1"]
        folders = [str(corpus), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else [])]
        began = time.monotonic()
        prefix = f"-artifact_prefix={out}/find-"
        code = child(name, [*limits, f"-max_total_time={int(seconds)}", prefix, *folders], out / "log.txt")
        lines = (out / "log.txt").read_text(errors="replace").splitlines()
        runs = next((line for line in reversed(lines) if "cov:" in line), "no coverage line").strip()
        print(f"{name}: {time.monotonic() - began:.0f} s, exit {code}: {runs[:110]}", flush=True)
        for path in sorted(out.glob("find-*")) if code else []:
            found += 1
            subprocess.run([sys.executable, __file__, "--target", name, "--minimise", str(path)])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
