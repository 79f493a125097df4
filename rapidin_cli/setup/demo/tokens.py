"""The demo's tokenizer: text to tokens, by one chat template everywhere."""

from collections.abc import Sequence
from typing import Any

from rapidin_cli.data.examples import IGNORED

Row = dict[str, str]
Tokens = tuple[list[int], list[int]]
"""Token ids, and labels: IGNORED where nothing is learnt."""

_PAD, _USER, _ASSISTANT, _END = _SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(rows: Sequence[Row]) -> Any:
    """Train a byte-level BPE tokenizer with a chat template on the rows' text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (row[field] for row in rows for field in ("prompt", "response"))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        additional_special_tokens=[_USER, _ASSISTANT],
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def prompt_text(tokenizer: Any, prompt: str) -> str:
    """Return what the model reads before it answers."""
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def tokenize(tokenizer: Any, rows: Sequence[Row]) -> list[Tokens]:
    """Return tokens and labels of each row; the prompt is not learnt."""
    encoded = []
    for row in rows:
        before = prompt_text(tokenizer, row["prompt"])
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert text.startswith(before)
        prompt, ids = tokenizer(before).input_ids, tokenizer(text).input_ids
        encoded.append((ids, [IGNORED] * len(prompt) + ids[len(prompt) :]))
    return encoded
