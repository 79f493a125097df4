"""Loading a checkpoint: model, adapter, tokenizer; whole, or not at all."""

from __future__ import annotations

import gc
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli.errors import InputError
from rapidin_cli.models.checkpoints import TOKENIZER_FILES, Checkpoint, read_json
from rapidin_cli.models.kinds import check_model
from rapidin_cli.models.tensor_files import only_factors, tensor_shapes
from rapidin_cli.models.weights import weights_of

if TYPE_CHECKING:
    from torch import nn

# How PEFT begins to name what an adapter's files lack.
_MISSING = "Found missing adapter keys while loading the checkpoint:"
_COMPILED = "_orig_mod."
# Names under which PEFT saves a whole matrix of embeddings.
_WHOLE = (
    *("weight", "base_layer.weight", "modules_to_save.weight"),
    "token_adapter.base_layer.weight",
)
# Tokens by which a vocabulary may have been resized; more, and it is another model's.
_MOST_ADDED = 4096


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of the terminal."""
    import warnings

    with uncollected():
        import transformers

        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                transformers.logging.set_verbosity(verbosity)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's collector out of what makes objects that stay.

    transformers are a million of them; to look through them again and again while they are
    imported takes a sixth of the time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's tokenizer.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.tokenizer_path
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=checkpoint.trust_remote_code
            )
    except Exception as error:  # the tokenizers library raises nothing narrower
        if not any((folder / name).exists() for name in TOKENIZER_FILES):
            raise InputError(
                f"checkpoint {checkpoint.name!r} has no tokenizer: there is none in {folder}",
                hint="save it there: tokenizer.save_pretrained(FOLDER)",
            ) from None
        raise _cannot_load("the tokenizer", checkpoint, error) from None


def load_model(checkpoint: Checkpoint, device: str, *, float32: bool = True) -> nn.Module:
    """Load model and adapter on a device; the parameters that were trained require a gradient.

    Weights are float32 with `float32`, and always on a CPU, where autocast casts them;
    otherwise they keep the dtype that they were saved in. Of a model that also sees, the text
    side runs: nothing else is called for text.

    Raises:
        InputError: the weights cannot be loaded, some are missing, or they changed meanwhile.
    """
    import torch

    dtype: Any = torch.float32 if float32 or device == "cpu" else "auto"
    folder = checkpoint.base or checkpoint.path
    config = read_json(folder / "config.json")
    check_model(checkpoint.name, config)
    # A quantised model is put on its device as it is read, and cannot be moved.
    quantised = "quantization_config" in config
    try:
        with quiet_loading():
            model, found = _class_for(folder, checkpoint).from_pretrained(
                folder,
                output_loading_info=True,
                dtype=dtype,
                use_safetensors=not weights_of(folder).pickled,
                trust_remote_code=checkpoint.trust_remote_code,
                device_map={"": device} if quantised else None,
            )
        _refuse_classifier(checkpoint, [*found["unexpected_keys"]])
        _refuse_incomplete(checkpoint, folder, [*found["missing_keys"]])
        _refuse_incomplete(checkpoint, folder, [key for key, *_ in found["mismatched_keys"]])
        if checkpoint.base is not None:
            model = with_adapter(model, checkpoint)
            if checkpoint.start:
                _to_start(model, checkpoint)
        heads = [key for key in found["unexpected_keys"] if key.startswith("v_head.")]
        shapes = tensor_shapes(folder) if heads else {}
        loaded: nn.Module = (model if quantised else model.to(device)).eval()
        module: Any
        for module in loaded.modules():
            # bitsandbytes' kernel for this kind of CPU has no gradient, and warns at most.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, IndexError) as error:
        raise _cannot_load("the model", checkpoint, error) from None
    # Named among what is not captured, see `gradients.capture.beside`.
    loaded.rin_beside = [(key, math.prod(shapes[key])) for key in heads]  # type: ignore[assignment]
    checkpoint.check_unchanged()
    return loaded


def _class_for(folder: Path, checkpoint: Checkpoint) -> Any:
    """The class of transformers that loads a model: of text, or of text beside images."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    trust = checkpoint.trust_remote_code
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    remote = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise InputError(
        f"checkpoint {checkpoint.name!r} is a model of the type {config.model_type}, which "
        "transformers knows neither as a causal language model nor as one that also sees",
        hint="rin explains what decoder-only models say; name such a checkpoint in rin.toml",
    )


def _refuse_classifier(checkpoint: Checkpoint, unexpected: list[str]) -> None:
    """Raise InputError if the files hold a head that a language model has no use for."""
    heads = [key for key in unexpected if re.fullmatch(r"(score|classifier|reward_head)\..*", key)]
    if heads:
        raise InputError(
            f"checkpoint {checkpoint.name!r} has {heads[0]}: it is a classifier or a reward model",
            hint="rin explains what causal language models say; name such a checkpoint",
        )


def _refuse_incomplete(checkpoint: Checkpoint, folder: Path, missing: list[str]) -> None:
    """Raise InputError if tensors are missing: loading would fill them with random numbers."""
    if missing and any(_COMPILED in name for name in tensor_shapes(folder)):
        file = weights_of(folder).files[0]
        raise InputError(
            f"the tensors of checkpoint {checkpoint.name!r} have names with {_COMPILED!r}: it was "
            "saved from a compiled model",
            hint=f'rename them: python -c "from safetensors.torch import load_file as l, '
            f"save_file as s; f = '{file}'; s({{k.replace('{_COMPILED}', ''): v for k, v in "
            f"l(f).items()}}, f, {{'format': 'pt'}})\"",
        )
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(
            f"the weights of checkpoint {checkpoint.name!r} are incomplete: {folder} lacks "
            f"{min(missing)}{more}",
            hint="save the checkpoint again, or correct its path or [model] base in rin.toml",
        )


def with_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    """Put a checkpoint's adapter on its base model; PEFT itself says what its files lack."""
    import warnings

    from rapidin_cli.models.plain_lora import with_plain_lora

    shapes = tensor_shapes(checkpoint.path)
    _resize(model, shapes, checkpoint)
    plain = with_plain_lora(model, checkpoint.path)
    if plain is not None:
        return plain
    with warnings.catch_warnings(record=True) as told, quiet_loading():
        from peft import PeftModel

        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, checkpoint.path, is_trainable=True)
    for warning in told:
        _, found, names = str(warning.message).partition(_MISSING)
        if found:
            _refuse_incomplete(checkpoint, checkpoint.path, re.findall(r"'([^']+)'", names))
    return adapted


def _resize(model: Any, shapes: dict[str, list[int]], checkpoint: Checkpoint) -> None:
    """Give the base the vocabulary that the adapter was trained with.

    The new rows are zeros until the adapter's own take their place.
    """
    import torch

    parts = {"in": model.get_input_embeddings(), "out": model.get_output_embeddings()}
    names = {id(module): name for name, module in model.named_modules()}
    saved: dict[str, int] = {}
    factors: set[int] = set()
    for part, module in parts.items():
        name = names.get(id(module), "?")
        for key, shape in shapes.items():
            inner = key.rpartition(f"{name}.")[2]
            if inner in _WHOLE:
                saved[part] = shape[0]
            elif inner == "lora_embedding_A":
                factors.add(shape[1])
            elif inner == "lora_B.weight":
                factors.add(shape[0])
    before = parts["in"].weight.shape[0]
    sizes = {*saved.values(), *factors} - {before}
    if len(sizes) != 1 or abs((size := sizes.pop()) - before) > _MOST_ADDED:
        return
    if (
        size > before
        and (lacking := {"in", "out"} - saved.keys())
        and not (lacking == {"out"} and model.config.get_text_config().tie_word_embeddings)
    ):
        raise InputError(
            f"the adapter of checkpoint {checkpoint.name!r} was trained with {size:,} tokens "
            f"instead of {before:,}, but does not hold the new ones' embeddings",
            hint="save it again: model.save_pretrained(FOLDER, save_embedding_layers=True)",
        )
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                module.weight[before:] = 0


def _to_start(model: Any, checkpoint: Checkpoint) -> None:
    """Make an adapter what it was before training: without effect, since B was zero.

    A, which began by chance, stays as it was learnt: B's gradient is seen through it.
    """
    import torch

    if not only_factors(checkpoint.path):
        raise InputError(
            f"checkpoint {checkpoint.name!r}: the adapter holds more than factors of linear "
            "layers, and what the rest was before training is not known",
            hint=f"remove {checkpoint.name!r} from rin.toml",
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()


def most_tokens(model: nn.Module) -> int:
    """Return the longest text that a model was made for; a large number if it does not say."""
    most = getattr(model.config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else sys.maxsize


def _cannot_load(what: str, checkpoint: Checkpoint, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    if isinstance(error, KeyError):
        reason = f"{reason} is missing or unknown"
    if checkpoint.base is not None and re.search("size mismatch|not found in the base", reason):
        return InputError(
            f"the adapter of checkpoint {checkpoint.name!r} does not fit {checkpoint.base}: it "
            "was trained on another model",
            hint="set [model] base in rin.toml to the model that it was trained on",
        )
    reason = reason.partition(". ")[0][:200].rstrip(".")
    return InputError(
        f"{what} of checkpoint {checkpoint.name!r} cannot be loaded: {reason}",
        hint="check the checkpoint's folder; --debug shows the whole error",
    )
