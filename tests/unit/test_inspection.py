"""`streamcvit check` says what a run would find and take, refuses what it would refuse, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamcvit.errors import UserError
from streamcvit.inspection import inspect
from streamcvit.pipeline import builtin, load_config

TINY = ["stream.scenario.chunks=2", "stream.scenario.samples_per_chunk=40", "stream.test_samples=3"]


def lines(tmp_path: Path, *settings: str) -> list[str]:
    config = load_config(builtin("embedded"), [*TINY, f"out={tmp_path / 'runs'}", *settings], name="r")
    methods = {name: config.methods[name] for name in ("zero-shot", "lora")}
    return list(inspect(config.model_copy(update={"methods": methods}), local=True))


def test_a_pipeline_is_looked_at_whole_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = "\n".join(lines(tmp_path))
    assert "stream: 80 samples in 2 chunks of 11 tasks" in said
    counts = re.findall(r"^\w+: (\d+) samples, 3 test samples \(.*pattern\); instructions: ", said, re.M)
    assert len(counts) == 11 and sum(map(int, counts)) == 80
    assert "'Provide the bounding box coordinates of the region.'" in said
    assert re.search(r"^tokens of 80 samples drawn: median \d+, 95 % up to \d+, longest \d+; 0 are longer", said, re.M)
    assert "tokens of a picture: median 16, most 16" in said
    assert re.search(r"^lora: 0\.\d+ s a step here: .* for 10 steps", said, re.M)
    # In two chunks every task is seen by the end; each has three test samples.
    assert re.search(
        r"^lora: 0\.\d+ s an answer here, in batches of 4: about \d+ s for \d+ answers at all chunks", said, re.M
    )
    assert "lora reaches 21 of 21 linear layers of the language model, 104,448 weights trained" in said
    assert re.search(r"^disk: \d+ MiB of stream, about \d+ MiB of commits$", said, re.M)
    assert re.search(r"^memory: 4 MiB of weights; the run needs about \d+ MiB", said, re.M)
    assert list(tmp_path.iterdir()) == []


def test_samples_longer_than_the_limit_are_counted(tmp_path: Path) -> None:
    (said,) = [line for line in lines(tmp_path, "model.max_length=44") if line.startswith("tokens of 80")]
    longer = re.search(r"(\d+) are longer than model.max_length \(44\)", said)
    assert longer and 0 < int(longer[1]) < 80


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("methods.lora.options.target_modules=[nothing_like_it]", "nothing_like_it"),
        ("stream.scenario.preset=strcvit-25", "strcvit-25"),
        ("model.device=gpu", "is no device"),
        (
            "model.max_length=36 stream.scenario.samples_per_chunk=24",
            r"^methods\.lora: \d+ of 24 samples of chunk 1 cannot be learned, the first: ",
        ),
    ],
)
def test_what_a_run_would_refuse_is_refused(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        lines(tmp_path, *settings.split())
    assert not (tmp_path / "runs").exists()
