"""Does `rin doctor --data` find the template and the mask that training used?

    python tests/benchmarks/fit.py alpaca_en_demo.json [--skip N] [--rows N] [--base FOLDER]

LoRA adapters of SmolLM2-135M-Instruct are trained on Alpaca rows in five ways. Each is then asked
under the settings of all five, and the table says what it complains of. Settings that are right
should bring no complaint, and settings that are wrong one that names what was right.
"""

import argparse
import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rapidin_cli import Project
from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import Example
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import DataSettings, Row
from rapidin_cli.evaluation.fit import examine_rendering
from rapidin_cli.evaluation.training import Training, fine_tune
from tests.smollm2 import build_base

WAYS = [
    ("chat", "assistant"),
    ("chat", "all"),
    ("alpaca", "assistant"),
    ("alpaca", "all"),
    ("plain", "assistant"),
]


def prepare(folder: Path, data: Path, skip: int, count: int) -> DataSettings:
    rows = json.loads(data.read_text())
    short = [row for row in rows[skip:] if 40 < len(row["output"]) < 500][:count]
    lines = (json.dumps(row) + "\n" for row in short)
    (folder / "data.jsonl").write_text("".join(lines))
    return DataSettings(files=("data.jsonl",), max_tokens=256)


def train(folder: Path, base: Path, settings: DataSettings, epochs: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapted = get_peft_model(model, config)
    rows = [row for row in read_rows(folder, settings) if isinstance(row, Row)]
    found = Encoder(tokenizer, settings).examples(rows)
    examples = [each for each in found if isinstance(each, Example)]
    fine_tune(adapted, examples, Training(epochs=epochs, batch_rows=8, learning_rate=3e-4))
    adapted.save_pretrained(folder / "adapter")


def ask(folder: Path, base: Path, template: str, learn: str) -> str:
    (folder / "rin.toml").write_text(
        f'[data]\nfiles = ["data.jsonl"]\ntemplate = "{template}"\nlearn = "{learn}"\n'
        f'[model]\nbase = "{base}"\ndtype = "float32"\n'
        '[[checkpoints]]\nname = "tuned"\npath = "adapter"\n'
    )
    found = examine_rendering(Project.open(folder).opened(), "cpu")
    words = found.words
    share = "" if words is None else f"own words {words.base:.2f} -> {words.tuned:.2f}"
    best = min(found.fits, key=lambda fit: fit.loss)
    return (
        f"  set {template:7} {learn:10} {share}  best {best.name[:12]!r:16} {best.loss:.3f} "
        f"({best.difference:+.3f} ± {best.error:.3f})  "
        f"{' | '.join(text[:60] for text in found.complaints) or 'no complaint'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--base", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = (asked.base or folder / "base").resolve()
        if asked.base is None:
            build_base(base)
        plain = prepare(folder, asked.data, asked.skip, asked.rows)
        for template, learn in WAYS:
            settings = replace(plain, template=template, learn=learn)
            train(folder, base, settings, asked.epochs)
            print(f"trained as {template}, {learn}", flush=True)
            for other in WAYS:
                print(ask(folder, base, *other), flush=True)


if __name__ == "__main__":
    main()
