"""People's own models and adapters: captured exactly, or named as not captured."""

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoConfig, AutoModelForCausalLM

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.capture import find_targets, share_left_out
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Passes
from tests import tiny
from tests.unit.test_gradients import CPU, EXACT, batch, one, plain_loop

COMMON = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {},
    "phi3": {"original_max_position_embeddings": 64, "max_position_embeddings": 64},
    "mistral": {},
    "olmo2": {},
    "gpt_neox": {},
    "granite": {},
    "smollm3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
LORA = {"r": 4, "init_lora_weights": False}
ADAPTERS = {
    "lora": LoraConfig(**LORA, target_modules="all-linear"),
    "rslora": LoraConfig(**LORA, target_modules="all-linear", use_rslora=True),
    "rank and alpha patterns": LoraConfig(
        **LORA, target_modules="all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 9}
    ),
    "dora": LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "with the output layer": LoraConfig(
        **LORA, target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
    "with the embedding": LoraConfig(
        **LORA, target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    ),
    "on the embedding": LoraConfig(**LORA, target_modules=["q_proj", "embed_tokens"]),
    "with single tokens": LoraConfig(
        **LORA, target_modules=["q_proj"], trainable_token_indices=[3, 4]
    ),
}
REFUSED = {
    "ia3_l": IA3Config(
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    ),
    "prompt_encoder": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "hada_w1_a": LoHaConfig(r=4, target_modules=["q_proj"]),
    "lora_A": AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, tinit=1, tfinal=2, target_modules=["q_proj"]
    ),
}


def model_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **MODELS[kind]})
    return AutoModelForCausalLM.from_config(config).eval()


def adapted(config, model: torch.nn.Module | None = None) -> torch.nn.Module:
    """An adapter as after training: nothing that it trains is zero."""
    torch.manual_seed(1)
    made = get_peft_model(model or tiny.llama(tie_word_embeddings=False), config)
    for parameter in made.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return made.eval()


def check_rows(model: torch.nn.Module) -> None:
    """Captured gradients against a plain loop, and the forward mode against both."""
    targets, _ = find_targets(model, "")
    engine = GradientEngine(model, EXACT, CPU, "float32")
    rows = engine(batch(400))
    weights = [target.module.weight for target in targets]
    for row in range(3):
        loss, gradients = plain_loop(model, weights, one(batch(400), row))
        start = 0
        for number, (target, gradient) in enumerate(zip(targets, gradients, strict=True)):
            block = rows.blocks[row, start : start + target.layer.size]
            start += target.layer.size
            torch.testing.assert_close(
                block * rows.norm[row, number], gradient.flatten(), rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(rows.loss[row], loss, rtol=1e-5, atol=1e-5)


def check_forward_mode(model: torch.nn.Module) -> None:
    """Along its own gradient, an example's tokens lose the square of the gradient's norm."""
    passes = Passes(model, "", CPU, "float32")
    example = one(batch(400), 0)
    gradients: dict[int, torch.Tensor] = {}

    def keep(number: int, x: torch.Tensor, d: torch.Tensor) -> None:
        gradients[number] = d[0].T @ x[0]

    passes.backward(example, keep)
    [derivatives] = passes.tangents(example, lambda n, x: x @ gradients[n].T)
    squared = sum(gradient.square().sum() for gradient in gradients.values())
    torch.testing.assert_close(derivatives.sum(), squared, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_a_full_model_is_captured_as_a_plain_loop_has_it(kind):
    check_rows(model_of(kind))
    check_forward_mode(model_of(kind))


@pytest.mark.parametrize("kind", MIXTURES)
def test_fused_experts_are_named_as_not_captured(kind):
    targets, skipped = find_targets(model_of(kind), "")
    experts = [each for each in skipped if "fused into one tensor" in each.reason]
    assert {each.name.rpartition(".")[2] for each in experts} >= {"gate_up_proj", "down_proj"}
    assert share_left_out(targets, skipped)[0] > 0.5
    assert any(target.layer.name.endswith("q_proj") for target in targets)


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
    assert any("not run as a layer" in each.reason for each in skipped)
    assert all("experts" in each.name or "lora" in each.name for each in skipped)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("dora", "lora_magnitude_vector"),
        ("with the embedding", "modules_to_save"),
        ("on the embedding", "lora_embedding_A"),
        ("with single tokens", "trainable_tokens_delta"),
    ],
)
def test_what_an_adapter_trains_beside_its_factors_is_named(name, part):
    targets, skipped = find_targets(adapted(ADAPTERS[name]), "")
    assert any(part in each.name for each in skipped)
    assert 0 < share_left_out(targets, skipped)[0] < 1


def test_what_the_user_leaves_out_is_no_lack():
    targets, skipped = find_targets(adapted(ADAPTERS["lora"]), "q_proj")
    assert len(skipped) > len(targets)
    assert share_left_out(targets, skipped)[0] == 0


@pytest.mark.parametrize("trained", REFUSED)
def test_adapters_without_factors_are_refused_by_name(trained):
    with pytest.raises(InputError, match="no trainable linear layer") as caught:
        find_targets(adapted(REFUSED[trained]), "")
    assert trained in caught.value.message
    assert "LoRA" in caught.value.hint
