"""The options of a question."""

from collections.abc import Callable
from dataclasses import dataclass

from rapidin_cli.influence.score import AUTO

StageProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        score: a key of `SCORES`, or `auto`: `Project.retrieve` chooses.
        exact: this many times the number of kept examples are scored exactly, and up to four
            times that where sketches leave doubt; 0: sketches decide.
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
    exact: int = 4
    top: int = 10
    token_top: int = 5
    cells: int = 0
    damping: float | None = None
    tokens: bool = True
    max_new_tokens: int = 64
    batch_tokens: int = 4096
