"""Which rendering of the rows did training use? The checkpoint itself says it best.

A model predicts its training's own text better than the same rows in another template, so the
mean loss of the response's tokens is compared, row by row, under the templates that fit the rows.
Whether prompts were learnt shows in the template's own words, which are the same in every row:
training on whole rows learns them by heart, training on responses leaves them as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Example
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rendering import LONG_ALPACA
from rapidin_cli.data.rows import DataSettings, Extras, Row
from rapidin_cli.errors import InputError
from rapidin_cli.work.worker import build_engine
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint

Array = np.ndarray[Any, Any]

ROWS = 30
_MOST_TOKENS = 512
_LOOKED_AT = 400
_LONGEST = 24
# Standard errors, and nats a token, by which another template must be better.
_SURE, _MARGIN = 3.0, 0.02
# What is left of the loss of the template's own words, as a share of the base model's: see
# tests/benchmarks/fit.py. Between the two nothing is said, nor of words that the base knew.
_BY_HEART, _AS_BEFORE, _KNOWN = 0.25, 0.5, 0.3
_FEWEST_WORDS, _FEWEST_ROWS = 4, 5
_PROMPT = "### Instruction:\n{prompt}\n\n### Response:\n"


@dataclass(frozen=True)
class Fit:
    """One rendering against the one that is set.

    Attributes:
        name: the value of the setting.
        loss: mean over rows of the loss a response token, nats.
        difference: mean over rows of its loss less that of the setting, nats a token.
        error: standard error of the difference.
    """

    name: str
    loss: float
    difference: float
    error: float

    @property
    def better(self) -> bool:
        """Whether it fits better than the setting, beyond doubt."""
        return self.difference < -max(_MARGIN, _SURE * self.error)


@dataclass(frozen=True)
class OwnWords:
    """The loss of the words that the template writes into every row, nats a token.

    Attributes:
        tokens: how many of them a row has.
        base, tuned: without the adapter, and with it.
    """

    tokens: int
    base: float
    tuned: float

    @property
    def learnt(self) -> bool | None:
        """Whether training learnt them; None if that cannot be told."""
        if self.tokens < _FEWEST_WORDS or self.base < _KNOWN:
            return None
        left = self.tuned / self.base
        return True if left < _BY_HEART else False if left > _AS_BEFORE else None


@dataclass(frozen=True)
class Rendering:
    """What the checkpoint says of the settings.

    Attributes:
        rows: that were compared.
        fits: of the set template, then of the others, the best first.
        words: None for a full model, whose base is not known.
        ending: loss of the token that ends a response, nats; None if none is added.
    """

    rows: int
    learn: str
    fits: list[Fit]
    words: OwnWords | None
    ending: float | None

    @property
    def complaints(self) -> list[str]:
        """What fits better than what is set, in sentences; they are hints, not proofs."""
        found = []
        best = min(self.fits, key=lambda fit: fit.loss)
        words = None if best.better else self.words  # those of a wrong template say nothing
        if best.better:
            found.append(
                f"template {shortened(best.name)} fits better than the one that is set: "
                f"{best.loss:.3f} nats a token against {self.fits[0].loss:.3f}, difference "
                f"{best.difference:.3f} ± {best.error:.3f} over {self.rows} rows"
            )
        if words is not None and words.learnt is not None:
            whole = self.learn == "all"
            said = (
                f"the template's own words cost {words.tuned:.2f} nats a token, and "
                f"{words.base:.2f} without the adapter"
            )
            if words.learnt and not whole:
                found.append(f'{said}: training may have learnt prompts too (learn = "all")')
            if whole and not words.learnt:
                found.append(f'{said}: training may have learnt responses only ("assistant")')
        if self.ending is not None and self.ending > 3:
            found.append(
                f"the token that ends a response costs {self.ending:.1f} nats: training may have "
                "added none (append_eos = false)"
            )
        return found


def shortened(template: str) -> str:
    """Return a template for people: its name, or the beginning of its text."""
    return repr(template if len(template) <= _LONGEST else f"{template[:_LONGEST]}...")


def examine_rendering(
    opened: ProjectCheckpoint, device: str = "auto", rows: int = ROWS
) -> Rendering:
    """Compare the renderings that fit the rows, on at most so many of them.

    Raises:
        InputError: no row can be read as the settings say.
    """
    settings = opened.config.data
    chosen_rows = _some_rows(opened, settings, rows)
    engine = build_engine(opened.jobs(device, 1)[0])
    chosen = [settings, *_others(settings, opened.tokenizer, chosen_rows[0])]
    table: list[list[float]] = [[] for _ in chosen]
    prompts: list[_Prompt] = []
    endings = []
    used = 0
    for row in chosen_rows:
        pairs = [_encoded(opened.tokenizer, each, row) for each in chosen]
        if any(pair is None for pair in pairs):
            continue
        used += 1
        for number, pair in enumerate(pairs):
            assert pair is not None
            losses = _losses(engine, pair[1])
            answer = pair[0].learnt_mask[1:]
            # The end of a response is learnt in every template.
            table[number].append(float(losses[answer].mean()))
            if number == 0:
                endings.append(float(losses[answer][-1]))
                prompts.append(_prompt(engine, pair, losses))
    if not used:
        raise InputError("no row can be rendered for the comparison", hint="rin show ROW shows one")
    return Rendering(
        used, settings.learn, _fits(chosen, table), _own_words(prompts), _ending(settings, endings)
    )


def _some_rows(opened: ProjectCheckpoint, settings: DataSettings, most: int) -> list[Row]:
    """Rows with a prompt and a response, spread over the beginning of the data."""
    found = []
    for number, row in enumerate(read_rows(opened.folder, settings)):
        if isinstance(row, Row) and Extras.TOKENS not in row.extras and row.prompt:
            found.append(row)
        if number >= _LOOKED_AT:
            break
    if not found:
        raise InputError(
            "the rows have no prompts, so there is nothing to compare",
            hint="rin show ROW shows what is learnt of one",
        )
    gap = max(1, len(found) // most)
    return found[::gap][:most]


def _others(settings: DataSettings, tokenizer: Any, row: Row) -> list[DataSettings]:
    """The other templates that fit the shape of the rows."""
    if row.messages is not None:  # a conversation has one
        return []
    names = ["plain", _PROMPT]
    if "instruction" in row.fields:
        names += ["alpaca", LONG_ALPACA]
    if tokenizer.chat_template:
        names.append("chat")
    return [replace(settings, template=name) for name in names if name != settings.template]


def _encoded(tokenizer: Any, settings: DataSettings, row: Row) -> tuple[Example, Example] | None:
    """The row with its response labelled, and with every token labelled."""
    found = []
    for learn in ("assistant", "all"):
        chosen = replace(settings, learn=learn, max_tokens=_MOST_TOKENS, cut="drop")
        example = next(iter(Encoder(tokenizer, chosen).examples([row])), None)
        if not isinstance(example, Example):
            return None
        found.append(example)
    return found[0], found[1]


def _losses(engine: Any, example: Example) -> Array:
    """The loss of every token but the first."""
    import torch

    from rapidin_cli.gradients.passes import as_batch

    passes = engine.passes
    batch = as_batch([example])
    labels = batch.input_ids.to(passes.device)
    with torch.no_grad():
        found: Array = passes.token_losses(labels, labels).cpu().numpy()
    return found


_Prompt = tuple[list[int], Array, Array | None]
"""Tokens before the response, their losses (the first has none), and the base model's."""


def _prompt(engine: Any, pair: tuple[Example, Example], losses: Array) -> _Prompt:
    stop = int(pair[0].learnt_mask.argmax())
    ids = pair[1].input_ids[:stop].tolist()
    model = engine.passes.model
    if not hasattr(model, "disable_adapter"):
        return ids, losses[: stop - 1], None
    with model.disable_adapter():
        return ids, losses[: stop - 1], _losses(engine, pair[1])[: stop - 1]


def _own_words(prompts: Sequence[_Prompt]) -> OwnWords | None:
    """Compare the losses of what every prompt begins with and ends in."""
    if len(prompts) < _FEWEST_ROWS or any(base is None for _, _, base in prompts):
        return None
    start = _shared([ids for ids, _, _ in prompts])
    shortest = min(len(ids) for ids, _, _ in prompts)
    end = min(_shared([ids[::-1] for ids, _, _ in prompts]), shortest - start)
    start = max(start, 1)
    found = []
    for ids, tuned, base in prompts:
        assert base is not None
        places = [*range(start - 1), *range(len(ids) - 1 - end, len(ids) - 1)]
        if not places:
            return None
        found.append((float(base[places].mean()), float(tuned[places].mean())))
    bases, tuned_ones = zip(*found, strict=True)
    return OwnWords(start - 1 + end, fmean(bases), fmean(tuned_ones))


def _shared(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with."""
    return next(
        (n for n, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1),
        min(map(len, rows)),
    )


def _ending(settings: DataSettings, endings: Sequence[float]) -> float | None:
    return fmean(endings) if settings.append_eos and not settings.chat else None


def _fits(chosen: Sequence[DataSettings], table: Sequence[Sequence[float]]) -> list[Fit]:
    fits = []
    for settings, losses in zip(chosen, table, strict=True):
        apart = [one - other for one, other in zip(losses, table[0], strict=True)]
        error = stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf
        fits.append(Fit(settings.template, fmean(losses), fmean(apart), error))
    return [fits[0], *sorted(fits[1:], key=lambda fit: fit.loss)]
