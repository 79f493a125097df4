"""An ordinary LoRA on an ordinary decoder, put on its base without importing PEFT.

PEFT brings forty kinds of adapter, and bitsandbytes with PyTorch's compiler where that is
installed: more CPU time than all else that a question takes. What is made here has the names,
the trained parameters and, to the bit, the outputs of PEFT's (tests/integration/
test_plain_lora.py compares them). Whatever is not exactly as expected is left to PEFT: it knows
what to make of it, or how to refuse it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rapidin_cli.models.tensor_files import tensor_header

DECODERS = (
    *("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2"),
    *("phi3", "qwen2", "qwen3", "smollm3", "starcoder2"),
)
"""Dense decoders of transformers whose names have stayed: PEFT converts nothing for them."""
# Settings that say nothing of what an adapter computes. Any other must be empty or off.
_NO_MATTER = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config"),
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PREFIX = "base_model.model."
_NAME = "default"


class LoraLinear(nn.Module):
    """A linear layer and its factors, under the names that PEFT gives them.

    y = W x + scaling * B A dropout(x), where A is (r, I) and B (O, r).
    """

    def __init__(self, base: nn.Linear, rank: int, scaling: float, dropout: float) -> None:
        super().__init__()
        self.base_layer = base
        dropping = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.lora_dropout = nn.ModuleDict({_NAME: dropping})
        # Float32 also on a base of half precision, as PEFT has them.
        first = nn.Linear(base.in_features, rank, bias=False, device="meta", dtype=torch.float32)
        second = nn.Linear(rank, base.out_features, bias=False, device="meta", dtype=torch.float32)
        self.lora_A = nn.ModuleDict({_NAME: first})
        self.lora_B = nn.ModuleDict({_NAME: second})
        self.scaling = scaling
        self.disabled = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for inputs (..., I)."""
        result: torch.Tensor = self.base_layer(x)
        if self.disabled:
            return result
        first, second = self.lora_A[_NAME], self.lora_B[_NAME]
        dropped = self.lora_dropout[_NAME](x.to(torch.float32))
        change: torch.Tensor = second(first(dropped)) * self.scaling
        return (result + change).to(result.dtype)


class _Held(nn.Module):
    """Holds the model one name lower, where PEFT's tuner has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Adapted(nn.Module):
    """A model with an adapter; what is not said here is the model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = _Held(model)

    def get_base_model(self) -> nn.Module:
        """Return the model, whose layers have the adapter."""
        return self.base_model.model

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the model."""
        return self.base_model.model(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model.model, name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run the model as it was before training."""
        layers = [module for module in self.modules() if isinstance(module, LoraLinear)]
        for layer in layers:
            layer.disabled = True
        try:
            yield
        finally:
            for layer in layers:
                layer.disabled = False


def with_plain_lora(model: Any, folder: Path) -> Adapted | None:
    """Put the adapter in a folder on its base; None, and nothing is changed, if PEFT must."""
    weights = folder / "adapter_model.safetensors"
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not weights.exists() or not _is_plain(config) or not _is_dense(model):
        return None
    targets = _targets(model, config["target_modules"])
    if targets is None or not _fit(weights, targets, config["r"]):
        return None
    return _adapted(model, targets, weights, config)


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the settings are those of a LoRA with one rank and nothing else to it."""
    known: dict[str, Callable[[Any], bool]] = {
        "peft_type": lambda v: v == "LORA",
        "task_type": lambda v: v in (None, "CAUSAL_LM"),
        "bias": lambda v: v == "none",
        "init_lora_weights": lambda v: v in (True, False, "gaussian", "orthogonal"),
        "r": lambda v: type(v) is int and v > 0,
        "lora_alpha": lambda v: type(v) in (int, float),
        "lora_dropout": lambda v: type(v) in (int, float) and 0 <= v < 1,
        "use_rslora": lambda v: type(v) is bool,
        "target_modules": lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v),
    }
    if not {"peft_type", "r", "lora_alpha", "target_modules"} <= config.keys():
        return False
    return all(
        known[name](value) if name in known else name in _NO_MATTER or not value
        for name, value in config.items()
    )


def _is_dense(model: Any) -> bool:
    return (
        type(model).__module__.startswith("transformers.models.")
        and model.config.model_type in DECODERS
        and getattr(model.config, "quantization_config", None) is None
        and getattr(model.config, "pretraining_tp", 1) == 1
        and not getattr(model, "_checkpoint_conversion_mapping", None)
    )


def _targets(model: Any, wanted: list[str]) -> dict[str, nn.Linear] | None:
    """Return the layers that an adapter is for, by their names; None if they are unusual."""
    endings = tuple(f".{name}" for name in wanted)
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name in wanted or (endings and name.endswith(endings))
    }
    plain = all(
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.dtype in _DTYPES
        and module is not model.get_output_embeddings()
        for module in found.values()
    )
    alone = len({id(module) for module in found.values()}) == len(found)
    return found if found and plain and alone else None


def _fit(weights: Path, targets: Mapping[str, nn.Linear], rank: int) -> bool:
    """Whether a file holds the factors of these layers, in their sizes, and nothing else."""
    held = {name: (shape, dtype) for name, (dtype, shape, _) in tensor_header(weights)[0].items()}
    expected = {}
    for name, module in targets.items():
        expected[f"{_PREFIX}{name}.lora_A.weight"] = [rank, module.in_features]
        expected[f"{_PREFIX}{name}.lora_B.weight"] = [module.out_features, rank]
    return expected == {name: shape for name, (shape, _) in held.items()} and all(
        dtype in ("F32", "F16", "BF16") for _, dtype in held.values()
    )


def _adapted(
    model: Any, targets: Mapping[str, nn.Linear], weights: Path, config: Mapping[str, Any]
) -> Adapted:
    from safetensors.torch import load_file

    rank, alpha = config["r"], config["lora_alpha"]
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    tensors = load_file(weights)
    model.requires_grad_(False)
    for name, base in targets.items():
        layer = LoraLinear(base, rank, scaling, config.get("lora_dropout", 0.0))
        for part in ("lora_A", "lora_B"):
            values = tensors[f"{_PREFIX}{name}.{part}.weight"].to(base.weight.device)
            factor: Any = getattr(layer, part)[_NAME]
            factor.weight = nn.Parameter(values.to(torch.float32))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return Adapted(model)
