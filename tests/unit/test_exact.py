"""Exact scores against plain gradients: one example, one token, one backward pass at a time."""

import pytest
import torch

from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Batch, NoForwardModeError, Passes, as_batch
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.influence import query_gradients
from rapidin_cli.influence.exact import ExactScorer, Field
from rapidin_cli.influence.queries import Query
from rapidin_cli.influence.query_gradients import query_gradient, token_gradients
from rapidin_cli.influence.score import SCORES
from tests.support import tiny
from tests.support.examples import (
    CONTRAST,
    EXAMPLES,
    MODELS,
    QUERY,
    one_token_queries,
    plain_gradients,
)
from tests.support.oracle import gathered, trained_by

CPU = torch.device("cpu")
PLAIN = ["rapidin", "dot", "cosine"]


def definition(score: str, whole, part, other) -> float:
    """The score of a part of the query (or of the example) from whole gradients."""
    total, norms = 0.0, [torch.stack([g.norm() for g in side]) for side in whole]
    for layer, (p, o) in enumerate(zip(part, other, strict=True)):
        by = {
            "rapidin": norms[0][layer] * norms[1][layer],
            "dot": 1.0,
            "cosine": norms[0].norm() * norms[1].norm(),
        }[score]
        total += float((p * o).sum() / by)
    return total


def scorer(model: torch.nn.Module, score: str, query: Query) -> ExactScorer:
    passes = Passes(model, "", CPU, "float32")
    return ExactScorer(passes, SCORES[score], None, query, query_gradient(passes, query), 64)


@pytest.mark.parametrize("score", PLAIN)
@pytest.mark.parametrize("name", MODELS)
def test_all_scores_equal_one_backward_per_token(name, score):
    """Totals, generated tokens, training tokens and cells."""
    model = MODELS[name]()
    query = plain_gradients(model, QUERY.example)
    asked = [plain_gradients(model, part) for part in one_token_queries(QUERY.example)]
    trained = [plain_gradients(model, item) for item in EXAMPLES]
    learnt = [[plain_gradients(model, t) for t in one_token_queries(e)] for e in EXAMPLES]
    exact = scorer(model, score, QUERY)
    found = exact.scores(EXAMPLES, tokens=True)
    training = exact.training_tokens(EXAMPLES, found.factors)
    for row, gradient in enumerate(trained):
        whole = (query, gradient)
        expected = definition(score, whole, query, gradient)
        scale = sum(
            abs(definition(score, whole, t, gradient)) for t in asked
        )  # tokens may cancel one another
        assert float(found.totals[row]) == pytest.approx(expected, abs=2e-5 * scale)
        for number, token in enumerate(asked):
            expected = definition(score, whole, token, gradient)
            assert float(found.tokens[row, number]) == pytest.approx(expected, abs=2e-5 * scale)
        assert len(training[row]) == EXAMPLES[row].learnt
        for number, token in enumerate(learnt[row]):
            expected = definition(score, whole, query, token)
            assert float(training[row][number]) == pytest.approx(expected, abs=5e-5 * scale)
    cells = exact.cells(EXAMPLES[0], found.factors[0])
    for t, ours in enumerate(asked):
        for s, theirs in enumerate(learnt[0]):
            expected = definition(score, (query, trained[0]), ours, theirs)
            assert float(cells[t, s]) == pytest.approx(expected, abs=2e-5 * scale)


@pytest.mark.parametrize("whole_numbers", [0, 2**24], ids=["half precision", "float32"])
@pytest.mark.parametrize("query", [QUERY, CONTRAST], ids=["query", "contrast"])
@pytest.mark.parametrize("score", PLAIN)
def test_gradients_of_tokens_score_an_example_by_its_backward_pass_alone(
    score, query, whole_numbers, monkeypatch
):
    """Totals, generated tokens and cells are those of forward mode, and rows those of sketches."""
    monkeypatch.setattr(query_gradients, "WHOLE_NUMBERS", whole_numbers)
    monkeypatch.setattr(query_gradients, "_TOGETHER", 4)  # neither all tokens nor a divisor
    expected = scorer(tiny.lora(tiny.llama()), score, query)
    engine = GradientEngine(tiny.lora(tiny.llama()), GradientSpec(), CPU, "float32")
    passes = engine.passes
    gradient = query_gradient(passes, query)
    divisors = SCORES[score].divisors(gradient.norm)
    found = token_gradients(engine, passes, query, divisors, None, keep=True)
    apart = token_gradients(engine, passes, query, divisors, None, keep=False)
    torch.testing.assert_close(found.directions, apart.directions, rtol=1e-4, atol=1e-6)
    whole = engine.probe(gradient.layers, divisors)
    torch.testing.assert_close(found.directions.sum(0), whole, rtol=1e-4, atol=1e-5)
    exact = ExactScorer(passes, SCORES[score], None, query, gradient, 64, matrices=found.matrices)
    monkeypatch.setattr(passes, "tangents", None)  # nothing is run forward
    ours, theirs = exact.scores(EXAMPLES, tokens=False), expected.scores(EXAMPLES, tokens=True)
    scale = float(theirs.tokens.abs().sum(1).max())
    near = {"rtol": 0, "atol": (1e-3 if not whole_numbers else 1e-5) * scale}
    torch.testing.assert_close(ours.totals, theirs.totals, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(ours.tokens, theirs.tokens, **near)
    monkeypatch.undo()
    cells = exact.cells(EXAMPLES[1], ours.factors[1])
    torch.testing.assert_close(cells, expected.cells(EXAMPLES[1], theirs.factors[1]), **near)


@pytest.mark.parametrize("name", MODELS)
def test_activations_that_are_computed_twice_give_the_same(name):
    passes = Passes(MODELS[name](), "", CPU, "float32")
    runs = []
    block = next(target for target in passes.targets if target.kind == "matrix")
    block.uses[0].module.register_forward_hook(lambda *_: runs.append(1))

    def gradients(keeps: int | None) -> tuple[list[torch.Tensor], int]:
        passes.keeps = keeps
        runs.clear()
        found = [
            layer.dense()
            for layer in query_gradient(passes, Query("q", "given", EXAMPLES[1])).layers
        ]
        once = len(runs)

        def keep(*layer):
            found.append(LayerGradient.of(*layer[1:]).dense())

        for _ in passes.each_token(as_batch([EXAMPLES[0]]), keep):
            pass
        return found, once

    kept, once = gradients(None)
    again, twice = gradients(8)
    assert twice == 2 * once
    assert all(torch.equal(*pair) for pair in zip(kept, again, strict=True))


@pytest.mark.parametrize("score", PLAIN)
def test_both_sums_equal_the_total(score):
    exact = scorer(tiny.lora(tiny.llama()), score, QUERY)
    found = exact.scores(EXAMPLES, tokens=True)
    scale = found.tokens.abs().sum(1).max()
    torch.testing.assert_close(found.tokens.sum(1), found.totals, rtol=0, atol=float(scale) * 1e-5)
    sums = torch.stack([part.sum() for part in exact.training_tokens(EXAMPLES, found.factors)])
    torch.testing.assert_close(sums, found.totals, rtol=0, atol=float(scale) * 1e-5)
    cells = exact.cells(EXAMPLES[1], found.factors[1])
    torch.testing.assert_close(
        cells.sum(1), found.tokens[1], rtol=0, atol=float(cells.abs().sum()) * 1e-5
    )


def test_a_score_does_not_depend_on_its_batch():
    exact = scorer(tiny.llama(), "rapidin", QUERY)
    together = exact.scores(EXAMPLES, tokens=True)
    for row, item in enumerate(EXAMPLES):
        alone = exact.scores([item], tokens=True)
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], rtol=1e-4, atol=1e-5)


def test_a_contrast_is_the_difference_of_two_runs():
    model = tiny.llama()
    both = scorer(model, "dot", CONTRAST)
    found = both.scores(EXAMPLES, tokens=True)
    said = scorer(tiny.llama(), "dot", QUERY).scores(EXAMPLES, tokens=True)
    other = Query("q", "given", CONTRAST.contrast)
    wanted = scorer(tiny.llama(), "dot", other).scores(EXAMPLES, tokens=True)
    scale = float(found.tokens.abs().sum(1).max())
    torch.testing.assert_close(found.totals, said.totals - wanted.totals, rtol=0, atol=1e-5 * scale)
    together = torch.cat([said.tokens, -wanted.tokens], 1)
    torch.testing.assert_close(found.tokens, together, rtol=0, atol=1e-5 * scale)
    sums = torch.stack([part.sum() for part in both.training_tokens(EXAMPLES, found.factors)])
    torch.testing.assert_close(sums, found.totals, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("query", [QUERY, CONTRAST])
def test_without_forward_mode_backward_passes_give_the_same(query, monkeypatch):
    exact = scorer(tiny.llama(), "rapidin", query)
    found = exact.scores(EXAMPLES, tokens=True)
    training = exact.training_tokens(EXAMPLES, found.factors)
    assert exact.forward_mode

    def refuse(*_: object) -> None:
        raise NoForwardModeError("no forward AD")

    monkeypatch.setattr(exact.passes, "tangents", refuse)
    again = exact.scores(EXAMPLES, tokens=True)
    assert not exact.forward_mode
    torch.testing.assert_close(again.tokens, found.tokens, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(exact.training_tokens(EXAMPLES, found.factors), training, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_operator_without_forward_mode_is_noticed():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x * 1.0

        @staticmethod
        def backward(_, gradient):
            return gradient

    model = tiny.llama()
    model.model.norm.register_forward_hook(lambda *args: Odd.apply(args[2]))
    exact = scorer(model, "rapidin", QUERY)
    usual = scorer(tiny.llama(), "rapidin", QUERY).scores(EXAMPLES, tokens=True)
    found = exact.scores(EXAMPLES, tokens=True)
    assert not exact.forward_mode
    torch.testing.assert_close(found.tokens, usual.tokens, rtol=1e-4, atol=1e-5)


def test_zero_gradients_give_zero_scores():
    """At a LoRA's start B is zero, and so is A's gradient."""
    model = tiny.lora(tiny.llama())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    exact = scorer(model, "rapidin", QUERY)
    found = exact.scores(EXAMPLES, tokens=True)
    assert torch.isfinite(found.tokens).all()
    assert (found.layers[:, 0] == 0).all()
    assert (found.layers.abs().sum(1) > 0).all()


def test_tangents_are_derivatives_of_losses():
    """Against a difference quotient in float64."""
    model = tiny.llama().double()
    passes = Passes(model, "", CPU, "float32")
    torch.manual_seed(1)
    weights = trained_by(passes.targets)
    changes = [torch.randn_like(weight) for weight in weights]
    along = [LayerGradient.of_matrix(m[None].float()) for m in gathered(passes.targets, changes)]
    field = Field(along, torch.ones(1, len(along)))
    batch = Batch(torch.randint(1, 300, (2, 8)), torch.randint(1, 300, (2, 8)))
    found = passes.tangents(batch, field.along)
    losses = []
    for step in (-3e-4, 3e-4):
        for weight, change in zip(weights, changes, strict=True):
            weight.data += step * change
        losses.append(torch.stack(passes.backward(batch, lambda *_: None)))
        for weight, change in zip(weights, changes, strict=True):
            weight.data -= step * change
    slope = (losses[1] - losses[0]) / 6e-4
    torch.testing.assert_close(torch.stack(found).float(), slope.float(), rtol=2e-2, atol=2e-2)
