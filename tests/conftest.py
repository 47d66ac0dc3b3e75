"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
from running import METHODS, SMALL, Run, streamcvit, watched

ROOT = Path(__file__).resolve().parent.parent

# The servers of the tests are on this machine, whatever proxy stands between it and the web.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with golden numbers, oracles and the small real benchmark; absent on most machines."""
    folder = Path(os.environ.get("STREAMCVIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no shared test data at {folder}; set STREAMCVIT_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def ray_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All strategies on four small chunks, with Ray actors."""
    cwd = tmp_path_factory.mktemp("ray")
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", *METHODS, *SMALL]
    printed, scrapes, told = watched(words, cwd)
    return Run(cwd / "runs" / "small", printed, scrapes, told)


@pytest.fixture(scope="session")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same in a plain loop."""
    cwd = tmp_path_factory.mktemp("local")
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", "--local", *METHODS, *SMALL]
    done = streamcvit(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(cwd / "runs" / "small", done.stdout, [])
