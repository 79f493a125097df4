"""People's own models and adapters: captured exactly, or named as not captured."""

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PromptTuningConfig,
)

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture.sides import Side
from rapidin_cli.gradients.capture.targets import find_targets, share_left_out
from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.gradients.passes import Passes
from rapidin_cli.influence.exact import Field
from tests.support import tiny
from tests.support.architectures import (
    ADAPTERS,
    LORA,
    MODELS,
    adapted,
    check_rows,
    model_of,
)
from tests.support.oracle import CPU, batch, one

# What acts in another way than a layer's weight; under 3% of each model.
LEFT_OUT = {
    "gpt_oss": {"sinks"},
    "deepseek_v4": {"sinks", "weight", "position_bias", "base", "scale", "hc_scale"},
}

REFUSED = {
    "ia3_l": IA3Config(
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    ),
    "prompt_encoder": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "hada_w1_a": LoHaConfig(r=4, target_modules=["q_proj"]),
}


def check_forward_mode(model: torch.nn.Module) -> None:
    """Along its own gradient, an example's tokens lose the square of the gradient's norm."""
    passes = Passes(model, "", CPU, "float32")
    example = one(batch(400), 0)
    gradients: dict[int, LayerGradient] = {}

    def keep(number: int, x: torch.Tensor, d: Side) -> None:
        gradients[number] = LayerGradient.of(x, d)

    passes.backward(example, keep)
    along = Field([gradients[n] for n in sorted(gradients)], torch.ones(1, len(gradients)))
    [derivatives] = passes.tangents(example, along.along)
    squared = sum(gradient.norm().square().sum() for gradient in gradients.values())
    torch.testing.assert_close(derivatives.sum(), squared, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_a_full_model_is_captured_as_a_plain_loop_has_it(kind):
    check_rows(model_of(kind))
    check_forward_mode(model_of(kind))


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_left_out_of_a_full_model_is_named(kind):
    targets, skipped = find_targets(model_of(kind), "")
    assert {each.name.rpartition(".")[2] for each in skipped} == LEFT_OUT.get(kind, set())
    assert share_left_out(targets, skipped)[0] < 0.03


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_captured_as_a_plain_loop_has_it(name):
    check_rows(adapted(ADAPTERS[name]))
    check_forward_mode(adapted(ADAPTERS[name]))


@pytest.mark.filterwarnings("ignore:The following .* keys did not match")
def test_an_adapter_on_experts_is_captured_where_it_is_a_layer():
    config = LoraConfig(**LORA, target_modules="all-linear")
    model = adapted(config, model_of("qwen3_moe"))
    check_rows(model)
    _, skipped = find_targets(adapted(config, model_of("qwen3_moe")), "")
    # PEFT wraps what the routers and experts hand to functions, and its factors are never run.
    assert {each.reason for each in skipped} == {"not run as a layer in the forward pass"}
    assert all(".mlp." in each.name and ".lora_" in each.name for each in skipped)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_nothing_of_an_adapter_is_left_out(name, tied):
    model = adapted(ADAPTERS[name], tiny.llama(tie_word_embeddings=tied))
    assert find_targets(model, "")[1] == []
    if tied:
        check_rows(model)


def test_what_the_user_leaves_out_is_no_lack():
    targets, skipped = find_targets(adapted(ADAPTERS["lora"]), "q_proj")
    assert len(skipped) > len(targets)
    assert share_left_out(targets, skipped)[0] == 0


def test_what_an_adaptive_adapter_multiplies_by_itself_is_named():
    config = AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, tinit=1, tfinal=2, target_modules=["q_proj"]
    )
    targets, skipped = find_targets(adapted(config), "")
    assert {target.layer.name.rpartition(".")[2] for target in targets} == {"lora_B"}
    assert {part for each in skipped for part in ("lora_A", "lora_E") if part in each.name}
    assert all("lora_A" in each.name or "lora_E" in each.name for each in skipped)


@pytest.mark.parametrize("trained", REFUSED)
def test_adapters_without_factors_are_refused_by_name(trained):
    with pytest.raises(InputError, match="no trained layer that is known") as caught:
        find_targets(adapted(REFUSED[trained]), "")
    assert trained in caught.value.message
    assert "LoRA" in caught.value.hint
