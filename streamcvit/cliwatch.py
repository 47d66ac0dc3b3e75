"""`streamcvit watch`: a page that follows a run, or its essentials in a terminal; it only reads the run's folder."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from streamcvit.screen import Screen

out = Screen()


def watch(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name in runs/.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page on this machine; 0: any free one.")] = 0,
    terminal: Annotated[bool, typer.Option("--terminal", help="Show the essentials here, without a page.")] = False,
) -> None:
    """Watch a run, one that goes on or one that has ended: a page that fills in while it learns."""
    from streamcvit.monitoring.watch import Site, follower_of

    follower, chosen = follower_of(run)
    if terminal:
        from streamcvit.monitoring.watch.screen import show

        show(follower, out, chosen)
        return
    from streamcvit.monitoring.exporter import serve

    name = follower.folder.resolve().name
    with serve(None, port, site=Site(follower, name, chosen)) as server:
        address = server.url.removesuffix("metrics")
        out.print(f"watching {name}: {address}  (Ctrl-C ends it)", markup=False, soft_wrap=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return
