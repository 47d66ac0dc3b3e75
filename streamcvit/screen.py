"""The console that everything prints to."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console


class Screen(Console):
    """A console whose reader may go: what else is said goes nowhere, and the work goes on.

    Ctrl-C in `streamcvit run ... | tee log` ends `tee` before the run has stopped in good order; rich would end the
    process then.

    Args:
        settings: of a rich console.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, **settings)

    def on_broken_pipe(self) -> None:
        """Say nothing more, whatever is still buffered included."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
