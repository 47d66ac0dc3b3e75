"""What the documents say can be done, done."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from running import ROOT, Run, environment

from streamcvit.settings import settings_page


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.S)


def test_the_notebook_example_loads_a_commit_with_stock_peft_and_learns(ray_run: Run) -> None:
    code = "\n".join(blocks("notebook.md")).replace("runs/demo", str(ray_run.folder))
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"points: \d", done.stdout)
    assert "loss before learning:" in done.stdout


@pytest.mark.parametrize("room", ["adapters", "models", "learning", "evaluation", "run"])
def test_the_core_imports_neither_ray_nor_webdataset(room: str) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules['ray'] = sys.modules['webdataset'] = None\n"
        f"import streamcvit.{room} as room\n"
        "for found in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "    importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_rooms_import_only_what_lies_below_them() -> None:
    below = {
        "data": set(),
        "adapters": set(),
        "models": {"adapters", "data"},
        "learning": {"models", "adapters", "data"},
        "evaluation": {"models", "adapters", "data"},
        "monitoring": {"models", "adapters", "data"},
        "embedded": {"models", "adapters", "data"},
    }
    below["run"] = {"config", "guarding", *below}  # `guarding` is a section of the config
    below["cluster"] = {"run", *below["run"]}
    below["comparison"] = {"evaluation", "monitoring", "models", "data", "pipeline", "published", "explain"}
    below["start"] = {"pipeline", "run", *below["run"]}  # `init` stands in front, as cli and launch do
    wrong = []
    for room, allowed in below.items():
        for path in (ROOT / "streamcvit" / room).rglob("*.py"):
            for found in re.findall(r"^\s*(?:from|import) streamcvit\.(\w+)", path.read_text(), re.M):
                if found not in allowed | {room, "errors", "screen"}:
                    wrong.append(f"{path.relative_to(ROOT)} imports {found}")
    assert wrong == []


def test_the_settings_page_is_what_the_settings_themselves_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page(), "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    rows = re.findall(r"^\| `.*$", settings_page(), re.M)
    assert len(rows) > 100
    assert [row for row in rows if row.rstrip().endswith("|  |")] == []


def test_the_architecture_page_says_every_file_in_one_phrase() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = set(re.findall(r"^\| `(\S+\.py)` \| \S", page, re.M))
    files = {path.relative_to(ROOT / "streamcvit") for path in (ROOT / "streamcvit").rglob("*.py")}
    assert listed == {str(path) for path in files if path.name not in ("__init__.py", "__main__.py")}


def test_every_link_between_documents_leads_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_no_two_files_of_tests_share_a_name_as_pytest_could_not_collect_both() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert [name for name in names if names.count(name) > 1] == []
