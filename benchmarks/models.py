"""Which model families of transformers' image-text-to-text mapping work: each built tiny from its config and tried.

    python benchmarks/models.py [FAMILY ...]

Every family runs in a process of its own: it is loaded, learned by four adapters, answered, asked alone and in a batch,
given other pictures, and resumed (`tests/familychecks.py`). Rows of the families named (all, without a name) are
written to results/models.json, those of others stay; then the table of docs/models.md is printed. A family whose
packages are not there (torchvision, timm, num2words) keeps the row that it has, or is named as not tried.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import inspect
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "models.json"
TITLES = {
    "loads": "loads",
    "lora": "LoRA",
    "moelora": "MoELoRA",
    "smolora": "SMoLoRA",
    "strlora": "StrLoRA",
    "generate": "answers",
    "batch": "batch",
    "sees": "sees",
}
OTHERS = {
    "refused": "Of the same mapping, refused because the model takes no image features computed beforehand",
    "not built": "Not built here, and served where they pass what is asked of a model when it is loaded",
}
TIMEOUT = 600


def try_family(name: str) -> dict[str, str]:
    """The checks of one family, in this process."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import torch
    from familychecks import check_all

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        return check_all(name, Path(place))


def tried(name: str) -> dict[str, Any]:
    """The checks of one family in a process of its own, which may die or never end."""
    began = time.perf_counter()
    words = [sys.executable, "-W", "ignore", __file__, "--one", name]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found = json.loads(lines[-1]) if lines else {"loads": f"the process ended with {done.returncode}"}
    except subprocess.TimeoutExpired:
        found = {"loads": f"takes more than {TIMEOUT} s"}
    return {"checks": found, "seconds": round(time.perf_counter() - began, 1)}


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record, and what failed or is refused below it, a line each."""
    head = ["family", *TITLES.values(), "needs"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    notes: list[str] = []
    for name, row in sorted(record["families"].items()):
        checks, needs = row["checks"], ", ".join(row["needs"])
        marks = [_mark(checks.get(title)) for title in TITLES]
        lines.append(f"| `{name}` | {' | '.join(marks)} | {needs} |")
        notes += [f"- `{name}`, {TITLES[title]}: {_shown(said)}" for title, said in checks.items() if said != "yes"]
    for name, needs in sorted(record["untried"].items()):
        lines.append(f"| `{name}` | {'not tried | ' + ' | ' * (len(TITLES) - 1)}{', '.join(needs)} |")
    for kind, said in OTHERS.items():
        lines += ["", f"{said}: {', '.join(f'`{name}`' for name in record['rest'][kind])}."]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def mapping() -> dict[str, list[str]]:
    """The rest of transformers' image-text-to-text mapping: what its class rules out, and what nobody built here."""
    import transformers
    from families import FAMILIES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    rest: dict[str, list[str]] = {"refused": [], "not built": []}
    tried = {name.replace("-", "").replace("_", "") for name in FAMILIES}
    for family, names in NAMES.items():
        if family.replace("-", "").replace("_", "") in tried:
            continue
        model = getattr(transformers, names if isinstance(names, str) else names[0])
        takes = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        rest["not built" if takes else "refused"].append(family)
    return rest


def _mark(said: str | None) -> str:
    return "" if said is None else "yes" if said == "yes" else "**no**"


def _shown(said: str) -> str:
    """One line without what Markdown would take for a mark."""
    return " ".join(said.replace("|", "/").replace("<", "&lt;").split())[:300]


def versions() -> dict[str, str]:
    """Packages that decide what is there, where they are installed."""
    names = ("torch", "transformers", "peft", "torchvision", "timm", "num2words")
    return {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name) is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(try_family(given.one)))
        return
    sys.path.insert(0, str(HERE.parent / "tests"))
    from families import FAMILIES, NEEDS

    from streamcvit.run.folder import machine

    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"families": {}}
    record["untried"] = {name: list(NEEDS[name]) for name in NEEDS if name not in record["families"]}
    record["rest"] = mapping()
    record["families"] = {name: row for name, row in record["families"].items() if name in FAMILIES}
    about = {"date": f"{datetime.date.today()}", "machine": machine(), "packages": versions()}
    for name in given.families or FAMILIES:
        needs = NEEDS.get(name, ())
        if lacking := [package for package in needs if importlib.util.find_spec(package) is None]:
            print(f"{name}: not tried, {', '.join(lacking)} is not installed", file=sys.stderr)
            continue
        row = {**tried(name), "needs": list(needs), **about}
        bad = [title for title, said in row["checks"].items() if said != "yes"]
        print(f"{name}: {', '.join(bad) or 'all'} {'fail' if bad else 'pass'}, {row['seconds']} s", file=sys.stderr)
        record["families"][name] = row
        record["untried"].pop(name, None)
        RESULT.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
