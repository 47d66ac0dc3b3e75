"""The one error a user is shown without a traceback, and the way a run is stopped."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; the command prints it as one line and exits with code 2.

    Args:
        what: what is wrong, in the user's words.
        where: file, row, key or port it is wrong at.
        fix: how to mend it, as an imperative sentence.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what if not where else f"{where}: {what}"]
        if fix:
            parts.append(fix)
        super().__init__(". ".join(part.rstrip(".") for part in parts) + ".")

    def __reduce__(self) -> tuple:
        # Exceptions cross process borders between actors; keyword arguments need this to survive.
        return (_rebuild, (self.what, self.where, self.fix))


def _rebuild(what: str, where: str, fix: str) -> UserError:
    return UserError(what, where=where, fix=fix)


class Stopped(KeyboardInterrupt):
    """The person asked the run to stop; what was learned is committed. Not an Exception: no library may swallow it.

    Args:
        number: of the signal.
        how: what was stopped, and how to go on.
    """

    def __init__(self, number: int | None = None, how: str = "stopped") -> None:
        super().__init__(number, how)
        self.number, self.how = number or 2, how
