"""Scores: what they mean, and what is kept of them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from rapidin_cli.errors import UsageError
from rapidin_cli.gradients.layout import RowLayout
from rapidin_cli.gradients.scaling import reciprocal

Array = np.ndarray[Any, Any]


Normalisation = Literal["layer", "whole", "none"]
Curvature = Literal["", "gram", "ekfac", "adam"]


@dataclass(frozen=True)
class Score:
    """One way to compare a query's gradient q with an example's gradient g.

    All are sums over layers l of a(q, l) b(g, l) <P_l q_l, g_l>: a and b divide by norms, and
    P_l is the unit matrix or an inverse curvature.

    Attributes:
        normalise: `layer` divides by the norm of each layer's gradient, `whole` by that of the
            whole gradient.
        damping: added to the curvature unless the question says otherwise, as a share of its
            mean eigenvalue in each layer (tests/benchmarks/faithfulness.py).
        curvature: what P_l inverts: `gram`, the second moments of the cached sketches;
            `ekfac`, the Kronecker-factored ones that `rin curvature` has collected; `adam`,
            the roots of the optimizer's, one for each weight.
    """

    name: str
    normalise: Normalisation
    curvature: Curvature
    unit: str
    description: str
    damping: float = 0.0

    def divisors(self, norm: torch.Tensor) -> torch.Tensor:
        """Return what layers are divided by, 1 / a or 1 / b, from their norms (..., L)."""
        match self.normalise:
            case "layer":
                return norm
            case "whole":
                whole: torch.Tensor = torch.linalg.vector_norm(norm, dim=-1, keepdim=True)
                return whole.expand_as(norm)
        return torch.ones_like(norm)

    def row_weights(self, norm: torch.Tensor) -> torch.Tensor | None:
        """Return the weights of stored rows, whose layers have norm 1; None for all ones."""
        match self.normalise:
            case "layer":
                return None
            case "whole":
                return norm * reciprocal(torch.linalg.vector_norm(norm, dim=-1, keepdim=True))
        return norm

    def row_sizes(self, norm: torch.Tensor) -> torch.Tensor:
        """Return the norms of the gradients that rows stand for, divided as they are scored.

        From the norms (n, L) of their layers; (n,).
        """
        weights = self.row_weights(norm)
        if weights is None:
            if norm.numel() and norm.amin() > 0:  # nearly always: ten times as fast
                return norm.new_full((len(norm),), norm.shape[1] ** 0.5)
            weights = (norm > 0).float()
        sizes: torch.Tensor = torch.linalg.vector_norm(weights, dim=1)
        return sizes


AUTO = "auto"
"""The best score that is available."""

SIGN = "positive: training on the example made the generation more likely; negative: less likely"
SCORES = {
    score.name: score
    for score in (
        Score(
            "rapidin",
            "layer",
            "",
            "sum over layers of the cosine of both gradients in that layer",
            "Every layer counts alike, whatever the size of its gradient (RapidIn, ACL 2024).",
        ),
        Score(
            "dot",
            "none",
            "",
            "inner product of both gradients (nats per unit learning rate)",
            "The first-order change of the generation's log-probability by one SGD step on the "
            "example (TracIn); long and surprising examples score high.",
        ),
        Score(
            "cosine",
            "whole",
            "",
            "cosine of both whole gradients, between -1 and 1",
            "Direction only, dominated by the layers with the largest gradients.",
        ),
        Score(
            "gram",
            "none",
            "gram",
            "inner product through the inverse second moments of the cached gradients",
            "Directions that many examples share count less (TRAK, TrackStar); the second "
            "moments are those of the cached sketches, layer by layer.",
            damping=1.0,
        ),
        Score(
            "ekfac",
            "none",
            "ekfac",
            "inner product through the inverse EK-FAC curvature (influence function)",
            "What up-weighting the example would do to the generation's log-probability near the "
            "optimum (Grosse et al. 2023, arXiv 2308.03296).",
            damping=1.0,
        ),
        Score(
            "adam",
            "none",
            "adam",
            "inner product along the optimizer's step (nats per unit learning rate)",
            "The first-order change of the generation's log-probability by one step of Adam on the "
            "example, with the second moments of the checkpoint's optimizer.pt (LESS, Xia et al. "
            "2024).",
            damping=0.01,
        ),
    )
}


def check_score(name: str, damping: float | None) -> None:
    """Refuse a score that no rows can answer.

    Raises:
        UsageError: an unknown name, or a damping for a score that inverts no curvature.
    """
    if name not in (AUTO, *SCORES):
        raise UsageError(
            f"there is no score {name!r}", hint=f"choose one of {', '.join((AUTO, *SCORES))}"
        )
    if damping is None:
        return
    if not math.isfinite(damping):
        raise UsageError(f"--damping {damping} is not finite", hint="rin retrieve --damping 0.1")
    if name != AUTO and not SCORES[name].curvature:
        damped = ", ".join(score.name for score in SCORES.values() if score.curvature)
        raise UsageError(
            f"the score {name} has no damping",
            hint=f"omit --damping, or choose a --score that has one: {damped}",
        )


def choose_score(name: str, layout: RowLayout, damping: float | None = None) -> Score:
    """Return a score that the cached rows can answer.

    Raises:
        UsageError: see `check_score`; or one that these rows cannot answer.
    """
    check_score(name, damping)
    if name != "rapidin" and not layout.per_layer:
        raise UsageError(
            f"rows with sketch = {layout.spec.sketch!r} mix all layers, so only the score rapidin "
            f"can use them, not {name}",
            hint="rin retrieve --score rapidin",
        )
    if SCORES[name].curvature == "gram" and layout.spec.row != "sketch":
        raise UsageError(
            "the score gram needs sketch rows, and these are factor rows",
            hint="rin retrieve --score ekfac",
        )
    return SCORES[name]
