"""The options of a question."""

import math
from dataclasses import dataclass

from rapidin_cli.influence.score import AUTO


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        score: a key of `SCORES`, or `auto`: `Project.retrieve` chooses.
        exact: this many times the number of kept examples are scored exactly, and up to four
            times that where sketches leave doubt, however long it takes; 0: sketches decide;
            None: what is likeliest to matter, for as long as `within` says.
        within: seconds for the exact scores of a question, once the gradients of its tokens are
            known; what is shown of the best is worked out after that, for half as long.
        top: examples to keep overall, of each sign.
        token_top: examples to keep for each explained token, of each sign.
        cells: for this many examples of each sign, compute the influence of each training token
            on each explained one; exact scores only.
        damping: of an inverse curvature, as a share of its mean eigenvalue in each layer;
            None: the score's default.
        tokens: whether to score each explained token.
        max_new_tokens: length limit of a generation.
        batch_tokens: padded tokens of a batch of token gradients.
    """

    score: str = AUTO
    exact: int | None = None
    within: float = 20.0
    top: int = 10
    token_top: int = 5
    cells: int = 0
    damping: float | None = None
    tokens: bool = True
    max_new_tokens: int = 64
    batch_tokens: int = 4096

    @property
    def refines(self) -> bool:
        """Whether any example is scored exactly."""
        return self.within > 0 if self.exact is None else self.exact > 0

    @property
    def budget(self) -> float:
        """Seconds for the exact scores of a question."""
        return self.within if self.exact is None else math.inf
