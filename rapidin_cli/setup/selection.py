"""What `rin init` chooses from what it found: one data file, the checkpoints of one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidin_cli.setup.looks import Look
from rapidin_cli.setup.search import Candidate, Survey

_MOST_CHECKPOINTS = 5
_NAMED = 3


@dataclass(frozen=True)
class Proposed:
    """A data file or a checkpoint folder, relative to the project where it is inside.

    Attributes:
        shape, also, turns: of a data file, see `Look`.
    """

    path: str
    about: str
    shape: str = ""
    also: str = ""
    turns: bool = False


def choose_data(root: Path, found: Survey, notes: list[str]) -> list[Proposed]:
    """Take the likeliest file, or all parts of it; notes name the others, and what is broken."""
    told = [each for each in found.unreadable if each.look.likely or not found.data]
    _say_unusable(root, [(each.path, each.look.reason) for each in told], notes)
    if not found.data:
        return []
    chosen, *others = found.data
    if chosen.missing:
        notes.append(f"data: of the set of {chosen.path.name}, {_missing(chosen.missing)}")
    if others:
        names = [relative(root, other.path) for other in others]
        notes.append(
            f"data: the largest of {len(others) + 1} candidates; use --data to choose another: "
            f"{_some(names)}"
        )
    return [proposed_data(root, path, chosen.look) for path in chosen.parts]


def _missing(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"part {numbers[0]} is missing"
    return f"{len(numbers)} parts are missing: {_some([str(number) for number in numbers])}"


def _say_unusable(root: Path, found: Sequence[tuple[Path, str]], notes: list[str]) -> None:
    for path, reason in found[:_NAMED]:
        notes.append(f"{relative(root, path)} cannot be used: {reason}")
    if len(found) > _NAMED:
        names = [relative(root, path) for path, _ in found[_NAMED:]]
        notes.append(f"nor can {_some(names)}")


def proposed_data(root: Path, path: Path, look: Look) -> Proposed:
    """Propose a data file by the look of its rows, or of those of another part of its set."""
    return Proposed(relative(root, path), look.about, look.shape, look.also, look.turns)


def choose_checkpoints(root: Path, found: Survey, notes: list[str]) -> list[Proposed]:
    """The newest run: of adapters if there are any (full models are then their bases)."""
    broken = [each for each in found.checkpoints if not each.weights]
    _say_unusable(root, [(each.path, each.problem) for each in broken], notes)
    usable = [each for each in found.checkpoints if each.weights]
    adapters = [each for each in usable if each.adapter]
    # Beside something trained that cannot be read, a whole model is its base, and nobody's answer.
    bases = {each.base for each in broken}
    others = [each for each in usable if not any(each.may_be_base(base) for base in bases)]
    trained = [each for each in others if each.trained]
    pool = adapters or trained or ([] if any(each.trained for each in broken) else usable)
    if not pool:
        return []
    runs: dict[Path, list[Candidate]] = {}
    for each in pool:
        runs.setdefault(each.run, []).append(each)
    newest = max(runs, key=lambda run: (max(each.written for each in runs[run]), str(run)))
    if len(runs) > 1:
        # The run of an adapter that has a name is no folder: say where its last one is.
        places = {run: run if run.is_dir() else runs[run][-1].path for run in runs}
        older = [relative(root, place) for run, place in places.items() if run != newest]
        notes.append(
            f"checkpoints: the newest of {len(runs)} training runs; use --checkpoint to choose "
            f"others: {_some(older)}"
        )
    chosen = _steps(root, runs[newest], notes)
    about = "adapter" if chosen[0].adapter else "full model"
    return [
        Proposed(
            relative(root, each.path),
            about if each.step is None else f"{about}, step {each.step:,}",
        )
        for each in chosen
    ]


def _steps(root: Path, run: Sequence[Candidate], notes: list[str]) -> list[Candidate]:
    """The checkpoints of a training run in order, without repeats, and only a few of many."""
    last = max(each.step or 0 for each in run) + 1
    ordered = sorted(
        run,
        # The Trainer's last model is in the folder above its checkpoints.
        key=lambda each: (
            last if each.step is None else each.step,
            each.path == each.run,
            each.path,
        ),
    )
    different: list[Candidate] = []
    for each in ordered:
        if same := next((other for other in different if _same_weights(each, other)), None):
            here, there = relative(root, each.path), relative(root, same.path)
            notes.append(f"{here} was skipped: it has the same weights as {there}")
            if same is not different[-1]:
                notes.append(
                    f"rin asks the last one; to ask this one: --checkpoint {same.path.name}"
                )
        else:
            different.append(each)
    if len(different) <= _MOST_CHECKPOINTS:
        return different
    notes.append(
        f"{_MOST_CHECKPOINTS} of {len(different)} checkpoints, evenly spread: each is cached "
        "separately"
    )
    gap = (len(different) - 1) / (_MOST_CHECKPOINTS - 1)
    return [different[round(number * gap)] for number in range(_MOST_CHECKPOINTS)]


def _same_weights(one: Candidate, other: Candidate) -> bool:
    """By sizes and last bytes: a step of training moves every weight."""
    pairs = list(zip(one.weights, other.weights, strict=False))
    return len(one.weights) == len(other.weights) and all(_tail(a) == _tail(b) for a, b in pairs)


def _tail(path: Path) -> tuple[int, bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16)))
        return size, file.read()


def relative(root: Path, path: Path) -> str:
    """Return a path relative to the project, or the whole path if it is outside."""
    try:
        return path.resolve().relative_to(root).as_posix()
    except ValueError:
        return str(path.resolve())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
