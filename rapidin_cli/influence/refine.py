"""From a shortlist that sketches made to the ranking that people see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rapidin_cli.data.examples import Example
from rapidin_cli.influence.exact import ExactScorer
from rapidin_cli.influence.score import Array, Found, extremes

if TYPE_CHECKING:
    from rapidin_cli.influence.retrieve import Options


@dataclass(frozen=True)
class Refined:
    """The kept examples.

    Attributes:
        found: their scores, exact if there were any exact ones; so are the totals of the
            shortlist.
        sketched: (m, 1 + T): what the sketches said; None without exact scores.
        training: for each, the influence of each learnt token; None likewise.
        shortlist: how many examples were scored exactly.
        sketch_error: root mean square of sketched minus exact totals over the shortlist.
        forward_mode: whether tokens were scored by forward-mode passes.
    """

    found: Found
    sketched: Array | None = None
    training: list[Array] | None = None
    shortlist: int = 0
    sketch_error: float = 0.0
    forward_mode: bool = True


def refine(
    scorer: ExactScorer,
    found: Found,
    examples: Sequence[Sequence[Example]],
    options: Options,
    progress: Callable[[int, int], None],
) -> Refined:
    """Score a shortlist exactly, and keep its best.

    Args:
        examples: for each slot of the shortlist, the equal rows that it stands for.
    """
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, len(found.slots))

    advance(0)
    first = [rows[0] for rows in examples]
    exact = scorer.scores(first, tokens=options.tokens, progress=advance)
    scores = np.concatenate([exact.totals[:, None].numpy(), exact.tokens.numpy()], axis=1)
    best = extremes(scores, options.top, options.token_top)
    training = scorer.training_tokens([first[int(n)] for n in best])
    error = float(np.sqrt(np.mean((found.scores[:, 0] - scores[:, 0]) ** 2))) if len(scores) else 0
    totals = found.totals.copy()
    totals[found.slots] = scores[:, 0]
    return Refined(
        Found(totals, found.slots[best], scores[best]),
        found.scores[best],
        [part.numpy() for part in training],
        len(found.slots),
        error,
        scorer.forward_mode,
    )
