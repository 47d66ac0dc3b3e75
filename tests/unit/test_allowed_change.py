"""A change that a person allowed is noted, or asked for again: whenever the run is killed."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streams import TASKS, stream_samples, test_sets

from streamcvit import launch
from streamcvit.config import RunConfig
from streamcvit.data.shards.write import write_stream
from streamcvit.run.folder import RunFolder
from streamcvit.run.guard import Stop
from streamcvit.run.resume import changes


class Killed(BaseException):
    """kill -9, as far as files are concerned."""


def config(root: Path, lr: float) -> RunConfig:
    methods = {"lora": {"adapter": "lora"}, "two": {"adapter": "lora"}}
    return RunConfig(name="r", out=str(root), methods=methods, learner={"lr": lr})  # type: ignore[arg-type]


@pytest.mark.parametrize("moment", ["_read_predictions", "adopt", "adopt of the second"])
def test_a_change_allowed_before_a_kill_is_asked_for_again_until_every_folder_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    old, new = config(tmp_path, 1e-3), config(tmp_path, 5e-3)
    index = write_stream(tmp_path / "r" / "stream", stream_samples(), TASKS, test_sets(), 0)
    (old.folder() / "config.yaml").write_text(old.dump())
    for method in old.methods:
        RunFolder(old, method, index, launch.task_counts(old, index, method), "base")

    @contextlib.contextmanager
    def starting(*_: object) -> Iterator[Callable[[object], types.SimpleNamespace]]:
        yield lambda _: types.SimpleNamespace(
            base_digest="base", url="", probing=None, evaluators=1, farewell=lambda: None, faults=list
        )

    monkeypatch.setattr(launch, "_starting", starting)
    monkeypatch.setattr(launch, "check_settings", lambda *_: [])
    monkeypatch.setattr(launch, "model_digest", lambda _: "base")
    monkeypatch.setattr(launch.Driver, "run", lambda _: None)
    monkeypatch.setattr(launch, "_report", lambda _: None)
    with monkeypatch.context() as patch:
        name = moment.split()[0]
        real = getattr(RunFolder, name)

        def killed(self: RunFolder, *arguments: object) -> None:
            if moment.endswith("second") and self.method == "lora":
                return real(self, *arguments)
            raise Killed

        patch.setattr(RunFolder, name, killed)
        with pytest.raises(Killed):
            launch._execute(new, "weights", Stop(), lambda **_: None, True, True, ["learner.lr"])
    assert changes(new, "base", index.digest) == {"learner.lr": ("0.001", "0.005")}
    launch._execute(new, "weights", Stop(), lambda **_: None, True, True, ["learner.lr"])
    assert changes(new, "base", index.digest) == {}
    for method in new.methods:
        assert '"changed"' in (new.folder(method) / "events.jsonl").read_text()
