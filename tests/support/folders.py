"""Folders as people have them, for `rin init`."""

import json
import os
import shutil

import datasets
import torch
from safetensors.torch import load_file

from tests.support import tiny

HUB = "acme-lab/tiny-base"


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
