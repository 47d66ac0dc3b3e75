"""One small embedded run with Ray and the same without, shared by the tests of this folder."""

from __future__ import annotations

import pytest
from runs import METHODS, ROOT, SMALL, Run, streamcvit, watched


@pytest.fixture(scope="session")
def ray_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All strategies on four small chunks, with Ray actors."""
    cwd = tmp_path_factory.mktemp("ray")
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", *METHODS, *SMALL]
    printed, scrapes = watched(words, cwd)
    return Run(cwd / "runs" / "small", printed, scrapes)


@pytest.fixture(scope="session")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same in a plain loop."""
    cwd = tmp_path_factory.mktemp("local")
    words = ["run", str(ROOT / "pipelines/embedded.yaml"), "--name", "small", "--local", *METHODS, *SMALL]
    done = streamcvit(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(cwd / "runs" / "small", done.stdout, [])
