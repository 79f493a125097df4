"""Architectures and adapters as people have them, tiny."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from rapidin_cli.gradients.capture.targets import find_targets
from rapidin_cli.gradients.engine import GradientEngine
from tests.support import tiny
from tests.support.oracle import CPU, EXACT, batch, one, plain_loop

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
    # Routers that are linear layers and return a tuple.
    "llama4_text": {
        **{"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
        **{"head_dim": 8, "moe_layers": [0, 1]},
    },
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Layers without a gradient in a pass.
    "deepseek_v4": {
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **{"head_dim": 8, "q_lora_rank": 8, "o_lora_rank": 8},
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}

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
    "with both and norms": LoraConfig(
        **LORA, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head", "norm"]
    ),
    "with biases": LoraConfig(**LORA, target_modules="all-linear", bias="lora_only"),
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
    for row in range(3):
        loss, gradients = plain_loop(model, targets, one(batch(400), row))
        start = 0
        for number, (target, gradient) in enumerate(zip(targets, gradients, strict=True)):
            block = rows.blocks[row, start : start + target.layer.size]
            start += target.layer.size
            torch.testing.assert_close(
                block * rows.norm[row, number], gradient.flatten(), rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(rows.loss[row], loss, rtol=1e-5, atol=1e-5)
