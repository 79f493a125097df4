"""Captured gradients against a plain loop of one example at a time."""

import pytest
import torch
from torch import nn

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture.targets import find_targets
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Batch
from rapidin_cli.gradients.spec import GradientSpec
from tests.support import tiny
from tests.support.oracle import CPU, EXACT, LENGTHS, batch, one, plain_loop


class Shared(nn.Module):
    """One linear layer used twice, as in models that share weights between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 50)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids, **_):
        hidden = self.embed(input_ids)
        hidden = hidden + torch.tanh(self.shared(hidden))
        hidden = hidden + torch.tanh(self.shared(hidden))
        return type("Output", (), {"logits": self.head(hidden)})()


class Flat(Shared):
    """A layer that sees all examples' tokens in one heap, example after example, as in OPT."""

    def forward(self, input_ids, **_):
        hidden = self.embed(input_ids)
        flat = self.shared(hidden.reshape(-1, 8)).view_as(hidden)
        return type("Output", (), {"logits": self.head(hidden + flat)})()


class Experts(Shared):
    """A layer that sees tokens of all examples in one heap in another order: an expert."""

    def forward(self, input_ids, **_):
        hidden = self.embed(input_ids)
        heap = hidden.transpose(0, 1).reshape(-1, 8)
        mixed = self.shared(heap).view_as(hidden.transpose(0, 1)).transpose(0, 1)
        return type("Output", (), {"logits": self.head(hidden + mixed)})()


MODELS = {
    "llama": tiny.llama,
    "llama, untied": lambda: tiny.llama(tie_word_embeddings=False),
    "gpt2 (Conv1D)": tiny.gpt2,
    "cohere (scaled logits)": lambda: tiny.cohere(),
    "lora": lambda: tiny.lora(tiny.llama()),
    "lora on gpt2": lambda: tiny.lora(tiny.gpt2()),
    "shared": lambda: (torch.manual_seed(0), Shared())[1],
    "flat": lambda: (torch.manual_seed(0), Flat())[1],
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_equal_a_plain_loop(name):
    model = MODELS[name]()
    targets, _ = find_targets(model, "")
    engine = GradientEngine(model, EXACT, CPU, "float32")
    rows = engine(batch())
    assert len(targets) == len(engine.layout.layers)
    for row in range(3):
        loss, gradients = plain_loop(model, targets, one(batch(), row))
        expected = []
        for gradient in gradients:
            norm = gradient.norm()
            expected.append((gradient / norm if norm > 0 else gradient).flatten())
        torch.testing.assert_close(rows.blocks[row], torch.cat(expected), rtol=1e-4, atol=1e-5)
        norms = torch.stack([gradient.norm() for gradient in gradients])
        torch.testing.assert_close(rows.norm[row], norms, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rows.loss[row], loss, rtol=1e-5, atol=1e-5)
        assert rows.tokens[row] == LENGTHS[row] - 3
        torch.testing.assert_close(-rows.logprobs[row].sum(), loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sketch", ["tensorsketch", "oporp"])
def test_a_row_does_not_depend_on_its_batch(sketch):
    engine = GradientEngine(
        tiny.llama(), GradientSpec(dimensions=1024, sketch=sketch), CPU, "float32"
    )
    together = engine(batch())
    for row in range(3):
        alone = engine(one(batch(), row))
        torch.testing.assert_close(alone.blocks[0], together.blocks[row], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(alone.norm[0], together.norm[row], rtol=1e-4, atol=1e-6)


def test_the_oporp_row_is_that_of_the_plain_gradient():
    """The paper's procedure on the concatenated normalised gradient of a plain loop."""
    exact = GradientEngine(tiny.llama(), EXACT, CPU, "float32")(batch())
    engine = GradientEngine(
        tiny.llama(), GradientSpec(dimensions=1024, sketch="oporp"), CPU, "float32"
    )
    rows = engine(batch())
    expected = engine._maker._oporp(exact.blocks)
    torch.testing.assert_close(rows.blocks, expected, rtol=1e-4, atol=1e-5)


def test_sketched_scores_are_near_the_exact_ones():
    torch.manual_seed(0)
    ids = torch.randint(1, 50, (24, 12))
    labels = ids.clone()
    labels[:, :4] = IGNORED
    exact = GradientEngine(tiny.llama(), EXACT, CPU, "float32")(Batch(ids, labels)).blocks
    engine = GradientEngine(tiny.llama(), GradientSpec(dimensions=4096), CPU, "float32")
    sketched = engine(Batch(ids, labels)).blocks
    error = (sketched @ sketched.T - exact @ exact.T).square().mean().sqrt()
    # Unit vectors in each of L layers, k dimensions each: a standard error of 1 / sqrt(k).
    layers, size = len(engine.layout.blocks), min(engine.layout.blocks)
    assert error < 1.3 * (layers / size) ** 0.5


def test_bfloat16_stays_near_float32():
    exact = GradientEngine(tiny.llama(), EXACT, CPU, "float32")(batch())
    rough = GradientEngine(tiny.llama(), EXACT, CPU, "bfloat16")(batch())
    cosine = torch.nn.functional.cosine_similarity(exact.blocks, rough.blocks)
    assert (cosine > 0.995).all()
    torch.testing.assert_close(rough.norm, exact.norm, rtol=0.05, atol=1e-4)


def test_dropout_is_off():
    model = tiny.gpt2().train()
    model.config.resid_pdrop = 0.5
    engine = GradientEngine(model, EXACT, CPU, "float32")
    assert torch.equal(engine(batch()).blocks, engine(batch()).blocks)


def test_given_divisors_make_token_rows_add_up():
    engine = GradientEngine(tiny.llama(), EXACT, CPU, "float32")
    example = one(batch(), 0)
    whole = engine(example)
    each = list(engine.each_direction(engine.passes, example, whole.norm[0]))
    assert len(each) == 9
    parts = torch.stack(each).sum(0, keepdim=True)
    torch.testing.assert_close(parts, whole.blocks, rtol=1e-3, atol=1e-5)


def test_a_zero_gradient_stays_zero():
    """At a LoRA's start B is zero, so A's gradient is exactly zero: never NaN."""
    model = tiny.lora(tiny.llama())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    engine = GradientEngine(model, GradientSpec(dimensions=2048), CPU, "float32")
    rows = engine(batch())
    assert torch.isfinite(rows.blocks).all()
    factors = [n for n, layer in enumerate(engine.layout.layers) if layer.name.endswith("lora_A")]
    assert (rows.norm[:, factors] == 0).all()
    assert (rows.norm[:, [n - 1 + 2 for n in factors]] > 0).all()


def test_what_is_not_captured_is_named_with_its_reason():
    model = tiny.llama()
    model.odd = nn.Parameter(torch.ones(2, 2, 2, 2))
    model.unused = nn.LayerNorm(4)
    targets, skipped = find_targets(model, "mlp|unused")
    assert {target.layer.name.split(".")[-2] for target in targets} == {"mlp"}
    reasons = {item.name: item.reason for item in skipped}
    for name in ("embed_tokens", "layers.0.self_attn.q_proj", "norm"):
        assert "not matched" in reasons[f"model.{name}.weight"]
    assert "not the weight of a layer" in reasons["odd"]
    assert "not run" in reasons["unused.weight"]
    assert "not run" in reasons["unused.bias"]


def test_layers_that_mix_examples_are_left_out_and_named():
    targets, skipped = find_targets(Experts(), "")
    assert [target.layer.name for target in targets] == ["embed", "head", "norms and biases"]
    reasons = {item.name: item.reason for item in skipped}
    assert "do not keep the examples" in reasons["shared.weight"]
    assert "do not keep the examples" in reasons["shared.bias"]


def test_what_fitted_when_it_was_tried_and_does_not_later_is_refused():
    """An expert that got all tokens of the trial, and gets some of a batch."""

    class Some(Flat):
        first = 0

        def forward(self, input_ids, **_):
            hidden = self.embed(input_ids)[:, self.first :]
            flat = self.shared(hidden.reshape(-1, 8)).view_as(hidden)
            return type("Output", (), {"logits": self.head(hidden + flat)})()

    model = Some()
    engine = GradientEngine(model, EXACT, CPU, "float32")
    model.first = 1
    with pytest.raises(InputError, match="runs shared on inputs that do not keep"):
        engine(batch())


def test_the_pattern_narrows_the_layers():
    targets, _ = find_targets(tiny.llama(), r"layers\.1\..*down_proj")
    assert [target.layer.name for target in targets] == ["model.layers.1.mlp.down_proj"]
    with pytest.raises(InputError, match="matches nothing that was trained"):
        find_targets(tiny.llama(), "nothing")
    with pytest.raises(InputError, match="not a regular expression"):
        find_targets(tiny.llama(), "(")


def test_what_the_embeddings_cannot_look_up_is_refused():
    engine = GradientEngine(tiny.gpt2(), EXACT, CPU, "float32")
    with pytest.raises(InputError, match="tokenizer and model do not match"):
        engine(Batch(torch.full((1, 4), 400), torch.full((1, 4), 400)))
    long = torch.ones((1, 1025), dtype=torch.long)
    with pytest.raises(InputError, match="longer than the model's 1,024 positions"):
        engine(Batch(long, long))


def test_too_few_dimensions_are_refused():
    with pytest.raises(InputError, match="too few"):
        GradientEngine(tiny.llama(), GradientSpec(dimensions=64), CPU, "float32")
