"""The command itself: where it runs, and what a shell completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamcvit import cli
from streamcvit.config import RunConfig
from streamcvit.pipeline import builtin, load_config


def test_on_windows_one_line_says_where_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(cli, "err", cli.Screen(stderr=True))
    monkeypatch.setattr(cli, "_windows", lambda: True)
    monkeypatch.setattr(sys, "argv", ["streamcvit", "doctor"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.startswith("error: Windows is not supported. Run streamcvit in WSL 2")


@pytest.mark.parametrize(
    ("words", "samples", "tests", "methods"),
    [
        ([], 180, 40, list(cli.DEMO)),
        (["--set", "stream.test_samples=7"], 180, 7, list(cli.DEMO)),
        (["--full"], 0, 0, list(load_config(builtin("embedded"), []).methods)),
    ],
)
def test_the_demo_is_a_part_of_the_benchmark_unless_it_is_asked_for_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], samples: int, tests: int, methods: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[RunConfig] = []
    monkeypatch.setattr(cli, "_run", lambda config, local: asked.append(config))
    assert CliRunner().invoke(cli.app, ["demo", *words]).exit_code == 0
    (config,) = asked
    stream = config.stream
    assert (stream.scenario.samples_per_chunk, stream.test_samples, list(config.methods)) == (samples, tests, methods)


@pytest.mark.parametrize(("typed", "offered"), [("streamcvit sce", "scenario"), ("streamcvit run --resu", "--resume")])
def test_a_shell_completes_commands_and_options(tmp_path: Path, typed: str, offered: str) -> None:
    code = "import sys; sys.argv = ['streamcvit']; from streamcvit.cli import main; main()"
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_STREAMCVIT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == [offered], done.stderr
