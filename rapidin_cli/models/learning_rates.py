"""Weights of several checkpoints: the learning that each one stands for.

TracInCP (Pruthi et al. 2020) sums over checkpoints, weighted by their step size. What a
checkpoint stands for is the training that led up to it: the sum of the learning rates since
the one before. (Its own last rate would not do: it is zero at the end of a usual schedule.)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError

STATE_FILE = "trainer_state.json"
UNKNOWN = "equal weights: no learning rates are known"


def checkpoint_weights(
    names: Sequence[str],
    rates: Sequence[float],
    folders: Sequence[Path],
    starts: Sequence[bool] = (),
) -> tuple[list[float], str]:
    """Return a weight for each checkpoint, adding up to one, and where they come from.

    rin.toml decides if it gives every checkpoint a `learning_rate`; otherwise the Trainer's
    trainer_state.json does. Without either, all weigh the same. The model before training has
    learnt nothing yet: it weighs as much as the others do on average, which predicts retraining
    (docs/measurements.md).

    Args:
        names: of the checkpoints.
        rates: what rin.toml gives them; 0 for none.
        folders: where they are.
        starts: whether each is the model before training.

    Raises:
        InputError: only some have a rate in rin.toml, or a trainer_state.json is unreadable.
    """
    if any(starts) and not all(starts):
        after = [n for n, start in enumerate(starts) if not start]
        found, source = checkpoint_weights(
            [names[n] for n in after], [rates[n] for n in after], [folders[n] for n in after]
        )
        weights = [1 / len(names)] * len(names)
        for number, weight in zip(after, found, strict=True):
            weights[number] = weight * len(after) / len(names)
        if len(after) == 1:
            return weights, "equal weights of the models before and after training"
        return weights, f"{source}; the model before training weighs as much as the others' mean"
    if any(rates):
        if not all(rate > 0 for rate in rates):
            lacking = next(n for n, rate in zip(names, rates, strict=True) if not rate > 0)
            raise InputError(
                f"rin.toml gives some checkpoints a learning_rate, but not {lacking!r}",
                hint="give every checkpoint a positive one, or none",
            )
        return _shares(rates), "the learning rates in rin.toml"
    states = [_state(folder / STATE_FILE) for folder in folders]
    if all(state is not None for state in states):
        steps = [int(state["global_step"]) for state in states if state is not None]
        whole = states[steps.index(max(steps))]
        assert whole is not None
        spent = _spent(steps, whole["log_history"])
        if spent and all(rate > 0 for rate in spent):
            return _shares(spent), f"the learning rates in {STATE_FILE}"
    return _shares([1.0] * len(names)), UNKNOWN


def _state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        int(state["global_step"])
        list(state["log_history"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a Trainer's state file ({error})",
            hint="give the checkpoints a learning_rate in rin.toml",
        ) from None
    return dict(state)


def _spent(steps: Sequence[int], history: Sequence[Any]) -> list[float]:
    """The sum of the learning rates from the checkpoint before to each; rates logged between."""
    logged = {
        int(item["step"]): float(item["learning_rate"])
        for item in history
        if isinstance(item, dict) and "learning_rate" in item and "step" in item
    }
    spent = []
    for step in steps:
        before = max((other for other in steps if other < step), default=0)
        rates = [rate for at, rate in logged.items() if before < at <= step]
        if not rates:
            return []
        spent.append(sum(rates) / len(rates) * (step - before))
    return spent


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total for value in values]
