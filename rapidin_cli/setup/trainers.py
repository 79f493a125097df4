"""What training left behind, and which settings it means.

TRL and unsloth leave `training_args.bin` and a model card, axolotl its configuration in the card,
LLaMA-Factory a YAML file. The rules are those of their documentation.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapidin_cli.data.rendering import LONG_ALPACA
from rapidin_cli.setup.inert import plain, read_arguments

_ARGUMENTS, _CARD = "training_args.bin", "README.md"
_YAML_BYTES = 1 << 18
_MOST_YAML = 200
_NO_LIMIT = 1_000_000
_CHATS = ("messages", "conversations")
_AXOLOTL = re.compile(r"See axolotl config.*?```ya?ml\n(.*?)```", re.DOTALL)
_NOT_SUPERVISED = re.compile(
    r"(DPO|KTO|ORPO|CPO|BCO|GRPO|RLOO|PPO|XPO|Reward|PRM|GKD|MiniLLM|Nash|Online)\w*(Config|Arguments)"
)


@dataclass(frozen=True)
class Training:
    """A training run as its trainer recorded it.

    Attributes:
        trainer: its name.
        source: the file that says so.
        settings: values for `[data]` that follow, each with the reason.
        notes: what rin cannot follow, or what leaves no trace.
    """

    trainer: str
    source: Path
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_training(
    root: Path, checkpoints: Sequence[Path], shape: str, configs: Sequence[Path] = ()
) -> Training | None:
    """Look where trainers leave their settings: beside the checkpoints, then in the project.

    Args:
        shape: of the training rows; the same setting means another thing for each.
        configs: YAML files of the project.
    """
    folders = list(dict.fromkeys(folder for path in checkpoints for folder in (path, path.parent)))
    folders = [each for each in folders if each.is_dir()]
    for folder in folders:
        if (found := _axolotl_card(folder / _CARD, shape)) is not None:
            return found
    for folder in folders:
        for path, config in _read(sorted(folder.glob("*.y*ml"))):
            if (found := _of_config(path, config, shape)) is not None:
                return found
    recorded = next(
        (found for each in folders if (found := _recorded(each / _ARGUMENTS, shape))), None
    )
    if recorded is not None and recorded.settings:
        return recorded
    return _configured(root, checkpoints, shape, configs) or recorded


def _recorded(path: Path, shape: str) -> Training | None:
    """Read `training_args.bin`."""
    found = read_arguments(path)
    if found is None:
        return None
    values = vars(found)
    name = found.kind.rpartition(".")[2]
    if _NOT_SUPERVISED.search(name):
        note = f"training used {name}: its loss is not that of supervised rows, which rin explains"
        return Training(name, path, notes=[note])
    if "assistant_only_loss" in values or name.endswith("SFTConfig"):
        return _of_trl(values, path, shape)
    if found.kind.startswith("llamafactory"):
        note = "LLaMA-Factory keeps template, cutoff_len and train_on_prompt in its YAML file"
        return Training("LLaMA-Factory", path, notes=[note])
    if found.kind.startswith("axolotl"):
        return Training("axolotl", path, notes=["axolotl's YAML file was not found"])
    return None


def _of_trl(values: Mapping[str, Any], path: Path, shape: str) -> Training:
    made = Training("TRL's SFTTrainer", path)
    settings, notes = made.settings, made.notes
    limit = plain(values.get("max_length", values.get("max_seq_length", 1024)))
    settings["max_tokens"] = (limit or _NO_LIMIT, f"max_length = {limit}")
    if plain(values.get("truncation_mode")) == "keep_end":
        settings["cut"] = ("left", "truncation_mode = keep_end")
    only = plain(values.get("assistant_only_loss"))
    completion = plain(values.get("completion_only_loss"))
    if shape in _CHATS:
        settings["learn"] = (
            ("assistant", "assistant_only_loss = True")
            if only
            else ("all", "SFTTrainer learns every token of conversations by default")
        )
        if only and not _marked(path.parent):
            notes.append(
                "with assistant_only_loss TRL puts its own training template in place of a model's "
                "that has no {% generation %} marks; save what "
                "trl.chat_template_utils.get_training_chat_template(tokenizer) returns as "
                'train.jinja, and set [data] template = "train.jinja"'
            )
    elif shape == "completion":
        settings["learn"] = (
            ("all", "completion_only_loss = False")
            if completion is False
            else ("assistant", "SFTTrainer learns the completion by default")
        )
    elif shape == "text":
        settings["text_field"] = (values.get("dataset_text_field", "text"), "dataset_text_field")
    elif shape in ("prompt", "alpaca"):
        notes.append(
            f"SFTTrainer does not read {shape} rows: your script rendered them, so check [data] "
            "template against it"
        )
    strategy = plain(values.get("packing_strategy")) if plain(values.get("packing")) else None
    if strategy in ("wrapped", "bfd_split"):
        notes.append(
            f"training packed rows with the strategy {strategy}, which cuts them in the middle: "
            "rin explains whole rows, and only the beginning of long ones"
        )
    if shape in _CHATS and not only and "unsloth" in _card(path.parent):
        notes.append(
            "unsloth's train_on_responses_only leaves no trace: if your script called it, set "
            '[data] learn = "assistant"'
        )
    return made


def _marked(folder: Path) -> bool:
    """Whether the chat template beside a checkpoint marks what is generated itself."""
    try:
        return "generation %}" in (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _card(folder: Path) -> str:
    try:
        return (folder / _CARD).read_text(encoding="utf-8", errors="replace")[:_YAML_BYTES]
    except OSError:
        return ""


def _axolotl_card(path: Path, shape: str) -> Training | None:
    """Read the configuration that axolotl puts into its model cards."""
    found = _AXOLOTL.search(_card(path.parent))
    config = _yaml(found.group(1)) if found else {}
    return _of_axolotl(config, path, shape) if "base_model" in config else None


def _configured(
    root: Path, checkpoints: Sequence[Path], shape: str, configs: Sequence[Path]
) -> Training | None:
    """Find the YAML file whose output folder is the checkpoints'; else the only one."""
    runs = {folder.resolve() for path in checkpoints for folder in (path, path.parent)}
    known = [
        (found, config)
        for path, config in _read(configs)
        if (found := _of_config(path, config, shape)) is not None
    ]
    for found, config in known:
        if (root / str(config.get("output_dir") or "model-out")).resolve() in runs:
            return found
    return known[0][0] if len(known) == 1 else None


def _read(paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield YAML files with what they say."""
    for path in paths[:_MOST_YAML]:
        try:
            if path.is_file() and path.stat().st_size <= _YAML_BYTES:
                yield path, _yaml(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _of_config(path: Path, config: Mapping[str, Any], shape: str) -> Training | None:
    if "base_model" in config and isinstance(config.get("datasets"), list):
        return _of_axolotl(config, path, shape)
    if "model_name_or_path" in config and "dataset" in config and "template" in config:
        return _of_llama_factory(config, path, shape)
    return None


def _of_axolotl(config: Mapping[str, Any], path: Path, shape: str) -> Training:
    made = Training("axolotl", path)
    settings, notes = made.settings, made.notes
    if config.get("rl"):
        notes.append(f"training was rl: {config['rl']}, whose loss rin does not explain")
        return made
    limit = config.get("sequence_len")
    if isinstance(limit, int):
        settings["max_tokens"] = (limit, f"sequence_len: {limit}")
        whole = config.get("excess_length_strategy") != "truncate"
        settings["cut"] = ("drop", "axolotl drops longer rows") if whole else ("right", "truncate")
    learnt = "all" if config.get("train_on_inputs") is True else "assistant"
    settings["learn"] = (learnt, f"train_on_inputs: {str(learnt == 'all').lower()}")
    kinds = [each for each in config.get("datasets") or () if isinstance(each, dict)]
    kind = str(kinds[0].get("type") or "") if kinds else ""
    if kind.startswith("alpaca") and shape == "alpaca":
        settings["template"] = ("alpaca", f"type: {kind}")
        settings["join"] = ("tokens", "axolotl tokenises prompt and response apart")
    elif kind in ("chat_template", "sharegpt"):
        settings["template"] = ("chat", f"type: {kind}")
    for each in kinds:
        for name in ("roles_to_train", "train_on_eos", "train_on_eot"):
            if each.get(name) not in (None, ["assistant"], "turn"):
                notes.append(f"{name}: {each[name]} in {path.name} is more than rin follows")
    return made


def _of_llama_factory(config: Mapping[str, Any], path: Path, shape: str) -> Training:
    made = Training("LLaMA-Factory", path)
    settings, notes = made.settings, made.notes
    if config.get("stage", "sft") not in ("sft", "pt"):
        notes.append(f"training was stage: {config['stage']}, whose loss rin does not explain")
        return made
    limit = config.get("cutoff_len", 2048)
    settings["max_tokens"] = (limit, f"cutoff_len: {limit}")
    if shape != "text":
        settings["join"] = ("tokens", "LLaMA-Factory tokenises prompts and responses apart")
    if config.get("train_on_prompt") is True:
        settings["learn"] = ("all", "train_on_prompt: true")
    elif config.get("mask_history") is True:
        settings["learn"] = ("last", "mask_history: true")
    else:
        settings["learn"] = ("assistant", "LLaMA-Factory learns the responses by default")
    template = str(config["template"])
    if template == "alpaca" and shape == "alpaca":
        settings["template"] = (LONG_ALPACA, "template: alpaca, which has one text for both")
    elif template not in ("alpaca", "default", "empty") and shape != "text":
        settings["template"] = ("chat", f"template: {template}")
        notes.append(
            f"LLaMA-Factory rendered with its own template {template!r}, rin does with the "
            "tokenizer's: rin show tells whether the text is the same"
        )
    return made
