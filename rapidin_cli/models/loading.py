"""Loading a checkpoint: model, adapter, tokenizer; whole, or not at all."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli.errors import InputError
from rapidin_cli.models.checkpoints import TOKENIZER_FILES, Checkpoint, read_json
from rapidin_cli.models.tensor_files import tensor_header

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of the terminal."""
    import warnings

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
    otherwise they keep the dtype that they were saved in.

    Raises:
        InputError: the weights cannot be loaded, or some are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype: Any = torch.float32 if float32 or device == "cpu" else "auto"
    folder = checkpoint.base or checkpoint.path
    # A quantised model is put on its device as it is read, and cannot be moved.
    quantised = "quantization_config" in read_json(folder / "config.json")
    try:
        with quiet_loading():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=checkpoint.trust_remote_code,
                device_map={"": device} if quantised else None,
            )
            _refuse_incomplete(checkpoint, folder, [*found["missing_keys"]])
            _refuse_incomplete(checkpoint, folder, [key for key, *_ in found["mismatched_keys"]])
            if checkpoint.base is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, checkpoint.path, is_trainable=True)
                _refuse_incomplete(checkpoint, checkpoint.path, _missing(model, checkpoint.path))
            loaded: nn.Module = (model if quantised else model.to(device)).eval()
            module: Any
            for module in loaded.modules():
                # bitsandbytes' kernel for this kind of CPU has no gradient, and warns at most.
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = False
            return loaded
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise _cannot_load("the model", checkpoint, error) from None


def _refuse_incomplete(checkpoint: Checkpoint, folder: Path, missing: list[str]) -> None:
    """Raise InputError if tensors are missing: loading would fill them with random numbers."""
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(
            f"the weights of checkpoint {checkpoint.name!r} are incomplete: {folder} lacks "
            f"{min(missing)}{more}",
            hint="save the checkpoint again, or correct its path or [model] base in rin.toml",
        )


def _missing(model: Any, folder: Path) -> list[str]:
    """Return names of an adapter's tensors that its files do not have."""
    from peft import get_peft_model_state_dict

    def bare(name: str) -> str:
        return name.removesuffix(".weight")

    header = (tensor_header(file)[0] for file in folder.glob("adapter_model*.safetensors"))
    saved = {bare(name) for names in header for name in names}
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    return [name for name in wanted if bare(name) not in saved]


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
