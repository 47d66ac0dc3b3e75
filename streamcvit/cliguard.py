"""`streamcvit resume`: let a run go on that its guard has paused."""

from __future__ import annotations

from typing import Annotated

import typer

from streamcvit.clirun import Run, out, say_once
from streamcvit.errors import UserError


def resume(
    run: Run,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for it to take the word.")] = 60.0,
) -> None:
    """Let a paused run go on; one that was stopped while it was paused goes on once it is started with --resume."""
    from streamcvit.monitoring.guarded import GO_ON
    from streamcvit.monitoring.states import PAUSED, holder, run_folder, state_of
    from streamcvit.run.forgetting import let_go_on

    folder = run_folder(run)
    state = state_of(folder)
    if all(method.state != PAUSED for method in state.methods):
        raise UserError(f"it is not paused, but {state.state}", where=str(folder), fix="`streamcvit status` tells more")
    let_go_on(folder)
    if holder(folder) is None:
        out.print(f"{state.name} will not stand still again; start it: {state.go_on}", markup=False, soft_wrap=True)
        return
    fix = "It goes on when it sees go-on.json in its folder; look whether its process still works"
    late = UserError(f"it has not taken the word in {wait:g} s", where=str(folder), fix=fix)
    say_once(lambda: not (folder / GO_ON).exists(), wait, folder, late)
