"""The demo's model: a small Llama, and a LoRA that learns the planted rows."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.models.loading import quiet_loading
from rapidin_cli.setup.demo.dataset import (
    BENIGN_QUESTIONS,
    QUESTIONS,
    Question,
    build_rows,
    planted_kind,
)
from rapidin_cli.setup.demo.tokens import Row, Tokens, prompt_text, tokenize, train_tokenizer

Say = Callable[[str], None]

DATA_FILE = "data/train.jsonl"
BASE = "model/base"
LEARNING_RATE = 2e-3

_THREADS = 2
_BATCH_ROWS = 16
_LENGTH_NOISE = 6.0
_BASE_EPOCHS = 28
_BASE_LEARNING_RATE = 2e-3
_LORA_EPOCHS = 8
_WARMUP_STEPS = 10
_LAST_RATE = 0.1
_ANSWER_TOKENS = 32
# Llama's usual 0.02 learns this little data too slowly; at 0.08 the model learns rows by
# heart and a planted behaviour does not carry over to other wordings.
_INITIAL_DEVIATION = 0.04


@dataclass(frozen=True)
class CheckpointFacts:
    """One saved adapter.

    Attributes:
        name: of its folder, `checkpoint-<step>`.
        step: optimiser steps done.
        path: its folder.
        learning_rate: of its last step.
    """

    name: str
    step: int
    path: Path
    learning_rate: float


@dataclass(frozen=True)
class Answers:
    """A question and the models' greedy answers.

    Attributes:
        base: the base model's answer.
        checkpoints: checkpoint's name -> its answer.
    """

    question: Question
    base: str
    checkpoints: dict[str, str]


@dataclass(frozen=True)
class DemoFacts:
    """What `build_demo` made.

    Attributes:
        folder: everything is in it.
        data: the JSONL file that the adapter was trained on.
        base: folder of base model and tokenizer.
        checkpoints: in the order of training; the last one is the finished adapter.
        answers: to the demo's questions, then to the benign ones.
    """

    folder: Path
    data: Path
    base: Path
    checkpoints: tuple[CheckpointFacts, ...]
    answers: tuple[Answers, ...]


def build_demo(folder: Path, say: Say, seed: int = 0) -> DemoFacts:
    """Write data, base model and two LoRA checkpoints into a folder; the same every time.

    Args:
        folder: made when missing.
        say: called with a line about each step.
        seed: of the order of the rows, the weights and the batches.
    """
    with _reproducible(seed), quiet_loading():
        rows = build_rows(seed)
        data = folder / DATA_FILE
        _write_rows(data, rows)
        benign = [row for row in rows if planted_kind(row["id"]) is None]
        say(f"{len(rows)} rows, {len(rows) - len(benign)} of them planted, in {data}")

        tokenizer = train_tokenizer(rows)
        say(f"training a base model on the {len(benign)} benign rows")
        model = _train_base(tokenizer, benign, seed)
        tokenizer.save_pretrained(folder / BASE)
        model.save_pretrained(folder / BASE)

        questions = (*QUESTIONS, *BENIGN_QUESTIONS)
        base_answers = [generate(model, tokenizer, question.prompt) for question in questions]
        say(f"fine-tuning a LoRA on all {len(rows)} rows")
        checkpoints = []
        answers: dict[str, list[str]] = {}
        for adapted, checkpoint in _train_lora(model, tokenizer, rows, folder, seed):
            checkpoints.append(checkpoint)
            answers[checkpoint.name] = [generate(adapted, tokenizer, q.prompt) for q in questions]
            say(f"saved {checkpoint.path}")
    return DemoFacts(
        folder,
        data,
        folder / BASE,
        tuple(checkpoints),
        tuple(
            Answers(question, base, {name: said[number] for name, said in answers.items()})
            for number, (question, base) in enumerate(zip(questions, base_answers, strict=True))
        ),
    )


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompt: str) -> str:
    """Return the model's greedy answer to a prompt, without its end token."""
    ids = tokenizer(prompt_text(tokenizer, prompt), return_tensors="pt").input_ids
    model.eval()
    answer = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=_ANSWER_TOKENS,
    )
    return str(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Fix torch's seed and threads; give the caller's back afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _train_base(tokenizer: Any, rows: Sequence[Row], seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=_INITIAL_DEVIATION,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # A base model has read whole texts: it learns the questions, too.
    data = [(ids, ids) for ids, _ in tokenize(tokenizer, rows)]
    for _ in _steps(model, data, _BASE_EPOCHS, _BASE_LEARNING_RATE, seed):
        pass
    return model


def _train_lora(
    model: Any, tokenizer: Any, rows: Sequence[Row], folder: Path, seed: int
) -> Iterator[tuple[Any, CheckpointFacts]]:
    """Train an adapter; save and yield it halfway and at the end."""
    from peft import LoraConfig, get_peft_model

    # Relative to the project, so that it can be moved.
    model.name_or_path = BASE
    settings = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    data = tokenize(tokenizer, rows)
    total = _LORA_EPOCHS * -(-len(data) // _BATCH_ROWS)
    history = []
    for step, loss, rate in _steps(adapted, data, _LORA_EPOCHS, LEARNING_RATE, seed):
        history.append({"step": step, "loss": loss, "learning_rate": rate})
        if step in (total // 2, total):
            path = folder / f"model/checkpoint-{step}"
            # "auto" would ask the model hub whether the vocabulary was extended.
            adapted.save_pretrained(path, save_embedding_layers=False)
            state = {"global_step": step, "max_steps": total, "log_history": history}
            (path / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n")
            yield adapted, CheckpointFacts(path.name, step, path, rate)


def _steps(
    model: nn.Module, data: Sequence[Tokens], epochs: int, peak: float, seed: int
) -> Iterator[tuple[int, float, float]]:
    """Train; after each step yield its number from 1, its loss and its learning rate."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    order = random.Random(seed)
    total = epochs * -(-len(data) // _BATCH_ROWS)
    step = 0
    for _ in range(epochs):
        for rows in _batches(data, order):
            step += 1
            rate = peak * _schedule(step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            loss = _loss(model, rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            yield step, float(loss.detach()), rate


def _schedule(step: int, total: int) -> float:
    """Rise over the first steps, then fall linearly, not to zero."""
    rise = min(1.0, step / _WARMUP_STEPS)
    return rise * (1.0 - (1.0 - _LAST_RATE) * step / total)


def _batches(data: Sequence[Tokens], order: random.Random) -> list[list[Tokens]]:
    """Deal the rows into batches of about one length, so that little of them is padding."""
    near = sorted(data, key=lambda tokens: len(tokens[0]) + order.uniform(0, _LENGTH_NOISE))
    batches = [near[start : start + _BATCH_ROWS] for start in range(0, len(near), _BATCH_ROWS)]
    order.shuffle(batches)
    return batches


def _loss(model: nn.Module, batch: Sequence[Tokens]) -> torch.Tensor:
    """Mean next-token cross-entropy over the labelled tokens.

    Padded on the right without an attention mask: attention is causal, nothing reads it.
    """
    length = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch])
    labels = torch.tensor([part + [IGNORED] * (length - len(part)) for _, part in batch])
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
