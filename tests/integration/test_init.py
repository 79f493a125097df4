"""`rin init` in folders as people have them: what it proposes, chooses, and leaves alone."""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainingArguments

from tests.support import tiny
from tests.support.forked import rin

HUB = "acme-lab/tiny-base"


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


def alpaca(count, answer="One, two."):
    return [
        {"instruction": f"Count to {n}.", "input": "", "output": answer * (1 + n % 3)}
        for n in range(count)
    ]


def chats(count):
    turns = [("user", "Hello"), ("assistant", "Hi.")]
    return [
        {"messages": [{"role": r, "content": f"{c} {n}"} for r, c in turns]} for n in range(count)
    ]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text, indent=1))


def adapter_on(folder, source, base):
    """An adapter that was trained on `base`."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    write(folder / "adapter_config.json", {**config, "base_model_name_or_path": base})


def alpaca_with_an_adapter(folder, parts):
    write(folder / "data/alpaca.json", alpaca(30))
    adapter_on(folder / "models/adapter", parts / "adapter", HUB)


def alpaca_on_a_chat_model(folder, parts):
    write(folder / "alpaca.json", alpaca(30))
    shutil.copytree(parts / "base", folder / "base")
    adapter_on(folder / "out/lora", parts / "adapter", "base")


def a_trainer_s_run(folder, parts):
    tiny.write_jsonl(folder / "train.jsonl", tiny.rows(30))
    shutil.copytree(parts / "run", folder / "out")


def a_run_with_its_best_model_on_top(folder, parts):
    """As load_best_model_at_end and save_state leave it."""
    a_trainer_s_run(folder, parts)
    for name, step in (("adapter_model.safetensors", 4), ("trainer_state.json", 6)):
        shutil.copy(folder / f"out/checkpoint-{step}" / name, folder / "out")


def two_runs(folder, parts):
    a_trainer_s_run(folder, parts)
    (folder / "out").rename(folder / "first")
    shutil.copytree(parts / "run", folder / "second")
    for path in (folder / "first").rglob("*.safetensors"):
        os.utime(path, (1e9, 1e9))


def many_checkpoints(folder, parts):
    tiny.write_jsonl(folder / "train.jsonl", tiny.rows(30))
    for step in range(1, 13):
        adapter_on(folder / f"out/checkpoint-{step}", parts / "adapter", HUB)
        path = folder / f"out/checkpoint-{step}/adapter_model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-4] + bytes([step, 0, 0, 0]))


def chats_on_a_hub_model(folder, parts):
    tiny.write_jsonl(folder / "data/chats.jsonl", chats(30))
    adapter_on(folder / "adapter", parts / "adapter", HUB)


def chats_alone(folder, _):
    tiny.write_jsonl(folder / "chats.jsonl", chats(30))


def splits(folder, parts):
    tiny.write_jsonl(folder / "data/train.jsonl", tiny.rows(20))
    tiny.write_jsonl(folder / "data/test.jsonl", tiny.rows(70))
    tiny.write_jsonl(folder / "data/old.jsonl", tiny.rows(10))
    adapter_on(folder / "adapter", parts / "adapter", HUB)


def a_base_that_moved(folder, parts):
    write(folder / "alpaca.json", alpaca(9))
    shutil.copytree(parts / "base", folder / "models/base")
    adapter_on(folder / "adapter", parts / "adapter", "/home/somebody/base")


def a_full_model_beside_its_base(folder, parts):
    tiny.write_jsonl(folder / "train.jsonl", tiny.rows(30))
    shutil.copytree(parts / "base", folder / "base")
    shutil.copytree(parts / "base", folder / "out/checkpoint-7")
    encoder = {"architectures": ["BertModel"], "model_type": "bert"}
    write(folder / "encoder/config.json", encoder)
    shutil.copy(parts / "base/model.safetensors", folder / "encoder")


def a_tree_with_much_else(folder, parts):
    """Environments, caches, other projects, and a configuration of something else."""
    chats_on_a_hub_model(folder, parts)
    write(folder / "config.json", {"port": 80})
    rows = [json.dumps(row) for row in tiny.rows(72)] * 3
    for place in (
        *(".git", ".cache/hub", "node_modules/pkg", "web/node_modules", "wandb/run", "__pycache__"),
        *("my-environment", "rin-demo"),
    ):
        write(folder / place / "train.jsonl", "\n".join(rows))
        adapter_on(folder / place / "lora", parts / "adapter", HUB)
    write(folder / "my-environment/pyvenv.cfg", "home = /usr/bin")
    write(folder / "rin-demo/rin.toml", "")
    (folder / "secret").mkdir(mode=0o000)
    (folder / "loop").symlink_to(folder)


def pickled(folder, parts):
    tiny.write_jsonl(folder / "train.jsonl", tiny.rows(30))
    adapter_on(folder / "adapter", parts / "adapter", HUB)
    weights = folder / "adapter/adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter/adapter_model.bin")
    weights.unlink()


def a_run_that_fsdp_divided(folder, parts):
    """Its base must not be taken for what was trained."""
    tiny.write_jsonl(folder / "train.jsonl", tiny.rows(30))
    shutil.copytree(parts / "base", folder / "base")
    run = folder / "out/checkpoint-4"
    run.mkdir(parents=True)
    shutil.copy(parts / "base/config.json", run)
    write(run / "trainer_state.json", {"global_step": 4})
    write(run / "pytorch_model_fsdp_0/__0_0.distcp", "")


def an_adapter_without_weights(folder, parts):
    tiny.write_jsonl(folder / "train.jsonl", tiny.rows(30))
    shutil.copytree(parts / "base", folder / "base")
    adapter_on(folder / "adapter", parts / "adapter", "base")
    (folder / "adapter/adapter_model.safetensors").unlink()


def shards(folder, parts):
    for number in (0, 1, 3):
        rows = tiny.rows(40)[10 * number : 10 * number + 10]
        tiny.write_jsonl(folder / f"data/train-0000{number}-of-00004.jsonl", rows)
    adapter_on(folder / "adapter", parts / "adapter", HUB)


def a_folder_of_splits(folder, parts):
    rows = datasets.Dataset.from_list(tiny.rows(12))
    splits = datasets.DatasetDict({"train": rows, "test": rows.select(range(3))})
    splits.save_to_disk(folder / "data")
    adapter_on(folder / "adapter", parts / "adapter", HUB)


def a_broken_first_row(folder, parts):
    write(
        folder / "train.jsonl", "nonsense\n" + "".join(json.dumps(r) + "\n" for r in tiny.rows(9))
    )
    adapter_on(folder / "adapter", parts / "adapter", HUB)


def rows_that_cannot_be_used(folder, parts):
    tiny.write_jsonl(folder / "train.jsonl", [{"prompt": 1, "response": 2}] * 3)
    tiny.write_jsonl(folder / "odd.jsonl", [{"question": "a", "answer": "b"}])
    adapter_on(folder / "adapter", parts / "adapter", HUB)


def two_shapes_in_one(folder, parts):
    rows = [{**row, "text": "Below is ..."} for row in alpaca(9)]
    tiny.write_jsonl(folder / "train.jsonl", rows)
    adapter_on(folder / "adapter", parts / "adapter", HUB)


def completions(folder, parts):
    rows = [{"prompt": r["prompt"], "completion": r["response"]} for r in tiny.rows(9)]
    tiny.write_jsonl(folder / "train.jsonl", rows)
    shutil.copytree(parts / "base", folder / "base")
    adapter_on(folder / "adapter", parts / "adapter", "base")


def nothing(folder, _):
    write(folder / "notes.json", {"text": 3})
    write(folder / "vocab.jsonl", '{"text": ["no", "text"]}')


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
        alpaca_with_an_adapter,
        ["data/alpaca.json"],
        {"adapter": "models/adapter"},
        "alpaca",
        said=["alpaca rows", f"{HUB}  (named by the adapter; from the model hub)"],
    ),
    Case(
        alpaca_on_a_chat_model,
        ["alpaca.json"],
        {"lora": "out/lora"},
        "chat",
        said=["base has a chat template", "base        base  (named by the adapter)"],
    ),
    Case(
        a_trainer_s_run,
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
        a_run_with_its_best_model_on_top,
        ["train.jsonl"],
        {f"checkpoint-{n}": f"out/checkpoint-{n}" for n in (2, 4, 6)},
        "plain",
        said=["the same weights as out/checkpoint-4", "to ask this one: --checkpoint checkpoint-4"],
    ),
    Case(
        two_runs,
        ["train.jsonl"],
        {f"checkpoint-{n}": f"second/checkpoint-{n}" for n in (2, 4, 6)},
        "plain",
        said=["the newest of 2 training runs; use --checkpoint to choose others: first"],
    ),
    Case(
        many_checkpoints,
        ["train.jsonl"],
        {f"checkpoint-{n}": f"out/checkpoint-{n}" for n in (1, 4, 7, 9, 12)},
        "plain",
        said=["5 of 12 checkpoints, evenly spread", "equal weights"],
    ),
    Case(
        chats_on_a_hub_model,
        ["data/chats.jsonl"],
        {"adapter": "adapter"},
        "chat",
        said=["messages rows", "the data has conversations", HUB],
    ),
    Case(
        chats_alone,
        ["chats.jsonl"],
        {"tiny-base": HUB},
        "chat",
        options=("--checkpoint", HUB),
        said=["(given, from the model hub)"],
    ),
    Case(
        chats_alone,
        ["chats.jsonl"],
        {},
        "chat",
        base=HUB,
        options=("--base", HUB),
        said=["no checkpoint was found: add [[checkpoints]]"],
        next="rin status",
    ),
    Case(
        splits,
        ["data/train.jsonl"],
        {"adapter": "adapter"},
        "plain",
        said=["the largest of 3 candidates", "data/old.jsonl, data/test.jsonl"],
    ),
    Case(
        a_base_that_moved,
        ["alpaca.json"],
        {"adapter": "adapter"},
        "chat",
        base="models/base",
        said=["instead of /home/somebody/base, which the adapter names but is not here"],
    ),
    Case(
        a_full_model_beside_its_base,
        ["train.jsonl"],
        {"checkpoint-7": "out/checkpoint-7"},
        "chat",
        said=["(full model, step 7)"],
    ),
    Case(a_tree_with_much_else, ["data/chats.jsonl"], {"adapter": "adapter"}, "chat"),
    Case(pickled, ["train.jsonl"], {"adapter": "adapter"}, "plain"),
    Case(
        a_run_that_fsdp_divided,
        ["train.jsonl"],
        {},
        "plain",
        said=["out/checkpoint-4 cannot be used: ", "accelerate merge-weights"],
        next="rin status",
    ),
    Case(
        an_adapter_without_weights,
        ["train.jsonl"],
        {},
        "plain",
        said=["adapter cannot be used: ", "has no adapter_model.safetensors"],
        next="rin status",
    ),
    Case(
        shards,
        [f"data/train-0000{n}-of-00004.jsonl" for n in (0, 1, 3)],
        {"adapter": "adapter"},
        "plain",
        said=["1 of its parts are missing"],
    ),
    Case(
        a_folder_of_splits,
        ["data"],
        {"adapter": "adapter"},
        "plain",
        said=["prompt rows of the split train"],
    ),
    Case(
        a_broken_first_row,
        ["train.jsonl"],
        {"adapter": "adapter"},
        "plain",
        said=["prompt rows; train.jsonl:1: broken JSON"],
    ),
    Case(
        rows_that_cannot_be_used,
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
        two_shapes_in_one,
        ["train.jsonl"],
        {"adapter": "adapter"},
        "alpaca",
        said=["format      alpaca  (its rows also have the fields of text)"],
    ),
    Case(
        completions,
        ["train.jsonl"],
        {"adapter": "adapter"},
        "plain",
        said=["TRL joins prompt and completion as they are", "tokens, "],
    ),
    Case(nothing, [], {}, "plain", said=["no training data was found"], next="rin status"),
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
    found = {one["name"]: one["path"] for one in written.get("checkpoints", [])}
    assert list(found.items()) == list(case.checkpoints.items())
    assert written["model"]["base"] == case.base
    for words in case.said:
        assert words in done.stderr
    assert done.stderr.rstrip().endswith(f"\nnext: {case.next}")
    assert {path: bytes_ for path, bytes_ in tree(tmp_path).items() if path in before} == before
    again = rin(tmp_path, "init", "--yes")
    assert "nothing was changed" in again.stderr


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["closed", "empty", "a pipe that stays open"])
def test_it_does_not_wait_for_an_answer_that_nobody_can_give(way, parts, tmp_path):
    alpaca_with_an_adapter(tmp_path, parts)
    redirect = {"closed": "<&-", "empty": "</dev/null"}.get(way, "")
    command = ["/bin/bash", "-c", f"{sys.executable} -m rapidin_cli init {redirect}"]
    pipes = dict.fromkeys(("stdin", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert process.wait(timeout=30) == 0, process.stderr.read()
    assert (tmp_path / "rin.toml").exists()


def test_a_huge_tree_is_not_looked_through(parts, tmp_path):
    chats_on_a_hub_model(tmp_path, parts)
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
    ],
)
def test_what_is_named_must_be_there(options, said, parts, tmp_path):
    alpaca_with_an_adapter(tmp_path, parts)
    done = rin(tmp_path, "init", "--yes", *options)
    assert (done.returncode, said in done.stderr) == (4, True), done.stderr
    assert not (tmp_path / "rin.toml").exists()
