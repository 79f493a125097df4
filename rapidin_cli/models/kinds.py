"""What a checkpoint is, by its configuration: what rin explains goes on, all else is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapidin_cli.errors import InputError

_CAUSAL = ("CausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeads")
_PROMPTS = {
    "PROMPT_TUNING": "prompt tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "PREFIX_TUNING": "prefix tuning",
    "P_TUNING": "p-tuning",
    "ADAPTION_PROMPT": "a LLaMA-Adapter",
    "CPT": "context-aware prompt tuning",
}
_ONLY = "rin supports LoRA, rsLoRA and DoRA adapters, and full models"


def check_adapter(name: str, config: Mapping[str, Any]) -> None:
    """Refuse an adapter that cannot be explained, or not be loaded as it was trained.

    Args:
        name: of the checkpoint.
        config: adapter_config.json.

    Raises:
        InputError: what it is, and what to do.
    """
    what = f"checkpoint {name!r}"
    if config.get("alora_invocation_tokens"):
        raise InputError(
            f"{what} is an activated LoRA, which acts on only part of a text", hint=_ONLY
        )
    kind = str(config.get("peft_type") or "LORA")
    if kind in _PROMPTS:
        raise InputError(
            f"{what} is {_PROMPTS[kind]} ({kind}): what was trained is no weight of a layer",
            hint=_ONLY,
        )
    task = config.get("task_type")
    if task not in (None, "", "CAUSAL_LM"):
        raise InputError(
            f"{what} was trained for the task {task}: it is no causal language model",
            hint="rin explains what causal language models say; name such a checkpoint",
        )
    _check_start(what, config)


def _check_start(what: str, config: Mapping[str, Any]) -> None:
    """LoRA may start from a decomposition of the base, which loading computes again."""
    start = config.get("init_lora_weights")
    start = start.lower() if isinstance(start, str) else ""
    convert = (
        "save it as an ordinary LoRA: model.save_pretrained(OUT, "
        "path_initial_model_for_weight_conversion=FOLDER), with the adapter as it was before "
        "training in FOLDER"
    )
    if start.startswith("pissa_niter_"):
        raise InputError(
            f"{what} began as a fast PiSSA ({start}), whose base PEFT decomposes by chance anew "
            "at every load, so it is another model each time",
            hint=convert,
        )
    if start.startswith("corda"):
        raise InputError(
            f"{what} began as CorDA, whose base PEFT cannot decompose again without the data",
            hint=convert,
        )
    if start == "lora_ga":
        raise InputError(
            f"{what} began as LoRA-GA, whose base PEFT cannot change again without the gradients",
            hint=convert,
        )


def check_model(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a model that is no causal language model.

    Args:
        name: of the checkpoint.
        config: config.json.

    Raises:
        InputError: what it is.
    """
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    hint = "rin explains what decoder-only models say; name such a checkpoint in rin.toml"
    if config.get("is_encoder_decoder"):
        kind = kinds[0] if kinds else config.get("model_type", "a model")
        raise InputError(
            f"checkpoint {name!r} is {kind}, which has an encoder: its text is not one sequence",
            hint=hint,
        )
    if kinds and not any(known in kind for kind in kinds for known in _CAUSAL):
        raise InputError(
            f"checkpoint {name!r} is {kinds[0]}, which is no causal language model", hint=hint
        )


def check_start(name: str, config: Mapping[str, Any]) -> None:
    """Refuse the start of an adapter that began otherwise than without effect.

    Raises:
        InputError: how it began.
    """
    began = config.get("init_lora_weights")
    if isinstance(began, str) and began.lower() not in ("gaussian", "eva", "orthogonal"):
        raise InputError(
            f"checkpoint {name!r}: the adapter began as {began}, which changes its base, so the "
            "model before training cannot be told from it",
            hint=f"remove {name!r} from rin.toml",
        )
