"""Steps that cannot be taken: a loss or gradient that is not finite changes nothing, is counted, and ends the run
where it does not end by itself."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

import torch

from streamcvit.errors import UserError
from streamcvit.models.batch import Batch

REASONS = ("loss", "gradient")
"""What may not be finite; a verdict is 0 where both are, else 1 + the place of the first that is not."""


class Diverged(UserError):
    """Nothing can be learned from here on; what was learned since the last good commit must not be committed."""


@dataclass(frozen=True)
class Skip:
    """A step that was not taken: all weights and states are as before it, its samples count as seen.

    Attributes:
        step: its number.
        chunk: of its batch.
        positions: stream positions of its samples.
        reason: one of `REASONS`.
    """

    step: int
    chunk: int
    positions: tuple[int, ...]
    reason: str

    def event(self) -> dict[str, Any]:
        """As JSON values; `position` is the first, which tells it from other events."""
        return {**asdict(self), "positions": list(self.positions), "position": self.positions[0]}


def judge(loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
    """The verdict on a step as a 0-dim float32 tensor; nothing waits for the device."""
    norm = grad_norm.detach().float().to(loss.device)  # that of no gradients at all is on the host
    loss_fine, norm_fine = torch.isfinite(torch.stack((loss.detach().float(), norm)))
    return torch.where(loss_fine, 2.0 * ~norm_fine, 1.0)


class Verdicts:
    """Counts skipped steps.

    A verdict may come as a tensor on a device, beside whose work the host runs ahead. Its copy to the host is begun at
    once and looked at after the next step was begun, so that the device never waits for the host; `settle` waits.

    Args:
        limit: of steps skipped in a row.

    Attributes:
        total: skipped steps so far by reason.
        in_a_row: those since the last step that was taken.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total: Counter[str] = Counter()
        self.in_a_row = 0
        self._open: deque[tuple[Batch, int, float | torch.Tensor, torch.cuda.Event | None]] = deque()
        self._fresh: list[Skip] = []

    def note(self, batch: Batch, step: int, verdict: float | torch.Tensor) -> None:
        """Take the verdict on a step, and look at those before it.

        Raises:
            Diverged: too many steps in a row were skipped.
        """
        event = None
        if isinstance(verdict, torch.Tensor) and verdict.is_cuda:
            here = torch.empty((), pin_memory=True)
            verdict = here.copy_(verdict, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        late = isinstance(verdict, torch.Tensor)
        self._open.append((batch, step, verdict, event))
        self._look(1 if late else 0)

    def settle(self) -> None:
        """Look at all verdicts; raises as `note`."""
        self._look(0)

    def take(self) -> list[Skip]:
        """Steps skipped since this was asked last."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def state(self) -> dict[str, Any]:
        """JSON values for a commit."""
        return {"total": dict(self.total), "in_a_row": self.in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.total, self.in_a_row = Counter(state.get("total", {})), state.get("in_a_row", 0)
        self._open.clear()
        self._fresh = []

    def _look(self, leave: int) -> None:
        while len(self._open) > leave:
            batch, step, verdict, event = self._open.popleft()
            if event is not None:
                event.synchronize()
            number = int(verdict)
            if not number:
                self.in_a_row = 0
                continue
            skip = Skip(step, batch.chunk, batch.positions, REASONS[number - 1])
            self._fresh.append(skip)
            self.total[skip.reason] += 1
            self.in_a_row += 1
            if self.in_a_row >= self.limit:
                raise Diverged(
                    f"{self.in_a_row} steps in a row could not be taken, up to step {step} at position "
                    f"{skip.positions[-1]}: the {skip.reason} is not finite",
                    fix="Go on from the last commit with a smaller rate",
                )
