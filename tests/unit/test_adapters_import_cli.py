"""`streamcvit adapters import` as a user meets it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_models import LINEARS, tiny_llama, tiny_llava
from peft import PeftModel
from published_files import moelora_of, publish

from streamcvit.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    """Runs the command in this process: exit code, what it printed, what it complained."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["streamcvit", "adapters", "import", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A published MoELoRA of the tiny Llama that does not say top_k, with a projector."""
    tensors = moelora_of(tiny_llama(), LINEARS)
    folder = publish(tmp_path / "theirs", "MOELORA", tensors, pickled=True, lora_alpha=12, expert_num=2, r=6)
    trained = {"weight": torch.ones(32, 32), "bias": torch.ones(32)}
    torch.save({f"model.mm_projector.0.{name}": trained[name] for name in trained}, folder / "non_lora_trainables.bin")
    return folder


def test_it_says_what_it_mapped_and_what_it_left(command: Command, theirs: Path, tmp_path: Path) -> None:
    code, printed, complained = command(theirs, "--to", tmp_path / "ours", "--set", "top_k=1")
    assert (code, complained) == (0, "")
    for said in ("14 modules", "layers.#.self_attn.q_proj", "top_k", "as given", "mm_projector.0.weight"):
        assert said in printed
    loaded = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "ours"))
    assert loaded.peft_config["default"].top_k == 1  # type: ignore[attr-defined]


def test_a_model_given_by_folder_places_modules_and_takes_the_projector(
    command: Command, theirs: Path, tmp_path: Path
) -> None:
    tiny_llava().save_pretrained(tmp_path / "llava")
    words = ["--to", tmp_path / "ours", "--set", "top_k=1", "--model", tmp_path / "llava", "--projector"]
    code, printed, complained = command(theirs, *words)
    assert code == 0, complained
    assert "language_model" in printed
    loaded = PeftModel.from_pretrained(tiny_llava(), str(tmp_path / "ours"))
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "llava")
    state = loaded.state_dict()
    (key,) = [name for name in state if "linear_1.modules_to_save.default.weight" in name]
    assert torch.equal(state[key], torch.ones(32, 32))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "does not say top_k"),
        (["--set", "top_k"], "not of the form"),
        (["--set", "top_k=1", "--set", "nonsense=1"], "no setting of this name (1): nonsense"),
        (["--set", "top_k=1", "--projector"], "Name it: --model"),
        (["--set", "top_k=1", "--model", "./nowhere"], "no such model folder"),
        (["--set", "top_k=1", "--model", "embedded"], "another size"),
        (["--set", "top_k=1", "--skip", "("], "not a regular expression"),
        (["--set", "top_k=1", "--skip", "layers"], "no adapter weights"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    command: Command, theirs: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    code, _, complained = command(theirs, "--to", tmp_path / "ours", *words)
    assert code == 2
    assert said in complained
    assert len(complained.splitlines()) == 1
    assert "Traceback" not in complained
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_an_existing_folder_is_refused(command: Command, theirs: Path, tmp_path: Path) -> None:
    code, _, complained = command(theirs, "--to", tmp_path, "--set", "top_k=1")
    assert code == 2
    assert "exists already" in complained
