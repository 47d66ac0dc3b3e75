"""Memory aware synapses (Aljundi et al. 2018), which ask no answer of a sample."""

from __future__ import annotations

import torch

from streamcvit.learning.outputs import Outputs
from streamcvit.learning.strategies.importance import Importance


class MAS(Importance):
    """Hold weights by how much the outputs depend on them.

    Omega_i = E[|d ||F(x)||^2 / d theta_i|] over the chunk's samples (Aljundi et al., equations 3 to 5, in the form of
    section 4.1 for outputs of many dimensions), where F(x) are the logits at the answer's places, as He et al. take it;
    I <- decay * I + Omega at each boundary (decay 1 is theirs up to the scale), and the loss has
    strength / 2 * sum_i I_i (theta_i - theta0_i)^2 besides. How Omega is estimated and scaled: `Importance`.
    """

    def measure(self, outputs: Outputs) -> torch.Tensor:
        """Squared L2 norm of the logits."""
        return outputs.logits.float().square().sum()

    def matter(self, gradient: torch.Tensor) -> torch.Tensor:
        """Its magnitude."""
        return gradient.abs()
