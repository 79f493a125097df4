"""Tiny real models, tokenizers and projects, made in seconds without a model hub."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ANIMALS = ["cat", "dog", "fox", "owl", "hen", "cow", "pig", "ant", "bee", "elk", "emu", "yak"]
PLACES = ["park", "house", "river", "forest", "garden", "street"]


def rows(count: int) -> list[dict[str, str]]:
    """Distinct prompt/response rows of different lengths."""
    made = []
    for n in range(count):
        animal, place = ANIMALS[n % len(ANIMALS)], PLACES[n // len(ANIMALS) % len(PLACES)]
        answer = f"The {animal} number {n} walks in the {place}" + " and sleeps" * (n % 5) + "."
        made.append({"prompt": f"Where is the {animal} number {n}?", "response": answer})
    return made


def write_jsonl(path: Path, items: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the rows, with a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([f"{r['prompt']} {r['response']}" for r in rows(72)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")
    made.chat_template = CHAT_TEMPLATE
    return made


def llama(vocabulary: int = 400, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def gpt2(vocabulary: int = 400) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def cohere(vocabulary: int = 400) -> CohereForCausalLM:
    """A model whose logits are more than its output layer's: scaled by a half."""
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        logit_scale=0.5,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return CohereForCausalLM(config).eval()


def lora(model: torch.nn.Module) -> torch.nn.Module:
    """An adapter as after training: both factors are non-zero."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)  # type: ignore[arg-type]


def project(folder: Path, count: int = 40, *, adapter: bool = True, **settings: Any) -> Path:
    """A folder with data, a base model, one adapter and a rin.toml, ready for `rin cache`.

    Without the adapter all weights are trained, and processes need not import peft.
    """
    base = llama()
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    if adapter:
        adapted = lora(base)
        adapted.peft_config["default"].base_model_name_or_path = "base"  # type: ignore[index,union-attr]
        adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)  # type: ignore[operator]
    write_jsonl(folder / "data.jsonl", rows(count))
    lines = {
        "max_tokens": 64,
        "dimensions": 2048,
        "precision": "int8",
        "sketch": "tensorsketch",
        "batch_tokens": 256,
        "commit_seconds": 30,
        **settings,
    }
    (folder / "rin.toml").write_text(
        f"""
[data]
files = ["data.jsonl"]
template = "chat"
max_tokens = {lines["max_tokens"]}
[model]
dtype = "float32"
[[checkpoints]]
name = "tuned"
path = "{"adapter" if adapter else "base"}"
[gradient]
dimensions = {lines["dimensions"]}
precision = "{lines["precision"]}"
sketch = "{lines["sketch"]}"
[cache]
batch_tokens = {lines["batch_tokens"]}
commit_seconds = {lines["commit_seconds"]}
"""
    )
    return folder
