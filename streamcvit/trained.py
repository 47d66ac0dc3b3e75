"""What a run folder holds that can answer: its methods' commits, found, checked, put on the base; it only reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from streamcvit.adapters import ADAPTERS
from streamcvit.config import RunConfig
from streamcvit.data.sample import TaskSpec
from streamcvit.data.shards.index import StreamIndex
from streamcvit.errors import UserError
from streamcvit.learning import commit as commits
from streamcvit.learning.epochs import parse_name
from streamcvit.models.attention import ANYWHERE
from streamcvit.models.base import fetch, model_digest
from streamcvit.models.snapshot import adapter_state, load_adapter_state, state_digest
from streamcvit.monitoring import find_runs
from streamcvit.pipeline import load_config
from streamcvit.run.folder import read_run
from streamcvit.run.loading import load_encoder, load_model, routes, settle, wrap

ZERO_SHOT = "zero-shot"
"""The bare base, whether the run scored it or not."""
_RESTORE = "Restore it from a copy"


@dataclass(frozen=True)
class Trained:
    """A method of a run at one of its commits.

    Attributes:
        method: its name in the run.
        run: the method's run folder.
        config: the run's settings.
        base_digest: of the base that the run learned on.
        commit: folder of the commit; None: the bare base.
        note: the commit's `state.json`.
    """

    method: str
    run: Path
    config: RunConfig = field(repr=False)
    base_digest: str
    commit: Path | None = None
    note: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def chunk(self) -> int:
        """The chunk that it learned last, counted from 1; 0: none."""
        return int(self.note.get("chunk", -1)) + 1

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.note.get("step", 0))

    @property
    def digest(self) -> str:
        """Of the adapter's weights; of the base where there is none."""
        return str(self.note.get("digest", self.base_digest))

    @property
    def adapter(self) -> Path:
        """Folder that `PeftModel.from_pretrained` loads."""
        assert self.commit is not None
        return self.commit / "adapter"

    @property
    def told(self) -> list[str] | None:
        """The tasks that the adapter knows, where it must be told which a sample is of; None for any other.

        Raises:
            UserError: its configuration is damaged.
        """
        if self.commit is None or not ADAPTERS[self.config.methods[self.method].adapter].needs_task:
            return None
        path = self.adapter / "adapter_config.json"
        try:
            return [str(task) for task in json.loads(path.read_text(encoding="utf-8"))["tasks"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot be read ({error})", where=str(path), fix=_RESTORE) from None

    def tensors(self) -> dict[str, Any]:
        """The adapter's weights; every file of the adapter has the checksum that the commit was sealed with.

        Raises:
            UserError: a file is damaged or gone, or the weights are not those that the run scored.
        """
        try:
            for name, expected in self.note["files"].items():
                if name.startswith("adapter/"):
                    with open(self.adapter.parent / name, "rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                            raise UserError("checksum differs", where=file.name, fix=_RESTORE)
            found = load_file(self.adapter / "adapter_model.safetensors")
        except FileNotFoundError as error:
            fix = "Try again if the run goes on: it removes commits inside a chunk; else restore it from a copy"
            raise UserError("is gone", where=str(error.filename or self.adapter), fix=fix) from None
        except SafetensorError as error:
            raise UserError(f"damaged adapter ({error})", where=str(self.adapter), fix=_RESTORE) from None
        if (digest := state_digest(found)) != self.digest:
            told = f"the adapter's digest is {digest[:12]}, the commit's {self.digest[:12]}"
            raise UserError(told, where=str(self.adapter), fix=_RESTORE)
        return found


def find(
    folder: Path | str,
    methods: Sequence[str] = (),
    chunk: int | None = None,
    commit: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Trained]:
    """Methods of a run, finished, stopped or going on, each at one commit.

    Args:
        folder: run folder, or one method's.
        methods: which, in this order; `zero-shot` is the bare base. None named: all that have such a commit.
        chunk: the boundary of that chunk, counted from 1; None: the newest.
        commit: a step, or the name of a commit's folder; another way to choose than `chunk`.
        say: told which methods are left out, where none was named.

    Raises:
        UserError: no such run, method or commit, or one that is damaged.
    """
    if chunk is not None and commit is not None:
        raise UserError("a chunk and a commit are named", fix="Name one of --chunk and --commit")
    there = {str(read_run(path).get("method") or path.name): path for path in find_runs(folder)}
    found: list[Trained] = []
    lacking: list[UserError] = []
    for method in dict.fromkeys(methods or there):
        if method not in there and method != ZERO_SHOT:
            fix = f"Choose from {', '.join(dict.fromkeys([*there, ZERO_SHOT]))}"
            raise UserError(f"the run has no method {method!r}", where=str(folder), fix=fix)
        path = there.get(method, next(iter(there.values())))
        config, digest = load_config(path / "config.yaml"), str(read_run(path)["base_digest"])
        settings = config.methods.get(method)
        if method not in there or (settings is not None and settings.adapter == "none"):
            found.append(Trained(method, path, config, digest))
        elif settings is None:
            raise UserError(f"names no method {method!r}", where=str(path / "config.yaml"), fix=_RESTORE)
        else:
            try:
                where, note = _choose(path / "commits", chunk, commit)
            except UserError as error:
                if methods:
                    raise
                lacking.append(error)  # a method that the run has not come to yet, or one of another number of chunks
                continue
            found.append(Trained(method, path, config, digest, where, note))
    if lacking and not any(got.commit for got in found):
        raise lacking[0]
    for one in lacking:
        say(f"left out: {one}")
    return found


def learners(folder: Path | str) -> list[str]:
    """Methods of a run that learn something."""
    found = {str(read_run(path).get("method") or path.name): path for path in find_runs(folder)}
    configs = {method: load_config(path / "config.yaml") for method, path in found.items()}
    return [method for method, config in configs.items() if config.methods[method].adapter != "none"]


def _choose(folder: Path, chunk: int | None, commit: str | None) -> tuple[Path, dict[str, Any]]:
    there = commits.list_commits(folder)
    if commit is not None:
        wanted = commit.strip("/")
        named = [path for path in there if path.name == wanted]
        if not named and wanted.isdigit():
            named = [path for path in there if (place := parse_name(path.name)) and place[0] == int(wanted)]
        if not named:
            steps = ", ".join(str(place[0]) for path in there if (place := parse_name(path.name)))
            fix = f"There are steps {steps}" if steps else "Wait until the run has committed"
            raise UserError(f"there is no commit {commit!r}", where=str(folder), fix=fix)
        return named[-1], commits.read_note(named[-1])
    ends = []
    for path in reversed(there):
        note = commits.read_note(path)
        if note.get("boundary", True):
            if chunk in (None, note["chunk"] + 1):
                return path, note
            ends.append(note["chunk"] + 1)
    if chunk is None:
        raise UserError(
            "no chunk is learned to its end yet",
            where=str(folder),
            fix="Name a commit inside one with --commit STEP, or wait",
        )
    fix = f"There are the ends of chunks {', '.join(map(str, sorted(ends)))}" if ends else "None is learned to its end"
    raise UserError(f"there is no commit of the end of chunk {chunk}", where=str(folder), fix=fix)


def tasks_of(trained: Trained) -> dict[str, TaskSpec]:
    """How the run's tasks are answered, by name; empty where its stream does not lie beside it any more."""
    try:
        return dict(StreamIndex.open(trained.run.parent / "stream").tasks)
    except UserError:
        return {}


def with_model(config: RunConfig, **given: Any) -> RunConfig:
    """A run's settings with another place, device or dtype of its base; None keeps the run's own."""
    changed = {key: value for key, value in given.items() if value is not None}
    if "name_or_path" in changed:
        changed["revision"] = ""  # the run's own is of the run's own base
    if changed.get("device") == "cpu" or changed.get("dtype") == "float32":
        changed["attention"] = config.model.attention if config.model.attention in ANYWHERE else ANYWHERE[0]
    return config.model_copy(update={"model": config.model.model_copy(update=changed)})


def _check_base(trained: Sequence[Trained], name: str, revision: str) -> None:
    digest = model_digest(fetch(name, revision))
    other = next((one for one in trained if one.base_digest != digest), None)
    if other is not None:
        raise UserError(
            f"the base here has digest {digest[:12]}, the one that {other.method} learned on {other.base_digest[:12]}",
            where=name,
            fix="Name that one with --model, or take this one all the same with --other-base",
        )


class Bench:
    """A run's base, and on it one commit of it after another.

    Args:
        trained: commits of one run; the base is loaded as the first one's settings say.
        model: where the base lies, if elsewhere than the run's settings say.
        device: another than the run's.
        dtype: another than the run's.
        other_base: take a base with another digest than the run's, too.

    Attributes:
        base: the loaded base.
        encoder: embeds instructions.

    Raises:
        UserError: the base is another one than the run learned on, or cannot be loaded.
    """

    def __init__(
        self,
        trained: Sequence[Trained],
        *,
        model: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        other_base: bool = False,
    ) -> None:
        first = trained[0]
        self.config = with_model(first.config, name_or_path=model, device=device, dtype=dtype)
        name = self.config.model.name_or_path
        if not other_base:
            _check_base(trained, name, self.config.model.revision)
        settle(self.config)
        self._load()

    def _load(self) -> None:
        self.base = load_model(self.config)
        self.encoder = load_encoder(self.config, self.base)
        self._held: Any = None

    def hold(self, trained: Trained) -> Any:
        """The base's model with a commit's adapter on it, in eval mode; the bare one for the bare base.

        Raises:
            UserError: the adapter is damaged, does not fit the base, or was learned with another instruction encoder.
        """
        if self._held is not None:
            self._held.unload()
            self._held = None
            if not self.base.restore():
                del self.base, self.encoder  # two do not fit beside each other
                self._load()
        if trained.commit is None:
            return self.base.model
        tensors = trained.tensors()
        config = trained.config.model_copy(update={"model": self.config.model})
        model = wrap(self.base, self.encoder, config, trained.method, trained.told or ())
        self._held = model
        fix = "Name the base that the run learned on with --model"
        try:
            load_adapter_state(model, tensors)
        except ValueError as error:
            raise UserError(str(error), where=str(trained.adapter), fix=fix) from None
        # In the types that they have here: what is trained whole is of the base's dtype, which may be another one.
        held = adapter_state(model)
        if any(not held[name].equal(tensors[name].to(held[name].dtype)) for name in held):
            raise UserError("the model does not hold the adapter's weights", where=str(trained.adapter), fix=fix)
        if routes(model) and trained.note.get("encoder") != self.encoder.identity:
            raise UserError(
                "the instruction encoder here is another one than the learner's",
                where=self.config.model.instruction_encoder,
                fix="Put the same files there",
            )
        return model.eval()
