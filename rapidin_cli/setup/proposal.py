"""`rin init`: propose data, checkpoints and a template, and write rin.toml."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.models.checkpoints import is_hub_name
from rapidin_cli.models.kinds import check_start
from rapidin_cli.models.learning_rates import checkpoint_weights
from rapidin_cli.models.tensor_files import only_factors
from rapidin_cli.models.weights import ADAPTER_CONFIG, weights_of
from rapidin_cli.output.templates import template_text
from rapidin_cli.setup.looks import look_at
from rapidin_cli.setup.search import Survey, read_json, survey
from rapidin_cli.setup.selection import (
    Proposed,
    choose_checkpoints,
    choose_data,
    proposed_data,
    relative,
)
from rapidin_cli.setup.shards import shards_among
from rapidin_cli.setup.trainers import Training, find_training
from rapidin_cli.workspace.config import CONFIG_FILE
from rapidin_cli.workspace.workspace import prepare_rin_folder

_CONVERSATIONS = ("messages", "conversations")
START = "start"
"""What the model before training is called."""


@dataclass(frozen=True)
class Base:
    """The model under the adapters.

    Attributes:
        setting: the value for rin.toml; empty if the adapters name it.
        place: a folder or a hub name; empty if none is needed.
        why: where that comes from.
    """

    setting: str = ""
    place: str = ""
    why: str = ""


@dataclass(frozen=True)
class Proposal:
    """The content of rin.toml.

    Attributes:
        settings: of `[data]`, where they are not the defaults, each with its reason.
        training: what the trainer left behind.
        start: whether the model before training can be had.
        notes: what else was found, and which of several was chosen.
    """

    data: list[Proposed]
    checkpoints: list[tuple[str, Proposed]]
    base: Base
    template: str
    why_template: str
    settings: dict[str, tuple[Any, str]]
    training: Training | None
    start: bool
    notes: list[str]

    @property
    def next(self) -> str:
        """The next command, once it is written."""
        return "rin cache" if self.data and self.checkpoints else "rin status"


def propose(
    root: Path, data: Sequence[str], checkpoints: Sequence[str], base: str, template: str
) -> Proposal | None:
    """Look around and return a proposal; None in a folder that is already a project.

    Raises:
        InputError: no folder, or a given data file or checkpoint cannot be used.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", hint="create it first")
    if (root / CONFIG_FILE).exists():
        return None
    found = survey(root)
    notes: list[str] = []
    files = [_named_data(root, name, notes) for name in data] or choose_data(root, found, notes)
    if checkpoints:
        named = [_named_checkpoint(root, path) for path in checkpoints]
    else:
        named = choose_checkpoints(root, found, notes)
    if not found.complete and not (data and checkpoints):
        notes.append(
            "this folder is large and was only partly searched: use --data and --checkpoint"
        )
    under = _find_base(root, base, named, found)
    shape = files[0].shape if files else ""
    training = find_training(root, [root / item.path for item in named], shape, found.configs)
    settings = dict(training.settings) if training is not None else {}
    told = settings.pop("template", None)
    template, why = (template, "given") if template else told or ("", "")
    if not template:
        template, why = _guess_template(root, files, named, under.place)
    if shape in _CONVERSATIONS:
        unknown = "nothing here says so: SFTTrainer of TRL learns all, unless assistant_only_loss"
        settings.setdefault("learn", ("assistant", unknown))
    if files and files[0].also:
        settings["format"] = (shape, f"its rows also have the fields of {files[0].also}")
    start = bool(named) and _has_start(root / named[-1].path, root, under)
    return Proposal(files, _name(named), under, template, why, settings, training, start, notes)


def _named_data(root: Path, name: str, notes: list[str]) -> Proposed:
    """Look at a file, or at the first that a pattern matches."""
    path = root / Path(name).expanduser()
    matches = sorted(glob(str(path), recursive=True))  # noqa: PTH207
    if not path.exists() and not matches:
        raise InputError(f"there is no data file {path}", hint="rin init --data FILE")
    first = path if path.exists() else Path(matches[0])
    look = look_at(first, name if first == path else relative(root, first), given=True)
    if look.problem and not look.unknown:
        raise InputError(
            f"no row of {name} can be used; {look.problem}",
            hint=look.hint or "fix the file, or name another one: rin init --data FILE",
        )
    notes += [look.problem] if look.problem else []
    if first != path:
        about = f"{look.about}; {len(matches)} file" + "s" * (len(matches) > 1)
        return Proposed(name, about, look.shape, look.also, look.turns)
    siblings = (each.name for each in path.parent.iterdir())
    [shards] = [each for each in shards_among(siblings) if path.name in each.names]
    if len(shards.names) > 1 or shards.missing:
        parts = len(shards.names) + len(shards.missing)
        notes.append(
            f"data: {name} is one of {parts} parts; all of them: "
            f"--data '{Path(name).with_name(shards.pattern)}'"
        )
    return proposed_data(root, path, look)


def _named_checkpoint(root: Path, name: str) -> Proposed:
    folder = root / Path(name).expanduser()
    if not folder.is_dir():
        if not is_hub_name(name):
            raise InputError(f"there is no folder {folder}", hint="rin init --checkpoint FOLDER")
        return Proposed(name, "given, from the model hub")
    if not any((folder / file).is_file() for file in (ADAPTER_CONFIG, "config.json")):
        raise InputError(
            f"{folder} has neither {ADAPTER_CONFIG} nor config.json, so it is not a checkpoint",
            hint="rin init --checkpoint FOLDER",
        )
    weights_of(folder)  # else it says why they cannot be read
    return Proposed(relative(root, folder), "given")


def _find_base(root: Path, given: str, named: Sequence[Proposed], found: Survey) -> Base:
    """Find the base model, which may have moved since training."""
    if given:
        return Base(given, given, "given")
    configs = [read_json(root / item.path / ADAPTER_CONFIG) for item in named]
    bases = [str(config.get("base_model_name_or_path") or "") for config in configs]
    if not any(bases):
        return Base()
    base = [name for name in bases if name][-1]
    if (root / Path(base).expanduser()).is_dir():
        return Base("", base, "named by the adapter")
    if is_hub_name(base):
        return Base("", base, "named by the adapter; from the model hub")
    models = [each.path for each in found.checkpoints if not each.adapter and each.weights]
    moved = [path for path in models if path.name == Path(base).name] or models
    if len(moved) == 1:
        here = relative(root, moved[0])
        return Base(here, here, f"instead of {base}, which the adapter names but is not here")
    return Base("", base, "named by the adapter, but not here: set [model] base in rin.toml")


def _has_start(last: Path, root: Path, under: Base) -> bool:
    """Whether the model before training can be had: under an adapter, or as a given base."""
    if not (last / ADAPTER_CONFIG).exists():
        return bool(under.setting) and (root / under.setting).is_dir()
    try:
        check_start("start", read_json(last / ADAPTER_CONFIG))
        return only_factors(last)
    except (InputError, OSError):
        return False


def _name(found: Sequence[Proposed]) -> list[tuple[str, Proposed]]:
    names: list[tuple[str, Proposed]] = []
    for item in found:
        parts = [part for part in Path(item.path).parts if part not in (".", "..", "/")] or [
            "model"
        ]
        parts = [re.sub("[,@]", "-", part).lstrip("-") or "model" for part in parts]
        taken = {name for name, _ in names} | {"all", START}
        length = 1
        while (name := "-".join(parts[-length:])) in taken and length < len(parts):
            length += 1
        while name in taken:
            name += "+"
        names.append((name, item))
    return names


def _guess_template(
    root: Path, files: Sequence[Proposed], named: Sequence[Proposed], base: str
) -> tuple[str, str]:
    """Chat for conversations, and if the model has a chat template, as training mostly uses it."""
    shapes = {item.shape for item in files}
    if shapes & set(_CONVERSATIONS) or any(item.turns for item in files):
        return "chat", "the data has conversations"
    if "completion" in shapes:
        return "plain", "TRL joins prompt and completion as they are"
    if shapes and shapes <= {"tokens", "segments"}:
        return "plain", "the rows are tokens or texts already"
    for place in (*(item.path for item in named), base):
        folder = root / place if (root / place).is_dir() else _downloaded(place)
        if place and folder is not None and _has_chat_template(folder):
            return "chat", f"{place} has a chat template"
    if "alpaca" in shapes:
        return "alpaca", "the data has Alpaca's fields, and no chat template was found"
    return "plain", "no chat template was found"


def _downloaded(name: str) -> Path | None:
    """Where the hub's own cache has a model's tokenizer; the hub is not contacted."""
    if not is_hub_name(name):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        kept = try_to_load_from_cache(name, "tokenizer_config.json")
    except HFValidationError:
        return None
    return Path(kept).parent if isinstance(kept, str) else None


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))


def describe(root: Path, proposal: Proposal) -> list[str]:
    """Return the proposal in lines for people."""
    lines = [f"data        {item.path}  ({item.about})" for item in proposal.data]
    lines += [
        f"checkpoint  {name}: {item.path}  ({item.about})" for name, item in proposal.checkpoints
    ]
    if proposal.start:
        lines.append(
            f"checkpoint  {START}: the model before training  (cached last; with rin curvature, "
            "--score ekfac --checkpoints all asks both)"
        )
    if len(proposal.checkpoints) > 1:
        lines.append(f"weights     {_weights(root, proposal)}")
    if proposal.base.place:
        lines.append(f"base        {proposal.base.place}  ({proposal.base.why})")
    if proposal.training is not None:
        source = relative(root, proposal.training.source)
        lines.append(f"trained by  {proposal.training.trainer}  ({source})")
    lines.append(f"template    {_short(proposal.template)}  ({proposal.why_template})")
    lines += [f"{name:<10}  {value}  ({why})" for name, (value, why) in proposal.settings.items()]
    lines += proposal.notes
    if proposal.training is not None:
        lines += proposal.training.notes
    if not proposal.data:
        lines.append("no training data was found: set [data] files in rin.toml")
    if not proposal.checkpoints:
        lines.append("no checkpoint was found: add [[checkpoints]] to rin.toml")
    return lines


def _short(template: str) -> str:
    return json.dumps(template) if "\n" in template else template


def _weights(root: Path, proposal: Proposal) -> str:
    """The weight of each checkpoint in `--checkpoints all`."""
    names = [name for name, _ in proposal.checkpoints]
    folders = [root / item.path for _, item in proposal.checkpoints]
    try:
        weights, source = checkpoint_weights(names, [0.0] * len(names), folders)
    except InputError as error:
        return error.message
    return f"{', '.join(f'{weight:.2f}' for weight in weights)}  ({source})"


def initialise(root: Path, proposal: Proposal) -> None:
    """Write rin.toml and make .rin/.

    Raises:
        InputError: the folder cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["toml"] = _toml

    def setting(name: str, default: Any) -> str:
        """A line of TOML; one of a default is a comment."""
        if name not in proposal.settings:
            return f"# {name} = {_toml(default)}"
        return f"{name} = {_toml(proposal.settings[name][0])}"

    text = environment.from_string(template_text("rin.toml.j2")).render(
        files=[item.path for item in proposal.data],
        template=proposal.template,
        setting=setting,
        base=proposal.base.setting,
        checkpoints=[(name, item.path) for name, item in proposal.checkpoints],
        start=proposal.start,
    )
    try:
        with (root / CONFIG_FILE).open("x", encoding="utf-8") as file:
            file.write(text)
        prepare_rin_folder(root)
    except OSError as error:
        raise InputError(
            f"cannot write {root / CONFIG_FILE}: {error.strerror}", hint="check the folder"
        ) from None


def _toml(value: str | int | list[str]) -> str:
    """Spell a value in TOML: JSON's texts, numbers and lists are a subset of its own."""
    return json.dumps(value, ensure_ascii=False)
