"""`rin init` in folders as people have them: what it proposes, chooses, and leaves alone."""

import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainingArguments

from tests.support import folders, tiny
from tests.support.forked import rin


class Rows(TorchDataset):
    def __len__(self):
        return 8

    def __getitem__(self, place):
        ids = torch.arange(6) + place
        return {"input_ids": ids, "labels": ids}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A base model, an adapter on it, and what a Trainer leaves with its last model on top."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.project(folder, 2)
    model = tiny.lora(tiny.llama())
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=6,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train()
    trainer.save_model()
    return folder


@dataclass(frozen=True)
class Case:
    make: object
    files: list
    checkpoints: dict
    template: str
    base: str = ""
    said: list = field(default_factory=list)
    options: tuple = ()
    next: str = "rin cache"


CASES = [
    Case(
        folders.alpaca_with_an_adapter,
        ["data/alpaca.json"],
        {"adapter": "models/adapter"},
        "alpaca",
        said=["alpaca rows", f"{folders.HUB}  (named by the adapter; from the model hub)"],
    ),
    Case(
        folders.alpaca_on_a_chat_model,
        ["alpaca.json"],
        {"lora": "out/lora"},
        "chat",
        said=["base has a chat template", "base        base  (named by the adapter)"],
    ),
    Case(
        folders.a_trainer_s_run,
        ["train.jsonl"],
        {f"checkpoint-{n}": f"out/checkpoint-{n}" for n in (2, 4, 6)},
        "plain",
        said=[
            "(adapter, step 4)",
            "out was skipped: it has the same weights as out/checkpoint-6",
            # Linear decay from 0.01: steps 1+2, 3+4, 5+6 of six.
            "weights     0.52, 0.33, 0.14  (the learning rates in trainer_state.json)",
        ],
    ),
    Case(
        folders.a_run_with_its_best_model_on_top,
        ["train.jsonl"],
        {f"checkpoint-{n}": f"out/checkpoint-{n}" for n in (2, 4, 6)},
        "plain",
        said=["the same weights as out/checkpoint-4", "to ask this one: --checkpoint checkpoint-4"],
    ),
    Case(
        folders.two_runs,
        ["train.jsonl"],
        {f"checkpoint-{n}": f"second/checkpoint-{n}" for n in (2, 4, 6)},
        "plain",
        said=["the newest of 2 training runs; use --checkpoint to choose others: first"],
    ),
    Case(
        folders.many_checkpoints,
        ["train.jsonl"],
        {f"checkpoint-{n}": f"out/checkpoint-{n}" for n in (1, 4, 7, 9, 12)},
        "plain",
        said=["5 of 12 checkpoints, evenly spread", "equal weights"],
    ),
    Case(
        folders.chats_on_a_hub_model,
        ["data/chats.jsonl"],
        {"adapter": "adapter"},
        "chat",
        said=["messages rows", "the data has conversations", folders.HUB],
    ),
    Case(
        folders.chats_alone,
        ["chats.jsonl"],
        {"tiny-base": folders.HUB},
        "chat",
        options=("--checkpoint", folders.HUB),
        said=["(given, from the model hub)"],
    ),
    Case(
        folders.chats_alone,
        ["chats.jsonl"],
        {},
        "chat",
        base=folders.HUB,
        options=("--base", folders.HUB),
        said=["no checkpoint was found: add [[checkpoints]]"],
        next="rin status",
    ),
    Case(
        folders.splits,
        ["data/train.jsonl"],
        {"adapter": "adapter"},
        "plain",
        said=["the largest of 3 candidates", "data/old.jsonl, data/test.jsonl"],
    ),
    Case(
        folders.a_base_that_moved,
        ["alpaca.json"],
        {"adapter": "adapter"},
        "chat",
        base="models/base",
        said=["instead of /home/somebody/base, which the adapter names but is not here"],
    ),
    Case(
        folders.a_full_model_beside_its_base,
        ["train.jsonl"],
        {"checkpoint-7": "out/checkpoint-7"},
        "chat",
        said=["(full model, step 7)"],
    ),
    Case(folders.a_tree_with_much_else, ["data/chats.jsonl"], {"adapter": "adapter"}, "chat"),
    Case(folders.pickled, ["train.jsonl"], {"adapter": "adapter"}, "plain"),
    Case(
        folders.a_run_that_fsdp_divided,
        ["train.jsonl"],
        {},
        "plain",
        said=["out/checkpoint-4 cannot be used: ", "accelerate merge-weights"],
        next="rin status",
    ),
    Case(
        folders.an_adapter_without_weights,
        ["train.jsonl"],
        {},
        "plain",
        said=["adapter cannot be used: ", "has no adapter_model.safetensors"],
        next="rin status",
    ),
    Case(
        folders.shards,
        [f"data/train-0000{n}-of-00004.jsonl" for n in (0, 1, 3)],
        {"adapter": "adapter"},
        "plain",
        said=["of the set of train-00000-of-00004.jsonl, part 2 is missing"],
    ),
    Case(
        folders.a_folder_of_splits,
        ["data"],
        {"adapter": "adapter"},
        "plain",
        said=["prompt rows of the split train"],
    ),
    Case(
        folders.a_broken_first_row,
        ["train.jsonl"],
        {"adapter": "adapter"},
        "plain",
        said=["prompt rows; train.jsonl:1: broken JSON"],
    ),
    Case(
        folders.rows_that_cannot_be_used,
        [],
        {"adapter": "adapter"},
        "plain",
        said=[
            "train.jsonl cannot be used: train.jsonl:1: field 'prompt' must be text",
            "odd.jsonl cannot be used: odd.jsonl:1: its fields ('question', 'answer')",
        ],
        next="rin status",
    ),
    Case(
        folders.two_shapes_in_one,
        ["train.jsonl"],
        {"adapter": "adapter"},
        "alpaca",
        said=["format      alpaca  (its rows also have the fields of text)"],
    ),
    Case(
        folders.completions,
        ["train.jsonl"],
        {"adapter": "adapter"},
        "plain",
        said=["TRL joins prompt and completion as they are", "tokens, "],
    ),
    Case(folders.nothing, [], {}, "plain", said=["no training data was found"], next="rin status"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make.__name__)
def test_it_proposes_what_a_person_would(case, parts, tmp_path):
    case.make(tmp_path, parts)
    before = tree(tmp_path)
    done = rin(tmp_path, "init", *case.options)  # without --yes: nobody can answer here
    assert done.returncode == 0, done.stderr
    written = tomllib.loads((tmp_path / "rin.toml").read_text())
    assert written["data"]["files"] == case.files
    assert written["data"]["template"] == case.template
    named = written.get("checkpoints", [])
    found = {one["name"]: one["path"] for one in named if "start" not in one}
    last = tmp_path / named[-1]["path"] if named else tmp_path
    can_start = (last / "adapter_config.json").exists()
    starts = [one for one in named if "start" in one]
    assert starts == ([{"name": "start", "start": True}] if can_start else [])
    assert list(found.items()) == list(case.checkpoints.items())
    assert written["model"]["base"] == case.base
    for words in case.said:
        assert words in done.stderr
    assert done.stderr.rstrip().endswith(f"\nnext: {case.next}")
    assert {path: bytes_ for path, bytes_ in tree(tmp_path).items() if path in before} == before
    again = rin(tmp_path, "init", "--yes")
    assert "nothing was changed" in again.stderr


def parts_of_a_set(folder, parts):
    folders.shards(folder, parts)
    (folder / "data/train-00001-of-00004.jsonl").rename(folder / "data/train-00002-of-00004.jsonl")


def of_no_known_shape(folder, parts):
    tiny.write_jsonl(folder / "odd.jsonl", [{"question": "a", "answer": "b"}] * 3)
    folders.adapter_on(folder / "adapter", parts / "adapter", folders.HUB)


@pytest.mark.parametrize(
    ("make", "data", "said"),
    [
        (parts_of_a_set, "data/*.jsonl", "data/*.jsonl  (prompt rows; 3 files)"),
        (
            parts_of_a_set,
            "data/train-00000-of-00004.jsonl",
            "is one of 4 parts; all of them: --data 'data/train-*-of-00004.jsonl'",
        ),
        (folders.a_folder_of_splits, "data", "data  (prompt rows of the split train)"),
        (folders.a_folder_of_splits, "data/test", "data/test  (prompt rows)"),
        (of_no_known_shape, "odd.jsonl", "its fields ('question', 'answer') are of no known shape"),
    ],
)
def test_data_is_named_as_it_lies_there(make, data, said, parts, tmp_path):
    make(tmp_path, parts)
    done = rin(tmp_path, "init", "--yes", "--data", data)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert tomllib.loads((tmp_path / "rin.toml").read_text())["data"]["files"] == [data]


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["closed", "empty", "a pipe that stays open"])
def test_it_does_not_wait_for_an_answer_that_nobody_can_give(way, parts, tmp_path):
    folders.alpaca_with_an_adapter(tmp_path, parts)
    redirect = {"closed": "<&-", "empty": "</dev/null"}.get(way, "")
    command = ["/bin/bash", "-c", f"{sys.executable} -m rapidin_cli init {redirect}"]
    pipes = dict.fromkeys(("stdin", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert process.wait(timeout=30) == 0, process.stderr.read()
    assert (tmp_path / "rin.toml").exists()


def test_a_huge_tree_is_not_looked_through(parts, tmp_path):
    folders.chats_on_a_hub_model(tmp_path, parts)
    for folder in range(12):
        place = tmp_path / f"images/{folder}"
        place.mkdir(parents=True)
        for number in range(6000):
            os.close(os.open(place / f"{number}.json", os.O_CREAT))
    start = time.perf_counter()
    done = rin(tmp_path, "init", "--yes")
    assert time.perf_counter() - start < 10
    assert "only partly searched: use --data and --checkpoint" in done.stderr
    assert "data/chats.jsonl" in (tmp_path / "rin.toml").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "gone.json"), "there is no data file"),
        (("--checkpoint", "./gone"), "there is no folder"),
        (("--checkpoint", "data"), "so it is not a checkpoint"),
        (("--checkpoint", "empty"), "has no adapter_model.safetensors"),
        (("--data", "*.csv"), "there is no data file"),
        (("--data", "utf16.jsonl"), "next:  convert it: iconv -f UTF-16 "),
        (("--data", "numbers.jsonl"), "can be used; numbers.jsonl:1: field 'prompt' must be text"),
        (("--data", "models"), "models is a folder, but not one that save_to_disk"),
    ],
)
def test_what_is_named_must_be_there(options, said, parts, tmp_path):
    folders.alpaca_with_an_adapter(tmp_path, parts)
    folders.write(tmp_path / "empty/adapter_config.json", {})
    (tmp_path / "utf16.jsonl").write_text("{}", encoding="utf-16")
    tiny.write_jsonl(tmp_path / "numbers.jsonl", [{"prompt": 1, "response": 2}] * 3)
    done = rin(tmp_path, "init", "--yes", *options)
    assert (done.returncode, said in done.stderr) == (4, True), done.stderr
    assert not (tmp_path / "rin.toml").exists()
