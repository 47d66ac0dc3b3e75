"""Which methods are told the task of samples, and the tasks that a stream can tell them."""

from __future__ import annotations

from collections.abc import Collection

from streamcvit.adapters import ADAPTERS
from streamcvit.config import RunConfig
from streamcvit.data.shards.index import INDEX_NAME, StreamIndex
from streamcvit.embedded.changed import tasks_of
from streamcvit.errors import UserError
from streamcvit.run.ownkinds import strategy_of


def told(config: RunConfig, method: str) -> bool:
    """Whether a method is told the task of samples, by its adapter or its strategy; one that the config lacks is not.

    Raises:
        UserError: the strategy is one's own and cannot be loaded.
    """
    if method not in config.methods:
        return False
    adapter = ADAPTERS.get(config.methods[method].adapter)
    return (adapter is not None and adapter.needs_task) or strategy_of(config, method).needs_task


def known_tasks(config: RunConfig) -> list[str]:
    """The tasks of a config's stream in the order of its index, before that is written."""
    stream = config.stream
    if stream.source == "embedded":
        return list(tasks_of(stream.returns))
    if stream.source == "shards":
        copy = config.folder() / "stream"
        return list(StreamIndex.open(copy if (copy / INDEX_NAME).exists() else stream.data).tasks)
    return list(stream.tasks)


def task_sizes(config: RunConfig, method: str) -> dict[str, list[str]]:
    """`sizes` of an adapter that is told tasks, before the stream is written; empty for any other."""
    adapter = ADAPTERS.get(config.methods[method].adapter)
    return {"tasks": known_tasks(config)} if adapter is not None and adapter.needs_task else {}


def check(config: RunConfig, tasks: Collection[str] | None = None) -> None:
    """Whether a stream tells tasks apart, where a method has to be told them.

    Args:
        config: the run.
        tasks: of its stream; None: those that are known before it is written.

    Raises:
        UserError: it does not.
    """
    for name, method in config.methods.items():
        if not told(config, name):
            continue
        if config.stream.source == "follow":
            fix = "Take a method that is told no task"
            raise UserError("the tasks of a stream that goes on are not known ahead", where=f"methods.{name}", fix=fix)
        if "tasks" in method.options:
            raise UserError("tasks are those of the stream", where=f"methods.{name}.options.tasks", fix="Remove it")
        found = known_tasks(config) if tasks is None else tasks
        if len(found) < 2:
            only = f"only {next(iter(found))!r}" if found else "none"
            raise UserError(
                f"{name} must be told the task of each sample, and the stream has no tasks to tell apart ({only})",
                where=f"methods.{name}",
                fix="Name the stream's tasks, or leave this method out",
            )
