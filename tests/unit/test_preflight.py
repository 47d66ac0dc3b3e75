"""Mistakes that no type of a setting shows are found before anything is written, and by words that help."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.launch import execute
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.local import LocalPool

TINY = ["stream.scenario.chunks=1", "stream.scenario.samples_per_chunk=8", "stream.test_samples=2"]


def start(tmp_path: Path, *settings: str, local: bool = True, method: str = "lora") -> None:
    config = load_config(builtin("embedded"), [*TINY, f"out={tmp_path / 'runs'}", *settings], name="r")
    execute(config.model_copy(update={"methods": {method: config.methods[method]}}), local=local)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.device=gpu", "device gpu: is no device. Use auto, cpu, cuda"),
        ("model.device=cuda:77", "device cuda:77: there"),
        ("methods.lora.options.r=eight", "methods.lora.options: lora: r must be a whole number (got 'eight')"),
        ("methods.lora.options.lora_dropout=0.1x", "lora_dropout must be a number (got '0.1x')"),
        ("methods.lora.options.use_rslora=1", "use_rslora must be true or false (got 1)"),
        ("methods.lora.options.rr=8", "lora has no option 'rr'. Did you mean r? It has r, target_modules,"),
        ("methods.lora.strategy_options.memory=8", "strategy_options: sequential has no option 'memory'. It has none"),
        ("methods.lora={strategy: replay, strategy_options: {mem: 8}}", "'mem'. It has memory, per_step"),
        ("methods.lora={strategy: replay, strategy_options: {memory: x}}", "methods.lora.strategy_options: replay: "),
        ("methods.lora={strategy: ewc, strategy_options: {strength: -1}}", "ewc: strength must be at least 0, not -1"),
        ("methods.lora={adapter: none, options: {r: 8}}", "the adapter 'none' takes no options"),
        ("methods.lora.lrs={routers: 1e-3}", "methods.lora.lrs.routers: 'routers' fits none of the"),
        ("methods.lora.lrs={(: 1e-3}", "methods.lora.lrs.(: '(' is neither a group (adapter, A, B,"),
        ("model.instruction_encoder=./nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        start(tmp_path, setting)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("monitor.host=203.0.113.9", "203.0.113.9:0: this host is none of this machine's addresses. Give monitor.host"),
        ("monitor.host=no.such.host.invalid", "none of this machine's addresses"),
        ("cluster.address=127.0.0.1:1", "cluster.address 127.0.0.1:1: no cluster answers there"),
        ("cluster.evaluators=256", "too little memory"),
    ],
)
def test_a_mistake_of_where_it_runs_is_found_before_anything_is_written_or_started(
    tmp_path: Path, setting: str, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        start(tmp_path, setting, local=False)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_port_is_found_before_anything_is_written_or_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: this port is in use"):
            start(tmp_path, f"monitor.port={port}", local=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_before_it_learns_leaves_nothing_and_its_name_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def broken(*_: object) -> None:
            assert (tmp_path / "runs/r/stream").is_dir()
            raise UserError("the model does not load")

        patch.setattr(LocalPool, "__init__", broken)
        with pytest.raises(UserError, match="the model does not load"):
            start(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:  # and one that was killed leaves its stream
        patch.setattr(LocalPool, "__init__", broken)
        patch.setattr("streamcvit.launch._remove_stream", lambda _: None)
        with pytest.raises(UserError):
            start(tmp_path)
    left = StreamIndex.open(tmp_path / "runs/r/stream").digest
    start(tmp_path, "seed=7", method="zero-shot")
    assert StreamIndex.open(tmp_path / "runs/r/stream").digest != left
