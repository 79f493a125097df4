"""The contenders of `peers.py` that are not ours, each through its own Python API."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.peers_worker import (
    Array,
    Contender,
    Data,
    Job,
    ProjectedRows,
    Turns,
    frozen_but_embedding,
    linear_layers,
    load,
    loss_of,
)

ONE_BLOCK_BYTES = 6 * 2**30


class Bergson(ProjectedRows):
    """What `bergson build` runs in a worker, on rows that are tokens already."""

    def __init__(self, job: Job) -> None:
        from bergson import IndexConfig
        from bergson.utils.worker_utils import setup_model_and_peft

        self.job = job
        self.dimension = job["dimension"]
        self.note = f"{self.dimension} x {self.dimension} a layer, float32"
        self._config = IndexConfig
        self.model, self.targets = setup_model_and_peft(self.config("unused"))

    def config(self, folder: Path | str) -> Any:
        return self._config(
            str(folder),
            model=self.job["adapter"] or self.job["model"],
            projection_dim=self.dimension,
            token_batch_size=self.job["tokens"],
        )

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        import datasets
        from bergson import collect_gradients
        from bergson.utils.worker_utils import create_processor

        datasets.disable_progress_bars()
        config = self.config(folder)
        config.partial_run_path.mkdir(parents=True)
        rows = {"input_ids": data.ids, "labels": data.labels, "length": list(map(len, data.ids))}
        collect_gradients(
            self.model,
            datasets.Dataset.from_dict(rows),
            create_processor(self.model, config, self.targets),
            config,
            batches=Members(data, turns),
            target_modules=self.targets,
        )
        config.partial_run_path.rename(folder)

    def rows(self, folder: Path) -> Array:
        from bergson import load_gradients

        return np.asarray(load_gradients(folder))


class Members:
    """The turns, as the numbers of each batch's rows."""

    def __init__(self, data: Data, turns: Turns) -> None:
        self.data, self.turns = data, turns

    def __len__(self) -> int:
        return len(self.turns)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.data.members[number] for number in self.turns)


class Dattri(ProjectedRows):
    """dattri-llm's hooks with LoGra projections, offloaded batch by batch."""

    def __init__(self, job: Job) -> None:
        from dattri_llm import HookManagerConfig

        self.dimension = job["dimension"]
        self.note = f"{self.dimension} x {self.dimension} a layer, float32; weights frozen"
        self.model = load(job)
        names = list(linear_layers(self.model))
        projection = {"proj_dim": self.dimension, "proj_max_batch_size": 8, "style": "logra"}
        self.config = HookManagerConfig(
            hook_types=dict.fromkeys(names, "linear_io"),
            capture_style="auto",
            include_frozen=True,
            projection_kwargs={"__default__": projection},
        )
        frozen_but_embedding(self.model)

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        from dattri_llm import GradientStorageManager, HookManager, OffloadCallback

        store = GradientStorageManager(str(folder))
        back = OffloadCallback(offload_interval=1, file_manager=store, recording_type="per_batch")
        manager = HookManager(self.model, config=self.config, callbacks=[back])
        with manager.collect(deregister_on_exit=True):
            for number in turns:
                loss_of(self.model, *data.batches[number]).backward()
                self.model.zero_grad(set_to_none=True)

    def rows(self, folder: Path) -> Array:
        from dattri_llm import GradientStorageManager

        store = GradientStorageManager(str(folder))
        found = {}
        for file, _ in store.iter_steps(store.available_steps()):
            for record in store.load_records(file):
                layers = record.gradient.materialize().data
                parts = [flat(layers[name]) for name in sorted(layers)]
                found[record.step] = torch.cat(parts, dim=1).float().numpy()
        return np.concatenate([found[step] for step in sorted(found)])


def flat(value: Any) -> torch.Tensor:
    """One layer's gradients, (B, W); a layer without bias is a bare tensor or a mapping."""
    parts = value.values() if isinstance(value, dict) else [value]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


class Logix(ProjectedRows):
    """LogIX's LoGra: a frozen bottleneck beside each linear layer, whose gradient is logged."""

    def __init__(self, job: Job) -> None:
        from logix import LogIX
        from logix.config import LoRAConfig
        from logix.lora.modules import LoraLinear

        self.note = f"{job['dimension']} x {job['dimension']} a layer at most, float32"
        if job["adapter"]:
            # PEFT asks its layers for their weight, and LogIX's wrapper has none.
            LoraLinear.weight = property(lambda self: self._linear.weight)
            self.note += "; its wrapper was given the attribute `weight` that PEFT reads"
        torch.manual_seed(0)
        self.model = load(job)
        names = list(linear_layers(self.model))
        frozen_but_embedding(self.model)
        self.run = LogIX(str(Path(job["folder"]) / "logix-project"))
        self.run.watch(self.model, name_filter=names)
        self.run.add_lora(lora_config=LoRAConfig(rank=job["dimension"]))
        self.model.get_input_embeddings().requires_grad_(True)
        self.run.setup({"grad": ["log"]})
        self.run.save(True)

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        folder.mkdir()
        self.run.logger.log_saver.log_dir = str(folder)
        for number in turns:
            with self.run(data_id=[f"{n:09}" for n in data.members[number]]):
                loss_of(self.model, *data.batches[number]).backward()
                self.model.zero_grad(set_to_none=True)
        self.run.finalize()

    def rows(self, folder: Path) -> Array:
        from logix.logging.log_loader import LogDataset

        stored = LogDataset(log_dir=str(folder), flatten=True)
        found = dict(stored[n] for n in range(len(stored)))
        return np.stack([np.asarray(found[name]) for name in sorted(found)])


class Trak(ProjectedRows):
    """TRAK's features of the loss itself; all but the linear layers' weights are buffers."""

    DIMENSIONS = 2048

    def __init__(self, job: Job) -> None:
        from trak.projectors import BasicProjector, BasicSingleBlockProjector

        self.model = load(job)
        self.model.set_attn_implementation("eager")
        keep_only(self.model, {id(m.weight) for m in linear_layers(self.model).values()})
        size = sum(p.numel() for p in self.model.parameters())
        one = size * self.DIMENSIONS * 4 <= ONE_BLOCK_BYTES
        kind = BasicSingleBlockProjector if one else BasicProjector
        self.note = f"{self.DIMENSIONS:,} dimensions, float32, {kind.__name__}"
        self.projector = kind(size, self.DIMENSIONS, 0, "rademacher", "cpu", dtype=torch.float32)

    def cache(self, data: Data, turns: Turns, folder: Path) -> None:
        from trak import TRAKer
        from trak.modelout_functions import AbstractModelOutput

        class Loss(AbstractModelOutput):  # type: ignore[misc]
            def __init__(self) -> None: ...

            @staticmethod
            def get_output(
                model: Any, weights: Any, buffers: Any, ids: torch.Tensor, labels: torch.Tensor
            ) -> torch.Tensor:
                def run(**inputs: Any) -> Any:
                    return torch.func.functional_call(model, (weights, buffers), (), inputs)

                return loss_of(run, ids[None], labels[None])

            def get_out_to_loss_grad(self, *state: Any) -> torch.Tensor:
                return torch.ones(len(state[-1][0]), 1)

        tracker = TRAKer(
            model=self.model,
            task=Loss(),
            train_set_size=len(data),
            save_dir=str(folder),
            device="cpu",
            projector=self.projector,
            use_half_precision=False,
            logging_level=30,
        )
        tracker.load_checkpoint(self.model.state_dict(), model_id=0)
        for number in turns:
            batch = data.batches[number]
            tracker.featurize(batch, num_samples=len(batch[0]))
        tracker.saver.current_store["grads"].flush()

    def rows(self, folder: Path) -> Array:
        stored: Array = np.load(next(folder.rglob("grads.mmap")))
        return stored


def keep_only(model: Any, kept: set[int]) -> None:
    """Turn all other parameters into buffers: torch.func takes no gradient of those."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in kept:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


KINDS: dict[str, Callable[[Job], Contender]] = {
    "bergson": Bergson,
    "dattri-llm": Dattri,
    "LogIX": Logix,
    "TRAK": Trak,
}


def make(job: Job) -> Contender:
    """The contender of a job."""
    return KINDS[job["kind"]](job)
