"""The second moments that Adam kept while a checkpoint was trained: the Trainer's optimizer.pt.

The file numbers parameters and does not name them. The Trainer hands them over in the model's
order, those with weight decay first, so the same order is made here, and every shape checked.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.passes import Passes
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.loading import quiet_loading

STATE_FILE = "optimizer.pt"
_HINT = "choose a score that does not need it: rin retrieve --score dot, or rin curvature"


def has_second_moments(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint comes with the state of an Adam; its shapes are not looked at."""
    path = checkpoint.path / STATE_FILE
    if not path.exists():
        return False
    try:
        _read(path)
    except InputError:
        return False
    return True


def second_moments(checkpoint: Checkpoint, passes: Passes) -> list[torch.Tensor]:
    """Return the bias-corrected second moments of each target's weight, (O, I) float32.

    Raises:
        InputError: the checkpoint has no optimizer.pt, or it is unreadable, not Adam's, or
            belongs to other parameters.
    """
    path = checkpoint.path / STATE_FILE
    if not path.exists():
        raise InputError(
            f"checkpoint {checkpoint.name!r} has no {STATE_FILE}, and the score adam needs the "
            "optimizer's state (the Trainer saves it unless save_only_model is set)",
            hint=_HINT,
        )
    groups, states = _read(path)
    names = _ordered(passes.model, passes.trained, len(groups))
    numbers = [number for group in groups for number in group["params"]]
    if [len(group["params"]) for group in groups] != [len(part) for part in names]:
        raise InputError(
            f"{path} has {len(numbers):,} parameters, but the checkpoint trains "
            f"{len(passes.trained):,}, so they cannot be matched",
            hint=_HINT,
        )
    parameters = dict(passes.model.named_parameters())
    found: dict[int, int] = {}
    for number, name in zip(numbers, (name for part in names for name in part), strict=True):
        parameter = parameters[name]
        state = states.get(number)
        if state is not None and state["exp_avg_sq"].shape != parameter.shape:
            raise InputError(
                f"{path} has moments of shape {tuple(state['exp_avg_sq'].shape)} where {name} is "
                f"{tuple(parameter.shape)}: it belongs to another model",
                hint=_HINT,
            )
        found[id(parameter)] = number
    beta = {n: float(group["betas"][1]) for group in groups for n in group["params"]}

    def moment(parameter: nn.Parameter) -> torch.Tensor:
        number = found[id(parameter)]
        state = states.get(number)
        if state is None:  # it never had a gradient
            return torch.zeros(parameter.shape)
        corrected = 1 - beta[number] ** float(state["step"])
        second: torch.Tensor = state["exp_avg_sq"].float() / corrected
        return second

    return [target.gathered(moment) for target in passes.targets]


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Read parameter groups and states; nothing but tensors and plain values is unpickled."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        groups, states = list(saved["param_groups"]), dict(saved["state"])
        for group in groups:
            list(group["params"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read as an optimizer's state: {_line(error)}", hint=_HINT
        ) from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} contains more than tensors and plain values; rin runs no code from files",
            hint=_HINT,
        ) from None
    adam = all("betas" in group for group in groups) and all(
        {"exp_avg_sq", "step"} <= state.keys() for state in states.values()
    )
    if not adam or not states:
        kept = sorted({str(name) for state in states.values() for name in state})
        raise InputError(
            f"{path} is not the state of Adam or AdamW (it has {', '.join(kept) or 'nothing'})",
            hint=_HINT,
        )
    return groups, states


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _ordered(model: nn.Module, trained: list[str], groups: int) -> list[list[str]]:
    """Return the names of the trained parameters as optimizers get them.

    In one group: in the model's order. In two: as the Trainer sorts them.
    """
    if groups == 1:
        return [trained]
    with quiet_loading():
        from transformers import Trainer

        decayed = set(Trainer.get_decay_parameter_names(None, model))
    return [[n for n in trained if n in decayed], [n for n in trained if n not in decayed]]
