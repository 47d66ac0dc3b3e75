"""Keeps actors at their posts: finds those that died, fell silent or are stuck, and puts new ones in their place.

Ray restarts an actor whose process is gone, at once and without asking whether that helps; one that is stopped
(SIGSTOP) or waits for ever it does not notice. So the restarts are ours: Ray is told to restart nothing and to repeat
nothing, an actor is asked for its pulse all the time, and a call that an actor did not live to answer is made again
to its successor. Every method of an actor is idempotent, so a call that was half done, or done and not answered, may
come twice.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamcvit.config import ClusterConfig
from streamcvit.errors import UserError
from streamcvit.run.messages import Restart

LONGEST_BACKOFF = 30.0
TAKEN_SECONDS = 0.5  # until a name that a dead actor still holds is tried again


@dataclass(frozen=True)
class Pulse:
    """What an actor answers from a thread of its own, however busy it is.

    Attributes:
        moves: counts what the actor does (forwards, batches); the number itself means nothing.
        working: whether a call is being served, so that `moves` should go up.
        word: the newest thing it has to tell.
    """

    moves: int
    working: bool
    word: Any = None


@dataclass(eq=False)
class Call:
    """A call that outlives the actor it was made to."""

    post: Post
    method: str
    arguments: tuple[Any, ...]
    reference: Any = None  # None: to be made when there is an actor


@dataclass(eq=False)
class Post:
    """A named place for an actor, and what is known about who holds it."""

    name: str
    make: Callable[[int], Any]
    actor: Any = None
    lives: int = 0
    due: float = 0.0  # when the next actor is to start, while there is none
    calls: list[Call] = field(default_factory=list)
    pulse: Any = None  # question in flight
    asked: float = 0.0
    unheard: float | None = None  # when the first question since the last answer was asked
    answered: bool = False
    last: Pulse | None = None
    moved: float = 0.0
    error: str = ""  # of the last failure, until something succeeds
    deaths: deque[float] = field(default_factory=deque)
    fruitless: int = 0  # lives in a row that did not move


class Supervisor:
    """Starts actors, carries calls to them, and replaces them.

    Args:
        ray: the connected module.
        config: times and limits.
        clock: seconds, steady; only a test needs another.
    """

    def __init__(self, ray: Any, config: ClusterConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.ray, self.config, self.clock = ray, config, clock
        self.posts: dict[str, Post] = {}
        self.restarts: list[Restart] = []
        """What was replaced, until somebody takes it from here."""

    def start(self, name: str, make: Callable[[int], Any]) -> Post:
        """Fill a post; `make(lives)` starts an actor under `name`, which had so many lives before."""
        post = self.posts[name] = Post(name, make)
        self._fill(post)
        return post

    def call(self, post: Post, method: str, *arguments: Any) -> Call:
        """Ask a post's actor, whoever that is by then, for something."""
        call = Call(post, method, arguments)
        post.calls.append(call)
        self._submit(post)
        return call

    def wait(self, seconds: float) -> list[tuple[Call, Any]]:
        """Calls that are answered, at once where there are some, after `seconds` at the latest; watches meanwhile.

        Raises:
            UserError: a user's mistake in an actor, or an actor that cannot be kept alive.
        """
        self._tend()
        calls = {call.reference: call for post in self.posts.values() for call in post.calls if call.reference}
        pulses = {post.pulse: post for post in self.posts.values() if post.pulse is not None}
        asked = [*calls, *pulses]
        if not asked:
            time.sleep(seconds)
            return []
        self.ray.wait(asked, num_returns=1, timeout=seconds)
        ready, _ = self.ray.wait(asked, num_returns=len(asked), timeout=0)
        answers: list[tuple[Call, Any]] = []
        for reference in ready:
            if reference in pulses:
                self._hear(pulses[reference], reference)
            elif calls[reference].reference is reference:  # else its actor was lost a moment ago
                answers += self._answer(calls[reference], reference)
        return answers

    def result(self, calls: list[Call]) -> list[Any]:
        """Wait for all of some calls; no other call may be under way."""
        found: dict[Call, Any] = {}
        while len(found) < len(calls):
            found |= dict(self.wait(self.config.heartbeat_seconds))
        return [found[call] for call in calls]

    # -- the rounds ------------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        now = self.clock()
        for post in self.posts.values():
            if post.actor is None:
                if now >= post.due:
                    self._fill(post)
                continue
            self._judge(post, now)
            if post.actor is not None and post.pulse is None and now - post.asked >= self.config.heartbeat_seconds:
                self._ask(post, now)

    def _ask(self, post: Post, now: float) -> None:
        post.pulse, post.asked = post.actor.pulse.remote(), now
        if post.unheard is None:
            post.unheard = now

    def _judge(self, post: Post, now: float) -> None:
        config, silent = self.config, 0.0 if post.unheard is None else now - post.unheard
        if silent <= (config.silent_seconds if post.answered else config.start_seconds):
            return
        if post.pulse is not None and self.ray.wait([post.pulse], timeout=0)[0]:
            self._hear(post, post.pulse)  # there, but not read: it was the driver that was busy or stopped
        else:
            self._lose(post, "silent", f"no pulse for {silent:.0f} s")

    def _hear(self, post: Post, reference: Any) -> None:
        """Take an answer to the question for a pulse."""
        if post.pulse is not reference:
            return
        post.pulse = None
        try:
            found: Pulse = self.ray.get(reference)
        except self.ray.exceptions.ActorUnavailableError:
            return  # not reached: the clock of its silence goes on
        except self.ray.exceptions.RayError as error:
            self._lose(post, "died", _line(error))
            return
        now = self.clock()
        if post.last is None or not found.working or found.moves != post.last.moves:
            post.moved = now
        if found.moves and (post.last is None or found.moves != post.last.moves):
            post.fruitless = 0
        post.unheard, post.answered, post.last = None, True, found
        if now - post.moved > self.config.stuck_seconds:
            self._lose(post, "stuck", f"a pulse, but no move for {now - post.moved:.0f} s")
        else:
            self._submit(post)

    def _answer(self, call: Call, reference: Any) -> list[tuple[Call, Any]]:
        post, exceptions = call.post, self.ray.exceptions
        try:
            value = self.ray.get(reference)
        except (exceptions.ActorUnavailableError, exceptions.ObjectLostError):
            call.reference = None  # made again after the next pulse
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            text = _line(error.cause or error)
            if text == post.error:
                raise UserError(f"{post.name} failed twice the same way: {text}", fix=RESUME) from error
            post.error = text
            self._lose(post, "failed", text)
        except exceptions.RayError as error:
            self._lose(post, "died", _line(error))
        else:
            post.calls.remove(call)
            post.error = ""
            return [(call, value)]
        return []

    # -- replacing -------------------------------------------------------------------------------------------------

    def _lose(self, post: Post, cause: str, detail: str) -> None:
        """Give an actor up, and decide when its successor starts, or that there is none."""
        now, config = self.clock(), self.config
        # Ray's node kills the process: at once where it answers, after five seconds where it is stopped.
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(post.actor, no_restart=True)
        post.actor = post.pulse = None
        for call in post.calls:
            call.reference = None
        self.restarts.append(Restart(post.name, cause, detail))
        post.deaths.append(now)
        while post.deaths and now - post.deaths[0] > config.restart_window_seconds:
            post.deaths.popleft()
        post.fruitless += 1
        if max(len(post.deaths), post.fruitless) > config.restarts:
            raise UserError(
                f"{post.name} was lost {max(len(post.deaths), post.fruitless)} times, the last time it {_said(cause)}: "
                f"{detail}",
                where="cluster.restarts",
                fix=RESUME,
            )
        wait = config.backoff_seconds * 2.0 ** (post.fruitless - 2) if post.fruitless > 1 else 0.0
        post.due = now + min(LONGEST_BACKOFF, wait)

    def _fill(self, post: Post) -> None:
        now = self.clock()
        try:
            post.actor = post.make(post.lives)
        except self.ray.exceptions.ActorAlreadyExistsError:  # the cluster has not buried the old one yet
            post.due = now + TAKEN_SECONDS
            return
        post.lives += 1
        post.moved = now
        post.unheard, post.answered, post.last = None, False, None
        self._ask(post, now)
        if post.lives > 1:
            post.actor.ready.remote()  # load now, not at the first call
        self._submit(post)

    def _submit(self, post: Post) -> None:
        """Make the calls that wait, in their order."""
        if post.actor is None:
            return
        for call in post.calls:
            if call.reference is None:
                call.reference = getattr(post.actor, call.method).remote(*call.arguments)


RESUME = "Find out what stops it, then continue with --resume"


def _said(cause: str) -> str:
    return {"silent": "fell silent", "stuck": "was stuck"}.get(cause, cause)


def _line(error: BaseException) -> str:
    """The part of Ray's long messages that says something."""
    text = " ".join(str(getattr(error, "error_msg", error)).split())
    _, _, reason = text.rpartition("Worker exit type:")
    name = type(error).__name__
    return f"{name}: {(reason or text).strip()}"[:300]
