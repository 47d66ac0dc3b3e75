"""Inputs that once broke a reader, replayed; see tests/faults/fuzz.py."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from pathlib import Path

import pytest
from hostile import TARGETS, Escape, guarded, seeds

CORPUS = Path(__file__).parents[1] / "data" / "hostile"
KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


def test_every_kept_input_has_a_target():
    assert {path.parent.name for path in KEPT} <= set(TARGETS)
    assert len(KEPT) >= 10


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_kept_input_gets_an_answer_runs_nothing_and_opens_nothing_outside(path, tmp_path):
    target = TARGETS[path.parent.name]
    for seed in seeds(path.parent.name, tmp_path)[:1]:  # imports whatever is imported late
        target(seed, tmp_path)
    data = path.read_bytes()
    with guarded(tmp_path, seconds=30):
        target(data, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_pass_their_targets(name, tmp_path):
    for seed in seeds(name, tmp_path):
        TARGETS[name](seed, tmp_path)


ACTS = {
    "a file outside": lambda: open("/etc/passwd").close(),
    "a shell": lambda: os.system("true"),
    "a process": lambda: subprocess.run(["true"]),
    "unpickling": lambda: pickle.loads(b"cos\nsystem\n."),
    "a connection": lambda: socket.create_connection(("127.0.0.1", 9)),
    "compiled text": lambda: eval("1"),
}


@pytest.mark.parametrize("act", ACTS)
def test_the_guard_sees_what_it_is_there_for(act, tmp_path):
    with pytest.raises(Escape), guarded(tmp_path):
        ACTS[act]()
