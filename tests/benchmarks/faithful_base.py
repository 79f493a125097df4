"""The base model of `faithfulness.py`, trained on plain text."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Example
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.data.shapes import parse_row
from rapidin_cli.evaluation.training import Training, fine_tune

ROWS, QUERIES = 300, 40

SETTINGS = DataSettings(
    files=("data.jsonl",), template="{instruction}\n{input}\n", max_tokens=64, append_eos=True
)

VOCABULARY = 1024

PRETRAINING = Training(epochs=12, batch_rows=16, learning_rate=3e-3)


def encode(tokenizer: Any, rows: Sequence[dict[str, str]]) -> list[Example]:
    """Tokenise rows; the few that are cut before their output begins are left out."""
    parsed = (parse_row(row, "alpaca", SETTINGS, "data", n) for n, row in enumerate(rows))
    made = Encoder(tokenizer, SETTINGS).examples(parsed)
    return [example for example in made if isinstance(example, Example)]


def make_base(folder: Path, rows: list[dict[str, str]], seed: int = 0) -> None:
    """Train a tokenizer and a base model, and write the data of the fine-tuning.

    Args:
        seed: of the model, and of which rows are the data and the queries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{r['instruction']}\n{r['input']}\n{r['output']}" for r in rows]
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>"
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            initializer_range=0.04,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    order = list(rows)
    random.Random(seed).shuffle(order)
    parts = {"data": order[:ROWS], "queries": order[ROWS : ROWS + QUERIES]}
    for name, part in parts.items():
        lines = "".join(json.dumps({"id": f"{name}-{n}", **r}) + "\n" for n, r in enumerate(part))
        (folder / f"{name}.jsonl").write_text(lines)
    fine_tune(model, encode(tokenizer, order[ROWS + QUERIES :]), PRETRAINING)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
