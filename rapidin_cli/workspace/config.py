"""rin.toml: read, check, explain."""

import dataclasses
import difflib
import math
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any, Literal, TypeVar

from rapidin_cli.data.rows import DataSettings
from rapidin_cli.errors import InputError
from rapidin_cli.gradients.spec import GradientSpec

CONFIG_FILE = "rin.toml"
LOCAL_CONFIG = ".rin/config.local.toml"
TEMPLATE_FILES = (".jinja", ".j2")
REMOTE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Dtype = Literal["auto", "float32", "bfloat16"]
Labels = Literal["data", "model"]


@dataclass(frozen=True)
class ModelSettings:
    """The `[model]` table.

    Attributes:
        base: the base model of an adapter, a folder or a hub name; empty to use the one
            that the adapter names.
        dtype: precision of the forward and backward pass: `auto` is bfloat16 where the
            hardware has it. Not part of a cache's identity: it changes rounding only.
        trust_remote_code: run Python code that comes with the model.
    """

    base: str = ""
    dtype: Dtype = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class CheckpointSettings:
    """One `[[checkpoints]]` entry: a name to type, and a folder or hub name.

    Attributes:
        learning_rate: its weight in `--checkpoints`; 0: see trainer_state.json.
        start: it is the model before training: of an adapter the base itself, of a full model
            `[model] base`. `path` is then what came of it; empty: the last other checkpoint.
    """

    name: str
    path: str = ""
    learning_rate: float = 0.0
    start: bool = False


@dataclass(frozen=True)
class StorageSettings:
    """The `[storage]` table: a folder in the project, the name of a remote, or an fsspec URL."""

    root: str = ".rin"


@dataclass(frozen=True)
class RemoteSettings:
    """One `[remote.NAME]` table. Credentials come from the AWS chain, never from here.

    Attributes:
        url: an fsspec URL such as `s3://bucket/prefix`.
        endpoint_url: of an S3 service that is not AWS.
        profile: of the AWS config and credentials files.
        region: of the bucket.
        timeout: seconds without an answer before a request is tried again.
        single_writer: only one machine writes there: needed where the service cannot refuse to
            replace a file.
    """

    url: str
    endpoint_url: str = ""
    profile: str = ""
    region: str = ""
    timeout: float = 60.0
    single_writer: bool = False


@dataclass(frozen=True)
class CacheSettings:
    """The `[cache]` table: how work is divided; none of it changes what is cached.

    Attributes:
        batch_tokens: most padded tokens of a batch, see `gradients.memory`.
        commit_seconds: the most work that a crash can lose.
        workers: processes on a CPU; their threads share the cores.
    """

    batch_tokens: int = 4096
    commit_seconds: float = 30.0
    workers: int = 1


@dataclass(frozen=True)
class CurvatureSettings:
    """The `[curvature]` table: how `rin curvature` collects it.

    Attributes:
        labels: which gradients are used: those for the labels of the `data` (the empirical Fisher
            matrix), or for labels drawn from the `model`'s predictions (the Fisher matrix).
        rows: examples to use, spread over the data; 0 for all.
    """

    labels: Labels = "data"
    rows: int = 0

    def identity(self, gradient: Mapping[str, Any]) -> dict[str, Any]:
        """What makes collections of one checkpoint comparable, as JSON.

        Args:
            gradient: the identity of its rows.
        """
        kept = {name: gradient[name] for name in ("layers", "capture") if name in gradient}
        return {"kind": "ek-fac", "labels": self.labels, **kept}


@dataclass(frozen=True)
class EvaluateSettings:
    """The `[evaluate]` table: how `rin evaluate` retrains.

    Attributes:
        command: your training: `{data}` is a JSONL file of rows, `{output}` the folder where
            it must leave the checkpoint, `{seed}` a number. Empty for the built-in trainer,
            which uses the other settings.
        epochs, batch_rows, learning_rate, seed: of the built-in trainer (AdamW).
    """

    command: str = ""
    epochs: int = 3
    batch_rows: int = 16
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """All of rin.toml."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    checkpoints: tuple[CheckpointSettings, ...] = ()
    gradient: GradientSpec = field(default_factory=GradientSpec)
    storage: StorageSettings = field(default_factory=StorageSettings)
    remote: dict[str, RemoteSettings] = field(default_factory=dict)
    cache: CacheSettings = field(default_factory=CacheSettings)
    curvature: CurvatureSettings = field(default_factory=CurvatureSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)


def find_root(start: Path) -> Path | None:
    """Return the nearest folder with a rin.toml: this one, or one above."""
    here = start.resolve()
    return next(
        (folder for folder in (here, *here.parents) if (folder / CONFIG_FILE).is_file()), None
    )


def load_config(root: Path) -> Config:
    """Read rin.toml and, on top of it, `.rin/config.local.toml`.

    Raises:
        InputError: not TOML, an unknown key or a value of the wrong type.
    """
    tables = _read(root / CONFIG_FILE)
    local = root / LOCAL_CONFIG
    if not local.exists():
        return _checked(tables, root)
    above = _over(tables, _read(local))
    try:
        return _checked(above, root)
    except InputError as error:
        _checked(tables, root)  # complains if it is rin.toml that is wrong
        raise InputError(
            error.message.replace(CONFIG_FILE, LOCAL_CONFIG), hint=f"correct {LOCAL_CONFIG}"
        ) from None


def _checked(tables: dict[str, Any], root: Path) -> Config:
    config = _build(Config, tables, "")
    config = replace(config, data=replace(config.data, files=_files(root, config.data.files)))
    if config.data.template.endswith(TEMPLATE_FILES):
        template = _template_of(root / config.data.template, config.data.template)
        config = replace(config, data=replace(config.data, template=template))
    for name, remote in config.remote.items():
        if not REMOTE_NAME.fullmatch(name) or not remote.url:
            raise InputError(
                f"{CONFIG_FILE}: [remote.{name}] needs a url, and letters and digits as its name",
                hint=f"correct {CONFIG_FILE}",
            )
    if config.data.max_tokens < 2:
        raise InputError(
            f"{CONFIG_FILE}: [data] max_tokens must be 2 or more", hint=f"correct {CONFIG_FILE}"
        )
    names = [checkpoint.name for checkpoint in config.checkpoints]
    if unfit := [name for name in names if not is_checkpoint_name(name)]:
        raise InputError(
            f"{CONFIG_FILE}: a checkpoint cannot be called {unfit[0]!r}: --checkpoints takes "
            "`all` or a list with commas, and NAME@SNAPSHOT means a snapshot",
            hint=f"give it another name in {CONFIG_FILE}",
        )
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(
            f"{CONFIG_FILE}: two checkpoints are called {sorted(repeated)[0]!r}",
            hint=f"give each checkpoint in {CONFIG_FILE} its own name",
        )
    _check_paths(config)
    if config.curvature.rows < 0:
        raise InputError(
            f"{CONFIG_FILE}: [curvature] rows must be 0 or more", hint=f"correct {CONFIG_FILE}"
        )
    for name in ("epochs", "batch_rows", "learning_rate"):
        if getattr(config.evaluate, name) <= 0:
            raise InputError(
                f"{CONFIG_FILE}: [evaluate] {name} must be positive", hint=f"correct {CONFIG_FILE}"
            )
    for name in ("batch_tokens", "commit_seconds", "workers"):
        if getattr(config.cache, name) <= 0:
            raise InputError(
                f"{CONFIG_FILE}: [cache] {name} must be positive", hint=f"correct {CONFIG_FILE}"
            )
    return config


def _check_paths(config: Config) -> None:
    """Every checkpoint needs a folder; the model before training, one that came of it."""
    trained = [each for each in config.checkpoints if not each.start]
    for each in config.checkpoints:
        if not each.path and not each.start:
            raise InputError(
                f"{CONFIG_FILE}: [[checkpoints]] needs 'path' for {each.name!r}",
                hint=f"correct {CONFIG_FILE}",
            )
        if each.start and not each.path and not trained:
            raise InputError(
                f"{CONFIG_FILE}: {each.name!r} is the start of a training, and no checkpoint of "
                "that training is named",
                hint=f"add its last checkpoint to {CONFIG_FILE}",
            )


def _files(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the data files, with what patterns such as `data/*.parquet` match."""
    found: list[str] = []
    for name in names:
        if not any(mark in name for mark in "*?[") or (root / name).exists():
            found.append(name)
            continue
        matches = sorted(glob(name, root_dir=root, recursive=True))  # noqa: PTH207
        if not matches:
            raise InputError(
                f"{CONFIG_FILE}: [data] files: nothing matches {name}",
                hint=f"correct {CONFIG_FILE}",
            )
        found += matches
    return tuple(dict.fromkeys(found))


def _template_of(path: Path, name: str) -> str:
    """Return the chat template in a file, which stands for its text from then on."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{CONFIG_FILE}: [data] template: cannot read {name}: {error}",
            hint=f"correct the path in {CONFIG_FILE}",
        ) from None
    if "{%" not in text:
        raise InputError(
            f"{CONFIG_FILE}: [data] template: {name} is not a chat template in Jinja",
            hint="name the file that training used, such as chat_template.jinja",
        )
    return text


def is_checkpoint_name(name: str) -> bool:
    """Whether a name can be typed where commands take one."""
    free = name not in ("", "all") and not name.startswith("-") and name.isprintable()
    return free and not any(mark in name for mark in ",@")


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge tables; the settings in `above` win."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _over(merged[name], value) if both else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not TOML: {error}", hint=f"correct {path.name}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="rin init") from None


Table = TypeVar("Table")


def _build(kind: type[Table], value: Any, where: str) -> Table:
    """Make a settings dataclass from a TOML table, refusing unknown settings."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "a table")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - set(fields)):
        near = difflib.get_close_matches(unknown[0], fields, 1)
        meant = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(fields)}"
        raise InputError(
            f"{CONFIG_FILE}: {where or 'the top level'} has no setting {unknown[0]!r} ({meant})",
            hint=f"correct {CONFIG_FILE}",
        )
    for name, item in fields.items():
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(
                f"{CONFIG_FILE}: {where} needs {name!r}", hint=f"correct {CONFIG_FILE}"
            )
    return kind(
        **{
            name: _convert(hints[name], entry, f"{where} {name}" if where else f"[{name}]")
            for name, entry in value.items()
        }
    )


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)  # type: ignore[arg-type]
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        inner = typing.get_args(kind)[0]
        place = "[[checkpoints]]" if inner is CheckpointSettings else where
        return tuple(_convert(inner, item, place) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a table")
        inner, base = typing.get_args(kind)[1], where.strip("[]")
        return {name: _convert(inner, item, f"[{base}.{name}]") for name, item in value.items()}
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise _wrong(where, value, "one of " + ", ".join(typing.get_args(kind)))
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise _wrong(where, value, names[kind])
    return value


def _wrong(where: str, value: Any, expected: str) -> InputError:
    shown = "a table" if isinstance(value, dict) else repr(value)
    return InputError(
        f"{CONFIG_FILE}: {where} = {shown} must be {expected}", hint=f"correct {CONFIG_FILE}"
    )
