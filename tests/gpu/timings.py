"""Caching over a training step on a model of 1.1 B parameters, and the speed of a scan."""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from rapidin_cli.data.examples import Example, padded, plan_batches
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.layout import Layer, RowLayout
from rapidin_cli.gradients.memory import batch_bytes, batch_limit
from rapidin_cli.gradients.passes import Batch
from rapidin_cli.gradients.rows.kinds import RowKind, row_kind
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.loading import load_model, quiet_loading
from rapidin_cli.work.devices import compute_dtype
from tests.gpu.lab import Lab, example
from tests.support import tiny

FACTORS = GradientSpec(row="factors", rank=4, precision="int4")
# TinyLlama's shape.
LARGE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
RANK = 16
SECONDS = 12.0  # of measuring, for each size of a batch


def large_model(lab: Lab) -> None:
    """Make a base model in bfloat16 and an adapter on all linear layers, and save them."""
    folder = lab.folder / "large"
    seconds = lab.seconds(lambda: _made(lab, folder))
    about = json.loads((folder / "about.json").read_text())
    lab.figures |= about
    lab.note("seconds", seconds)
    checkpoint = tuned(folder)
    loaded: list[Any] = []
    lab.note("seconds to load", lab.seconds(lambda: loaded.append(_load(lab, checkpoint))))
    lab.true("the device has it", next(loaded[0].parameters()).device.type == lab.device.type)


def large_folder(lab: Lab) -> Path:
    """Where the large model is; made anew if a step before could not."""
    folder = lab.folder / "large"
    if not (folder / "about.json").exists():
        _made(lab, folder)
    return folder


def tuned(folder: Path) -> Checkpoint:
    """The base model with its adapter."""
    return Checkpoint("tuned", folder / "adapter", folder / "base")


def _made(lab: Lab, folder: Path) -> None:
    shape = SMALL if lab.small else LARGE
    config = LlamaConfig(
        **shape, max_position_embeddings=2048, bos_token_id=None, eos_token_id=1, pad_token_id=0
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(lab.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    with quiet_loading():
        model.save_pretrained(folder / "base")
        tiny.tokenizer().save_pretrained(folder / "base")
        settings = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
        adapted: Any = get_peft_model(model, settings)
        adapted.peft_config["default"].base_model_name_or_path = "base"
        adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    sizes = {True: 0, False: 0}
    for parameter in adapted.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    # Written last: it says that the rest is whole.
    about = {"parameters": sizes[False], "parameters of the adapter": sizes[True]}
    (folder / "about.json").write_text(json.dumps(about))


def lora(lab: Lab) -> None:
    """Rows of an adapter of rank 16 on all linear layers, against its training step."""
    sizes = [256, 512] if lab.small else [4096, 8192]
    if lab.memory < 70e9 and not lab.small:
        sizes = [4096] if lab.memory > 35e9 else [1024]
    _compare(lab, tuned(large_folder(lab)), sizes)


def all_weights(lab: Lab) -> None:
    """Rows of all linear layers, against a training step of the whole model."""
    sizes = [256] if lab.small else [4096] if lab.memory > 35e9 else [1024]
    _compare(lab, Checkpoint("all", large_folder(lab) / "base", None), sizes)


def _compare(lab: Lab, checkpoint: Checkpoint, sizes: list[int]) -> None:
    """Note ratios, speeds and memory for batches of so many padded tokens."""
    compute: Any = compute_dtype("auto", lab.device.type)
    trained, watched = _load(lab, checkpoint), _load(lab, checkpoint)
    trainable = [p for p in watched.parameters() if p.requires_grad]

    def train(batch: Batch) -> None:
        ids, labels = batch.input_ids.to(lab.device), batch.labels.to(lab.device)
        enabled = compute == "bfloat16"
        with torch.autocast(lab.device.type, dtype=torch.bfloat16, enabled=enabled):
            loss = trained(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        trained.zero_grad(set_to_none=True)

    works: dict[str, Callable[[Batch], Any]] = {"training": train}
    for kind, spec in {"sketch": GradientSpec(), "factors": FACTORS}.items():
        for parameter in trainable:  # an engine freezes them
            parameter.requires_grad_(True)
        engine = GradientEngine(watched, spec, lab.device, compute)
        works[kind] = partial(_cache, engine, row_kind(engine.layout))
        if kind == "sketch":
            works["sketch, not encoded"] = engine
            takes = batch_bytes(engine.passes)
            lab.note("predicted bytes a token", takes.token)
            lab.note("predicted bytes of a batch beside them", takes.once)
            lab.note("predicted limit of a batch", batch_limit(lab.device, takes))
    lab.note("layers", len(engine.layout.layers))
    for tokens in sizes:
        _timed(lab, works, _batches(lab, tokens), f"{tokens:,} tokens")


def _cache(engine: GradientEngine, rows: RowKind, batch: Batch) -> None:
    rows.encode(engine(batch))


def _timed(
    lab: Lab, works: dict[str, Callable[[Batch], Any]], batches: list[Batch], name: str
) -> None:
    """Time all works on the same batches, and note what each took."""
    times = _times(lab, works, batches)
    largest, steps = batches[0].input_ids.numel(), len(times["training"])
    counts = [int((batch.input_ids > 0).sum()) for batch in batches]
    tokens = sum(counts[number % len(batches)] for number in range(steps))
    for kind, work in works.items():
        lab.note(f"{name}: tokens a second, {kind}", tokens / sum(times[kind]))
        peak = lab.peak(partial(work, batches[0]))
        lab.note(f"{name}: peak bytes a padded token, {kind}", peak / largest)
        if kind != "training":
            pairs = zip(times[kind], times["training"], strict=True)
            ratios = sorted(ours / theirs for ours, theirs in pairs)
            lab.note(f"{name}: {kind} over training", statistics.median(ratios))
            lab.note(f"{name}: {kind} over training, range", [ratios[0], ratios[-1]])
    lab.note(f"{name}: milliseconds of a training step", 1e3 * statistics.median(times["training"]))
    lab.note(f"{name}: batches timed", steps)
    lab.note(f"{name}: padded tokens of the largest", largest)
    lab.tell(f"{name}: sketch {lab.figures[f'{name}: sketch over training']} of a training step")


def _times(
    lab: Lab, works: dict[str, Callable[[Batch], Any]], batches: list[Batch]
) -> dict[str, list[float]]:
    """Time all works in turn, batch by batch, for as long as there is time."""
    for work in works.values():
        for batch in (batches[0], batches[-1]):
            work(batch)  # kernels are chosen, memory is laid out
    times: dict[str, list[float]] = {kind: [] for kind in works}
    end = time.monotonic() + (0.2 if lab.small else SECONDS)
    for number in range(60):
        batch = batches[number % len(batches)]
        for kind, work in works.items():
            times[kind].append(lab.seconds(partial(work, batch)))
        if time.monotonic() > end and number >= 2:
            break
    return times


def _batches(lab: Lab, tokens: int) -> list[Batch]:
    """The longest and others of the batches that caching would make of 400 rows."""
    plan = plan_batches(_rows(lab, 400), (), tokens)
    step = max(1, len(plan) // 5)
    return [Batch(*map(torch.from_numpy, padded(batch))) for batch in plan[::step][:5]]


def _rows(lab: Lab, count: int) -> list[Example]:
    """Random tokens in rows as long as those of instruction data, 8 to 1,024."""
    middle, most = (20, 60) if lab.small else (180, 1024)
    drawn = np.random.default_rng(1).lognormal(np.log(middle), 0.7, count)
    lengths = np.clip(drawn, 8, most).astype(int)
    vocabulary = (SMALL if lab.small else LARGE)["vocab_size"]
    return [
        example(n, int(length), max(2, int(length) // 3), vocabulary)
        for n, length in enumerate(lengths)
    ]


def _load(lab: Lab, checkpoint: Checkpoint) -> Any:
    float32 = compute_dtype("auto", lab.device.type) == "float32"
    return load_model(checkpoint, str(lab.device), float32=float32)


def scan(lab: Lab) -> None:
    """How fast rows of 65,536 numbers are multiplied where they are held, and from memory."""
    rows, width, layers = (64, 4096, 8) if lab.small else (8192, 65_536, 128)
    made = tuple(Layer(str(n), 2048, 2048) for n in range(layers))
    generator = np.random.default_rng(0)
    for precision in ("int8", "sign", "float16"):
        spec = GradientSpec(dimensions=width, precision=precision)  # type: ignore[arg-type]
        layout = RowLayout(spec, made, (width // layers,) * layers)
        here = _stored(generator, precision, rows, width, layers)
        there = {name: torch.from_numpy(values).to(lab.device) for name, values in here.items()}
        size = here["sketch"].nbytes
        weights = torch.rand(rows, layers)
        for queries in (1, 64):
            products = row_kind(layout).products(torch.randn(queries, width), lab.device)
            for place, stored in {"held": there, "read": here}.items():
                work = partial(products, stored, weights)
                work()
                seconds = min(lab.seconds(work) for _ in range(3))
                speed = size / seconds / 1e9
                lab.note(f"{precision}, {queries} queries, {place}: GB a second", speed)


def _stored(
    generator: np.random.Generator, precision: str, rows: int, width: int, layers: int
) -> dict[str, Any]:
    match precision:
        case "int8":
            sketch: Any = generator.integers(-127, 128, (rows, width), dtype=np.int8)
        case "sign":
            sketch = generator.integers(0, 256, (rows, width // 8), dtype=np.uint8)
        case _:
            sketch = generator.random((rows, width), dtype=np.float32).astype(np.float16)
    norm = np.ones((rows, layers), np.float32)
    return {"sketch": sketch, "scale": np.ones(rows, np.float32), "norm": norm}
