"""Retraining on parts of the data, and remembering the results."""

import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapidin_cli.data.examples import Example
from rapidin_cli.data.files import read_values
from rapidin_cli.errors import InputError, RinError
from rapidin_cli.evaluation.training import Training, fine_tune, losses
from rapidin_cli.models.checkpoints import Checkpoint, resolve
from rapidin_cli.models.loading import load_model, quiet_loading
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint
from rapidin_storage import canonical_json

_SHOWN_LINES = 5


@dataclass(frozen=True)
class BuiltIn:
    """A run of the built-in trainer, in a process of its own.

    Attributes:
        start: what training starts from: the base model, or the model under `adapter`.
        adapter: folder whose adapter_config.json says what kind of adapter; None for all weights.
        examples: to train on. queries: whose loss is wanted.
    """

    start: Checkpoint
    adapter: Path | None
    training: Training
    examples: Sequence[Example]
    queries: Sequence[Example]
    device: str
    threads: int


def run_built_in(job: BuiltIn) -> list[float]:
    """Train, and return the loss of each query."""
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.training.seed)
    model: Any = load_model(job.start, job.device)
    if job.adapter is not None:
        from peft import PeftConfig, get_peft_model

        with quiet_loading():
            config = PeftConfig.from_pretrained(str(job.adapter))
            config.inference_mode = False
            model = get_peft_model(model, config).to(job.device)
    fine_tune(model, job.examples, job.training)
    return losses(model, job.queries)


class Retrainer:
    """Trains on parts of a checkpoint's data; a part that was trained on before is remembered.

    Raises:
        InputError: nothing says how to train.
    """

    def __init__(
        self, opened: ProjectCheckpoint, queries: Sequence[Example], device: str, workers: int
    ) -> None:
        self._opened = opened
        self._queries = queries
        self._device = device
        self._workers = workers
        self._settings = opened.config.evaluate
        if not self._settings.command:
            self._start, self._adapter = self._origin()
        identity = {
            "checkpoint": opened.fingerprint,
            "queries": [query.digest.hex() for query in queries],
            "evaluate": asdict(self._settings),
        }
        name = hashlib.sha256(canonical_json(identity)).hexdigest()[:16]
        self._memory = opened.folder / ".rin" / "evaluations" / f"{name}.jsonl"

    def _origin(self) -> tuple[Checkpoint, Path | None]:
        """Return what the built-in trainer starts from."""
        checkpoint = self._opened.checkpoint
        if checkpoint.base is not None:
            trust = checkpoint.trust_remote_code
            return Checkpoint("base", checkpoint.base, None, trust), checkpoint.path
        base = self._opened.config.model.base
        if not base:
            raise InputError(
                f"checkpoint {checkpoint.name!r} is a full model, which does not say what its "
                "training started from",
                hint="set [model] base, or [evaluate] command, in rin.toml",
            )
        root, trust = self._opened.folder, checkpoint.trust_remote_code
        return resolve(root, "base", base, "", trust=trust), None

    def run(
        self, tasks: Mapping[str, Sequence[Example]], progress: Callable[[int, int], None]
    ) -> dict[str, list[float]]:
        """Return, for each task, the losses of the queries after training on its examples.

        Each result is saved at once: an interrupted run continues where it stopped.
        """
        done = self._remembered()
        keys = {name: _key(examples) for name, examples in tasks.items()}
        missing = {keys[n]: part for n, part in tasks.items() if keys[n] not in done}
        count = len(missing)
        progress(0, count)
        for number, (key, found) in enumerate(self._each(missing), 1):
            done[key] = found
            self._remember(key, found)
            progress(number, count)
        return {name: done[key] for name, key in keys.items()}

    def _each(self, tasks: Mapping[str, Sequence[Example]]) -> Iterator[tuple[str, list[float]]]:
        if self._settings.command:
            for key, examples in tasks.items():
                yield key, self._run_command(examples)
            return
        import torch.multiprocessing as mp

        from rapidin_cli.work.devices import cores

        workers = max(1, min(self._workers, len(tasks)))
        threads = max(1, cores() // workers) if self._device == "cpu" else 0
        jobs = {key: self._job(examples, threads) for key, examples in tasks.items()}
        if workers == 1:
            for key, job in jobs.items():
                yield key, run_built_in(job)
            return
        pool = ProcessPoolExecutor(workers, mp_context=mp.get_context("spawn"))
        try:
            futures = {pool.submit(run_built_in, job): key for key, job in jobs.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _job(self, examples: Sequence[Example], threads: int) -> BuiltIn:
        settings = self._settings
        training = Training(
            settings.epochs, settings.batch_rows, settings.learning_rate, seed=settings.seed
        )
        return BuiltIn(
            self._start, self._adapter, training, examples, self._queries, self._device, threads
        )

    def _run_command(self, examples: Sequence[Example]) -> list[float]:
        """Run the user's training command on a file of the rows, and load what it wrote."""
        work = self._memory.parent / "work"
        work.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=work))
        try:
            data, output = folder / "train.jsonl", folder / "output"
            data.write_text(self._lines(examples), encoding="utf-8")
            command = [
                part.format(data=data, output=output, seed=self._settings.seed)
                for part in shlex.split(self._settings.command)
            ]
            ended = subprocess.run(
                command, cwd=self._opened.folder, capture_output=True, text=True, check=False
            )
            if ended.returncode:
                last = " | ".join(
                    (ended.stderr or ended.stdout).strip().split("\n")[-_SHOWN_LINES:]
                )
                raise RinError(
                    f"the training command failed with exit code {ended.returncode}: {last}",
                    hint=f"run it by hand: {shlex.join(command)}",
                )
            trained = resolve(
                self._opened.folder, "retrained", str(output), self._opened.config.model.base
            )
            return losses(load_model(trained, self._device), self._queries)
        except (KeyError, IndexError) as error:
            raise InputError(
                f"[evaluate] command uses {{{error}}}", hint="it may use {data}, {output}, {seed}"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _lines(self, examples: Sequence[Example]) -> str:
        """The rows of the data files that examples were made of, as JSON lines."""
        wanted = {(example.row.file, example.row.line) for example in examples}
        lines = []
        for name in self._opened.config.data.files:
            for line, value in read_values(self._opened.folder / name, name):
                if (name, line) in wanted:
                    lines.append(json.dumps(value, ensure_ascii=False) + "\n")
        return "".join(lines)

    def _remembered(self) -> dict[str, list[float]]:
        if not self._memory.exists():
            return {}
        found = {}
        for line in self._memory.read_text(encoding="utf-8").splitlines():
            try:
                item = json.loads(line)
                found[item["rows"]] = [float(value) for value in item["losses"]]
            except (ValueError, KeyError, TypeError):
                continue  # a line cut off by a kill
        return found

    def _remember(self, key: str, found: list[float]) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        with self._memory.open("a", encoding="utf-8") as stream:
            stream.write("\n" if self._cut_off() else "")
            stream.write(json.dumps({"rows": key, "losses": found}) + "\n")

    def _cut_off(self) -> bool:
        text = self._memory.read_bytes()
        return bool(text) and not text.endswith(b"\n")


def _key(examples: Sequence[Example]) -> str:
    total = hashlib.sha256()
    for digest in sorted(example.digest for example in examples):
        total.update(digest)
    return total.hexdigest()
