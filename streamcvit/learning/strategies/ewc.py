"""Online elastic weight consolidation (Kirkpatrick et al. 2017; Schwarz et al. 2018, "Progress & Compress")."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from streamcvit.learning.outputs import Outputs
from streamcvit.learning.strategies.importance import Importance


class EWC(Importance):
    """Hold weights by the diagonal of the Fisher information of what was learned.

    F_i = E[(d log p(answer | prompt) / d theta_i)^2] over the chunk's samples with their own answers (the empirical
    Fisher), I <- decay * I + F at each boundary (Schwarz et al., section 2.2; they apply the decay once more in the
    penalty, which `strength` takes in), and the loss has strength / 2 * sum_i I_i (theta_i - theta0_i)^2 besides
    (Kirkpatrick et al., equation 3). How F is estimated and scaled: `Importance`.
    """

    def measure(self, outputs: Outputs) -> torch.Tensor:
        """Log-likelihood of the answer tokens."""
        return -F.cross_entropy(outputs.logits.float(), outputs.targets, reduction="sum")

    def matter(self, gradient: torch.Tensor) -> torch.Tensor:
        """Its square."""
        return gradient.square()
