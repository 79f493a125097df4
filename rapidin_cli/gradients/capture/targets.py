"""Which trained tensors can be captured: found by looking, and tried before they are believed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture.functions import Event, Functions
from rapidin_cli.gradients.capture.handed import HandedUse
from rapidin_cli.gradients.capture.target import Skipped, Target
from rapidin_cli.gradients.capture.trial import MIXED, TUPLE, UNKNOWN, Trial, probe_ids
from rapidin_cli.gradients.capture.uses import (
    EmbeddingUse,
    Kind,
    LinearUse,
    OutputLayerUse,
    TokensUse,
    Use,
    VectorUse,
)
from rapidin_cli.gradients.layout import Layer
from rapidin_cli.gradients.model_parts import inner, plain_experts

VECTORS = "norms and biases"
"""The name under which all trained vectors are one layer."""

BESIDE = "rin_beside"
"""The attribute of a loaded model that `beside` reads."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class _Found:
    """A trained parameter and the modules that have it."""

    parameter: nn.Parameter
    name: str
    places: tuple[tuple[str, nn.Module, str], ...]  # names of modules, modules, attributes


def share_left_out(targets: Sequence[Target], skipped: Sequence[Skipped]) -> tuple[float, str]:
    """Return the share of the trained numbers that cannot be captured, and the main reason."""
    sizes: Counter[str] = Counter()
    for each in skipped:
        sizes[each.reason] += 0 if each.chosen else each.size
    trained = sum(each.size for each in skipped) + sum(each.layer.size for each in targets)
    reason = max(sizes, key=lambda name: sizes[name], default="")
    return sizes.total() / trained, reason


def find_targets(
    model: nn.Module, pattern: str, *, linear: bool = False
) -> tuple[list[Target], list[Skipped]]:
    """Return what was trained and `pattern` matches, in the model's order.

    Those are the parameters that require a gradient: the weights of linear layers (`nn.Linear` and
    Hugging Face's `Conv1D`), embeddings and output layers, tied or not, what functions are given
    instead, such as fused experts, and vectors that act on one output each, such as biases and
    norms, which make one target together. Probe passes find out how often each is used, whether
    its inputs keep examples apart, and whether the captured gradients of small tensors are
    autograd's own.

    Args:
        linear: leave out all but linear layers' weights, and those that are tied to an embedding.

    Raises:
        InputError: a broken pattern, or nothing left.
    """
    try:
        matches = re.compile(pattern).search
    except re.error as error:
        raise InputError(
            f"[gradient] layers = {pattern!r} is not a regular expression: {error}",
            hint="correct rin.toml",
        ) from None
    reasons: dict[int, str] = {}
    candidates: list[Target] = []
    unmatched: set[int] = set()
    trained = _trained(model)
    known = [_candidate(model, found) for found in trained]
    unknown = [f for f, made in zip(trained, known, strict=True) if isinstance(made, str)]
    handed = _handed(model, unknown)
    for found, one in zip(trained, known, strict=True):
        made = handed.get(id(found.parameter), one)
        if isinstance(made, str):
            reasons[id(found.parameter)] = made
        elif linear and (made.handed or not all(isinstance(u, LinearUse) for u in made.uses)):
            reasons[id(found.parameter)] = 'left out by capture = "linear"'
            unmatched.add(id(found.parameter))
        elif not any(matches(layer_name(name)) for name, _, _ in found.places):
            reasons[id(found.parameter)] = f"not matched by layers = {pattern!r}"
            unmatched.add(id(found.parameter))
        else:
            candidates.append(made)
    targets = []
    owners = {id(found.parameter): found for found in trained}
    for target, verdict in zip(candidates, _tried(model, candidates, owners), strict=True):
        if isinstance(verdict, str):
            reasons[id(target.parameters[0])] = verdict
        else:
            targets.append(verdict)
    skipped = _skipped(trained, reasons, unmatched)
    skipped += [Skipped(name, "beside the language model", size) for name, size in beside(model)]
    if not targets:
        raise _nothing_to_capture(pattern, skipped)
    return _together(targets), skipped


def _skipped(
    trained: Sequence[_Found], reasons: Mapping[int, str], unmatched: set[int]
) -> list[Skipped]:
    """Name what has a reason to be left out."""
    found = [(each, id(each.parameter)) for each in trained]
    return [
        Skipped(layer_name(f.name), reasons[key], f.parameter.numel(), key in unmatched)
        for f, key in found
        if key in reasons
    ]


def beside(model: nn.Module) -> Sequence[tuple[str, int]]:
    """Names and sizes of tensors in a model's files that no language model has: value heads."""
    found: Sequence[tuple[str, int]] = getattr(model, BESIDE, ())
    return found


def layer_name(name: str) -> str:
    """Return a module's name without what PEFT adds to it."""
    name = re.sub(r"^base_model\.model\.", "", name)
    name = re.sub(r"\.modules_to_save\.[^.]+", "", name)
    return re.sub(r"\.(lora_[AB])\.[^.]+", r".\1", name)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as (I, O), as Hugging Face's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def _trained(model: nn.Module) -> list[_Found]:
    """Every trained parameter once, with all modules that have it, in the model's order."""
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append((name, module, attribute))
    return [
        _Found(parameter, name, tuple(places[id(parameter)]))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def _candidate(model: nn.Module, found: _Found) -> Target | str:
    """How a parameter may be captured, or why it cannot be."""
    modules = [module for _, module, _ in found.places]
    named = {attribute for _, _, attribute in found.places}
    name, first = layer_name(found.places[0][0]), modules[0]
    parameter = found.parameter
    if "prompt_encoder" in found.name:
        return "virtual tokens of a prompt"
    if "trainable_tokens_delta" in found.name:
        uses = _of_tokens(model, found)
        layer = Layer(layer_name(found.name), *parameter.shape)
        return Target(layer, tuple(uses), (parameter,), kind="wide")
    if parameter.dim() == 1 and not isinstance(first, _CONVOLUTIONS):
        uses = [VectorUse(module, attribute) for _, module, attribute in found.places]
        layer = Layer(layer_name(found.name), parameter.numel(), 1)
        return Target(layer, tuple(uses), (parameter,), kind="vectors")
    if named == {"weight"} and parameter.dim() == 2:
        linear = all(_is_linear(module) for module in modules)
        wide = all(isinstance(module, nn.Embedding | nn.Linear) for module in modules)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if linear and not (head is not None and head in modules and wide):
            sides = parameter.shape[::-1] if is_transposed(first) else parameter.shape
            return Target(
                Layer(name, *sides),
                tuple(LinearUse(module) for module in modules),
                (parameter,),
                transposed=is_transposed(first),
            )
        if wide:
            uses = [
                EmbeddingUse(module) if isinstance(module, nn.Embedding) else OutputLayerUse(module)
                for module in modules
            ]
            return Target(Layer(name, *parameter.shape), tuple(uses), (parameter,), kind="wide")
    if isinstance(first, _CONVOLUTIONS):
        return "a convolution, not a linear layer"
    if parameter.dim() == 3:
        return "matrices fused into one tensor, as in a mixture of experts"
    return UNKNOWN


def _of_tokens(model: nn.Module, found: _Found) -> list[Use]:
    """How PEFT's new rows for some words are used: beside an embedding, and a tied output layer."""
    _, kept, adapter = found.places[0]
    layers: list[Any] = [
        m for m in model.modules() if getattr(m, "trainable_tokens_delta", None) is kept
    ]
    uses: list[Use] = []
    for layer in layers:
        words = torch.as_tensor(layer.token_indices[adapter])
        scale = float(getattr(layer.base_layer, "embed_scale", 1.0) or 1.0)
        uses.append(TokensUse(layer, words, scale))
    return uses


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def _handed(model: nn.Module, unknown: Sequence[_Found]) -> dict[int, Target]:
    """What functions are given in a forward pass, of parameters that no layer of theirs uses."""
    events: list[list[Event]] = [[] for _ in unknown]
    if not unknown:
        return {}
    tensors: list[tuple[int, torch.Tensor]] = [(n, f.parameter) for n, f in enumerate(unknown)]

    def see(event: Event) -> None:
        events[event.given.number].append(event)

    with torch.no_grad(), plain_experts(inner(model)), Functions(tensors, see):
        model(input_ids=probe_ids(model), use_cache=False)
    made = zip(unknown, events, strict=True)
    found = {id(f.parameter): _given(f, seen) for f, seen in made if seen}
    return {key: target for key, target in found.items() if target is not None}


def _given(found: _Found, events: Sequence[Event]) -> Target | None:
    """The target that a parameter is by what functions are given of it."""
    kinds = {(event.kind, event.kind != "sum" and event.given.turned) for event in events}
    if len(kinds) > 1:
        return None
    [(said, turned)] = kinds
    parameter, name = found.parameter, layer_name(found.name)
    kind: Kind = "matrix"
    sides, count = parameter.shape, 1
    if said == "sum":
        kind, sides = "vectors", torch.Size((parameter.numel(), 1))
    elif parameter.dim() == 3:
        kind, count = "experts", sides[0]
        out, into = sides[:0:-1] if turned else sides[1:]
        sides = torch.Size((count * out, into))
    elif parameter.dim() != 2:
        return None
    else:
        kind = "wide" if said == "words" else "matrix"
        sides = sides[::-1] if turned else sides
    use = HandedUse(parameter.shape, kind, turned)
    return Target(
        Layer(name, *sides),
        (),
        (parameter,),
        kind=kind,
        transposed=turned and said != "sum",
        handed=((parameter, use),),
        count=count,
    )


def _together(targets: Sequence[Target]) -> list[Target]:
    """Make one target of all vectors: alone, each would count as much as a matrix."""
    vectors = [target for target in targets if target.kind == "vectors"]
    if not vectors:
        return list(targets)
    uses: list[Use] = []
    handed: list[tuple[nn.Parameter, HandedUse]] = []
    start = 0
    for target in vectors:
        uses += [replace(use, start=start) for use in target.uses if isinstance(use, VectorUse)]
        handed += [(parameter, replace(use, start=start)) for parameter, use in target.handed]
        start += target.layer.size
    whole = Target(
        Layer(VECTORS, start, 1),
        tuple(uses),
        tuple(parameter for target in vectors for parameter in target.parameters),
        kind="vectors",
        handed=tuple(handed),
    )
    return [*(target for target in targets if target.kind != "vectors"), whole]


def _tried(
    model: nn.Module, candidates: Sequence[Target], owners: Mapping[int, _Found]
) -> list[Target | str]:
    """Return, for each candidate, the target that was found to be right, or why there is none."""
    made = [_scaled(target) for target in candidates]
    trial = Trial(model, made)
    calls = list(trial.calls)
    verdicts = [trial.verdict(number) for number in range(len(made))]
    others = _otherwise(model, made, verdicts, owners)
    if others:
        second = Trial(model, list(others.values()))
        for place, (number, other) in enumerate(others.items()):
            if not second.verdict(place):
                verdicts[number], made[number], calls[number] = "", other, second.calls[place]
    return [
        said or replace(target, calls=0 if target.kind == "vectors" or target.handed else count)
        for said, target, count in zip(verdicts, made, calls, strict=True)
    ]


def _otherwise(
    model: nn.Module,
    targets: Sequence[Target],
    verdicts: Sequence[str],
    owners: Mapping[int, _Found],
) -> dict[int, Target]:
    """What those that failed may be instead: layers with flattened inputs, vectors handed over."""
    others: dict[int, Target] = {}
    again: dict[int, _Found] = {}
    for number, (target, said) in enumerate(zip(targets, verdicts, strict=True)):
        if target.handed:
            continue
        if said == MIXED and target.kind == "matrix":
            flat = tuple(LinearUse(use.module, True) for use in target.uses)
            others[number] = replace(target, uses=flat)
        elif said and (target.kind == "vectors" or said == TUPLE):
            again[number] = owners[id(target.parameters[0])]
    handed = _handed(model, list(again.values()))
    for number, found in again.items():
        if (other := handed.get(id(found.parameter))) is not None:
            others[number] = other
    return others


def _scaled(target: Target) -> Target:
    """Find out what embeddings multiply by: Gemma's look-ups are scaled."""
    uses: list[Use] = []
    for use in target.uses:
        if isinstance(use, EmbeddingUse):
            module = use.module
            ids = torch.arange(min(8, module.num_embeddings), device=module.weight.device)[None]
            with torch.no_grad():
                found, plain = module(ids).float(), module.weight[ids].float()
            place = plain.abs().argmax()
            scale = found.flatten()[place] / plain.flatten()[place]
            use = replace(use, scale=float(scale))
        uses.append(use)
    return replace(target, uses=tuple(uses))


def _nothing_to_capture(pattern: str, skipped: list[Skipped]) -> InputError:
    if any(each.chosen for each in skipped):
        return InputError(
            f"[gradient] layers = {pattern!r} matches nothing that was trained",
            hint="correct [gradient] layers in rin.toml",
        )
    trained = f"{skipped[0].name} ({skipped[0].reason})" if skipped else "nothing at all"
    return InputError(
        f"the checkpoint has no trained layer that is known; what was trained is {trained}",
        hint="rin supports full models and low-rank adapters (LoRA, rsLoRA, DoRA)",
    )
