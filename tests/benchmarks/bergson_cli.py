"""Scores of every training row for every query from bergson's own command line.

bergson finds the part of a text that is learnt from through a chat template, so the tokenizer
is given one that only joins prompt and completion. On a CPU without torchvision and torchaudio
(they do not import beside a CPU build of torch):

    python -m venv bergson; bergson/bin/pip install torch==2.13.0 bergson
    bergson/bin/pip uninstall -y torchvision torchaudio
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapidin_cli.data.examples import Example

# Prompt and completion, one after the other, with nothing in between or around.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
DIMENSION = 16


def bergson_scores(
    bergson: str,
    work: Path,
    model: Path,
    tokenizer: Path,
    data_jsonl: Path,
    query_jsonl: Path,
) -> dict[str, tuple[np.ndarray, int]]:
    """Run bergson; return name -> (rows x queries, positive helps; bytes of a row's gradient).

    Args:
        bergson: the executable.
        work: a folder for everything that is written; what an earlier run left is replaced.
        model: a Hugging Face model or a PEFT adapter.
        tokenizer: a folder with tokenizer.json and tokenizer_config.json.
        data_jsonl: the training rows: `prompt` and `completion`, as text.
        query_jsonl: the queries, the same way.

    The bytes are those of one row in the index that `bergson build` writes with the method's
    projection. `score`, `trackstar` and `ekfac` pass over the rows anew and store no index.
    """
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    bench = _Bergson(bergson, work, model, _with_template(tokenizer, work / "tokenizer"))
    alone = _columns("", data_jsonl)
    both = [*_columns("data.", data_jsonl), *_columns("query.", query_jsonl)]
    projected = ["--projection_dim", str(DIMENSION)]
    results: dict[str, tuple[np.ndarray, int]] = {}

    # 1. Cosine of projected gradients.
    index = bench.run("build", "cosine-index", *alone, *projected)
    queries = bench.run("build", "cosine-queries", *_columns("", query_jsonl), *projected)
    scores = bench.run(
        *("score", "cosine-scores", *alone, *projected),
        *("--query_path", str(queries), "--unit_normalize"),
    )
    results["cosine"] = (_scores(scores), _row_bytes(index))

    # 2. TrackStar.
    where = bench.run("trackstar", "trackstar", *both, *projected)
    results["trackstar"] = (_scores(where / "scores"), _row_bytes(where / "query"))

    # 3. EK-FAC: without --hessian_cfg.ev_correction it is plain K-FAC.
    corrected = ("--method", "kfac", "--hessian_cfg.ev_correction")
    where = bench.run("ekfac", "ekfac", *both, *corrected)
    results["ekfac"] = (_scores(where / "scores"), _row_bytes(where / "query"))

    (work / "seconds.json").write_text(json.dumps(bench.seconds))
    return results


def _with_template(tokenizer: Path, folder: Path) -> Path:
    """Copy a tokenizer, with the chat template that joins prompt and completion."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    changed = json.dumps({**config, "chat_template": TEMPLATE})
    (folder / "tokenizer_config.json").write_text(changed)
    return folder


def _columns(part: str, file: Path) -> list[str]:
    return [
        *(f"--{part}dataset", str(file.absolute())),
        *(f"--{part}prompt_column", "prompt"),
        *(f"--{part}completion_column", "completion"),
    ]


class _Bergson:
    """The executable on one model; `seconds` has the time of each command."""

    def __init__(self, bergson: str, work: Path, model: Path, tokenizer: Path) -> None:
        self._start = bergson
        self._work = work
        self._model = ["--model", str(model.absolute()), "--tokenizer", str(tokenizer)]
        self.seconds: dict[str, float] = {}

    def run(self, command: str, name: str, *more: str) -> Path:
        where = self._work / name
        shutil.rmtree(where, ignore_errors=True)
        shutil.rmtree(f"{where}.part", ignore_errors=True)
        line = [self._start, command, str(where), *self._model, "--nproc_per_node", "1", *more]
        start = time.monotonic()
        with (self._work / f"{name}.log").open("w") as log:
            log.write(" ".join(line) + "\n")
            log.flush()
            done = subprocess.run(
                line,
                cwd=self._work,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        self.seconds[name] = round(time.monotonic() - start, 1)
        if done.returncode:
            tail = (self._work / f"{name}.log").read_text()[-3000:]
            raise RuntimeError(f"bergson {command} failed ({done.returncode}):\n{tail}")
        return where

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self._work / "datasets"),
            "HF_MODULES_CACHE": str(self._work / "modules"),
        }


def _scores(folder: Path) -> np.ndarray:
    """Read scores.bin: a (score, written) pair for each query in every row."""
    info = json.loads((folder / "info.json").read_text())
    table = np.fromfile(folder / "scores.bin", dtype=np.dtype(info["dtype"]))
    if len(table) != info["num_rows"]:
        raise RuntimeError(f"{folder}: {len(table)} rows, not {info['num_rows']}")
    count = range(info["num_scores"])
    if not all(table[f"written_{n}"].all() for n in count):
        raise RuntimeError(f"{folder}: some scores were never written")
    return np.stack([table[f"score_{n}"] for n in count], axis=1).astype(np.float32)


def _row_bytes(folder: Path) -> int:
    rows = json.loads((folder / "info.json").read_text())["num_grads"]
    return (folder / "gradients.bin").stat().st_size // rows


def write_examples(path: Path, examples: Sequence[Example], tokenizer: Any) -> Path:
    """Write examples as prompt and completion; their tokens stay what they are."""
    lines = []
    for example in examples:
        learnt = example.learnt_mask
        prompt = tokenizer.decode(example.input_ids[~learnt].tolist())
        completion = tokenizer.decode(example.input_ids[learnt].tolist())
        again = tokenizer(prompt + completion, add_special_tokens=False).input_ids
        if again != example.input_ids.tolist():
            raise RuntimeError(f"the text of {example.row.id} gives other tokens")
        lines.append(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path
