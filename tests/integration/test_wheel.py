"""What `pip install` gives a person who has no checkout: the command, its pipelines, the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, SMALL, environment

PARTS = ["streamcvit", "pipelines", "pyproject.toml", "setup.py", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel was installed into, built from a copy (a build leaves files beside its sources)."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "sources").mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / "sources" / part)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for words in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "sources")],
        [
            "install",
            "--no-deps",
            "--no-index",
            "--target",
            str(folder / "site"),
            "--find-links",
            str(folder),
            "streamcvit",
        ],
    ):
        done = subprocess.run([*pip, *words], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def run(installed: Path, cwd: Path, *words: str) -> str:
    """Run the installed command; what it printed."""
    env = {**environment(), "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [str(installed / "bin" / "streamcvit"), *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_wheel_runs_the_demo_and_its_next_commands(installed: Path, tmp_path: Path) -> None:
    printed = run(installed, tmp_path, "demo", "--local", *SMALL, "--set", "stream.scenario.chunks=2")
    assert (tmp_path / "runs/demo/report.html").exists() and "smolora" in printed
    assert "finished" in run(installed, tmp_path, "watch", "demo", "--terminal")
    (shown,) = [line for line in printed.splitlines() if "scenario show" in line]
    assert "all" in run(installed, tmp_path, *shown.split()[1:])
    code = "import streamcvit.pipeline as p; print(p.__file__, p.builtin('real-small'))"
    env = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert all(path.startswith(str(installed)) for path in found.stdout.split()) and found.stdout, found.stderr


def test_a_wheel_holds_every_module_and_data_file_of_the_checkout(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(root)) for path in found}

    pipelines = {f"pipelines/{path.name}" for path in (ROOT / "pipelines").glob("*.yaml")}
    assert files(installed / "streamcvit") == files(ROOT / "streamcvit") | pipelines
