"""Hooks that hand over each target layer's inputs and output gradients."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.layout import Layer

_PROBE_BATCH, _PROBE_LENGTH = 2, 5
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


BESIDE = "rin_beside"
"""The attribute of a loaded model that `beside` reads."""


@dataclass(frozen=True)
class Target:
    """A module whose weight's gradient is captured.

    `calls` is how often one forward pass runs it: the gradient of a module that is used twice
    (shared weights) is summed over both uses.
    """

    layer: Layer
    module: nn.Module
    calls: int


@dataclass(frozen=True)
class Skipped:
    """A trainable parameter whose gradient is not captured.

    Attributes:
        reason: why.
        size: how many numbers it has.
        chosen: whether the user's `layers` leaves it out.
    """

    name: str
    reason: str
    size: int
    chosen: bool = False


def share_left_out(targets: Sequence[Target], skipped: Sequence[Skipped]) -> tuple[float, str]:
    """Return the share of the trained numbers that cannot be captured, and the main reason."""
    sizes: Counter[str] = Counter()
    for each in skipped:
        sizes[each.reason] += 0 if each.chosen else each.size
    trained = sum(each.size for each in skipped) + sum(each.layer.size for each in targets)
    reason = max(sizes, key=lambda name: sizes[name], default="")
    return sizes.total() / trained, reason


def find_targets(model: nn.Module, pattern: str) -> tuple[list[Target], list[Skipped]]:
    """Return the trainable linear layers that `pattern` matches, in the model's order.

    With an adapter only its factors are trainable, so they are the targets; without one
    every linear layer is (`nn.Linear` and Hugging Face's `Conv1D`). Probe passes find out
    how often each is used and whether its inputs keep examples apart.

    Raises:
        InputError: a broken pattern, or no layer left.
    """
    try:
        matches = re.compile(pattern).search
    except re.error as error:
        raise InputError(
            f"[gradient] layers = {pattern!r} is not a regular expression: {error}",
            hint="correct rin.toml",
        ) from None
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    modules: dict[str, nn.Module] = {}
    unmatched: set[int] = set()
    reasons: dict[int, str] = dict.fromkeys(embeddings, "an embedding, not a linear layer")
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not _is_linear(module) or not isinstance(weight, nn.Parameter):
            continue
        if not weight.requires_grad:
            continue
        if id(weight) in embeddings:
            reasons[id(weight)] = "the embedding, tied to the output layer"
        elif not matches(layer_name(name)):
            reasons[id(weight)] = f"not matched by layers = {pattern!r}"
            unmatched.add(id(weight))
        else:
            modules[name] = module
    calls, mixed, odd = _probe(model, modules)
    targets = []
    for name, module in modules.items():
        if name in odd:
            reasons[id(module.weight)] = "returns more than one tensor, as some routers do"
        elif mixed[name]:
            reasons[id(module.weight)] = "its inputs do not keep the examples of a batch apart"
        elif not calls[name]:
            reasons[id(module.weight)] = "not run as a layer in the forward pass"
        else:
            targets.append(Target(_layer(name, module), module, calls[name]))
    captured = {id(target.module.weight) for target in targets}
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, _CONVOLUTIONS)}
    reasons |= dict.fromkeys(convolutions, "a convolution, not a linear layer")
    skipped = [
        Skipped(layer_name(name), reasons.get(id(p)) or _other(p), p.numel(), id(p) in unmatched)
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in captured
    ]
    skipped += [Skipped(name, "beside the language model", size) for name, size in beside(model)]
    if not targets:
        raise _nothing_to_capture(pattern, skipped)
    return targets, skipped


def beside(model: nn.Module) -> Sequence[tuple[str, int]]:
    """Names and sizes of tensors in a model's files that no language model has: value heads."""
    found: Sequence[tuple[str, int]] = getattr(model, BESIDE, ())
    return found


def _other(parameter: nn.Parameter) -> str:
    if parameter.dim() == 3:
        return "matrices fused into one tensor, as in a mixture of experts"
    return "not the weight of a linear layer"


def _nothing_to_capture(pattern: str, skipped: list[Skipped]) -> InputError:
    if any(each.chosen for each in skipped):
        return InputError(
            f"[gradient] layers = {pattern!r} matches no trainable linear layer",
            hint="correct [gradient] layers in rin.toml",
        )
    trained = f"{skipped[0].name} ({skipped[0].reason})" if skipped else "nothing at all"
    return InputError(
        f"the checkpoint has no trainable linear layer; what was trained is {trained}",
        hint="rin supports full models and low-rank adapters (LoRA, rsLoRA, DoRA)",
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as (I, O), as Hugging Face's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def layer_name(name: str) -> str:
    """Return a module's name without what PEFT adds to it."""
    name = re.sub(r"^base_model\.model\.", "", name)
    return re.sub(r"\.(lora_[AB])\.[^.]+", r".\1", name)


def _layer(name: str, module: nn.Module) -> Layer:
    first, second = module.weight.shape  # type: ignore[misc]
    sides = (second, first) if is_transposed(module) else (first, second)
    return Layer(layer_name(name), *sides)


def _probe(
    model: nn.Module, modules: dict[str, nn.Module]
) -> tuple[dict[str, int], dict[str, bool], set[str]]:
    """Return how often each layer runs on sequences, and whether on anything else that counts.

    Last, those that return something else than a tensor: what they return cannot be watched.
    """
    unusual: set[str] = set()
    with torch.no_grad():
        calls, others, _ = _probed(model, modules, unusual)
    mixed = dict.fromkeys(modules, False)
    if any(others.values()):
        # DoRA runs its factors on a unit matrix too, for a norm that has no gradient.
        odd = {name: modules[name] for name, outputs in others.items() if outputs}
        _, others, logits = _probed(model, odd, unusual)
        names = [name for name, outputs in others.items() for _ in outputs]
        outputs = [output for each in others.values() for output in each]
        found = torch.autograd.grad(logits.float().sum(), outputs, allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            mixed[name] |= gradient is not None
    return calls, mixed, unusual


def _probed(
    model: nn.Module, modules: dict[str, nn.Module], unusual: set[str]
) -> tuple[dict[str, int], dict[str, list[torch.Tensor]], torch.Tensor]:
    """Run two short sequences; return calls on them, other calls' outputs, and the logits."""
    calls = dict.fromkeys(modules, 0)
    others: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            del module
            if not isinstance(output, torch.Tensor):
                unusual.add(name)
                return
            shape = inputs[0].shape
            if len(shape) == 3 and tuple(shape[:2]) == (_PROBE_BATCH, _PROBE_LENGTH):
                calls[name] += 1
            else:
                others[name].append(output)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        device = next(model.parameters()).device
        ids = torch.ones((_PROBE_BATCH, _PROBE_LENGTH), dtype=torch.long, device=device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return calls, others, logits


def of_sequences(inputs: tuple[Any, ...]) -> bool:
    """Whether a target's inputs are (B, T, I): its other calls have no gradient, see `_probe`."""
    return bool(inputs[0].dim() == 3)


Consumer = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with a target's number, its inputs (B, T, I) and output gradients (B, T, O)."""


class Capture:
    """What a backward pass has reached of the targets; `watched` makes it."""

    def __init__(self, targets: list[Target], consume: Consumer) -> None:
        self._targets = targets
        self._consume = consume
        self._parts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._reached: set[int] = set()
        self._like: torch.Tensor | None = None

    def start(self, embedded: torch.Tensor) -> None:
        """Begin with a forward pass, whose input embeddings are these."""
        self._like = embedded

    def arrive(self, number: int, x: torch.Tensor, d: torch.Tensor) -> None:
        """Take one use of a target."""
        calls = self._targets[number].calls
        self._reached.add(number)
        if calls == 1:
            self._consume(number, x, d)
            return
        pairs = self._parts.setdefault(number, [])
        pairs.append((x, d))
        if len(pairs) == calls:
            self._hand_over(number)

    def finish(self) -> None:
        """End a backward pass: hand over what is left, and zeros for what it did not reach."""
        if self._like is None:
            return
        for number in sorted(self._parts):  # of several calls, only some have a gradient
            self._hand_over(number)
        for number, target in enumerate(self._targets):
            if number not in self._reached:
                count, layer = len(self._like), target.layer
                x = self._like.new_zeros(count, 1, layer.in_features)
                self._consume(number, x, self._like.new_zeros(count, 1, layer.out_features))
        self._reached.clear()

    def _hand_over(self, number: int) -> None:
        xs, ds = zip(*self._parts.pop(number), strict=True)
        self._consume(number, torch.cat(xs, 1), torch.cat(ds, 1))


@contextmanager
def captured(model: nn.Module, targets: list[Target], consume: Consumer) -> Iterator[None]:
    """While active, a backward pass hands each target's (x, d) to `consume`; see `watched`."""
    with watched(model, targets, consume) as capture:
        yield
    capture.finish()


@contextmanager
def watched(model: nn.Module, targets: list[Target], consume: Consumer) -> Iterator[Capture]:
    """While active, a forward pass is watched: passes back through it hand (x, d) to `consume`.

    No weight needs a gradient: the input embeddings' output is made to require one, which
    is enough for autograd to compute output gradients everywhere. Inputs and gradients are
    released layer by layer as the backward pass goes. A target that the pass did not reach has
    a gradient of zero, and `Capture.finish` hands it over: every target is, so that no list
    closes up.
    """
    capture = Capture(targets, consume)

    def watch(number: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            del module
            if of_sequences(inputs):
                x = inputs[0].detach()
                output.register_hook(lambda d: capture.arrive(number, x, d))

        return hook

    def start_graph(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        del module, inputs
        capture.start(output.detach())
        return output if output.requires_grad else output.requires_grad_()

    handles = [t.module.register_forward_hook(watch(n)) for n, t in enumerate(targets)]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    handles.append(embedding.register_forward_hook(start_graph))
    try:
        yield capture
    finally:
        for handle in handles:
            handle.remove()
