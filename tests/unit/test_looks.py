"""What `rin init` makes of files at a first look: shapes, reasons, and which belong together."""

import json
import os
import time

import datasets
import pytest

from rapidin_cli.setup.looks import look_at
from rapidin_cli.setup.search import survey
from rapidin_cli.setup.selection import choose_checkpoints, choose_data
from rapidin_cli.setup.shards import shards_among
from tests.support import tiny

GOOD = [{"prompt": f"Count to {n}.", "response": "One."} for n in range(4)]
ODD = [{"question": "a", "answer": "b"}] * 3
LONG = "x" * 100_000


def chosen(folder):
    """The paths that init takes, and what it says."""
    notes = []
    return [each.path for each in choose_data(folder, survey(folder), notes)], "\n".join(notes)


def lines(*rows):
    return "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in rows)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train.jsonl", lines({"prompt": 1, "response": 2}), "train.jsonl:1: field 'prompt' must"),
        ("train.jsonl", lines({"prompt": "a", "response": " \n"}), "field 'response' is empty"),
        ("train.jsonl", lines({"prompt": "a", "response": "\ud800"}), "half a surrogate pair"),
        ("train.jsonl", "\0" * 64, "train.jsonl:1: it contains NUL bytes"),
        ("train.jsonl", '{"prompt": ', "train.jsonl:1: broken JSON at column"),
        ("train.jsonl", "", "train.jsonl has no rows"),
        ("train.jsonl", lines(*ODD), "its fields ('question', 'answer') are of no known shape"),
        ("train.json", json.dumps(ODD), "train.json:1: its fields ('question', 'answer')"),
        ("train.csv", "question,answer\na,b\n", "train.csv:2: its fields ('question', 'answer')"),
        ("train.csv", "prompt,response\na\n", "train.csv:2: a row must have 2 cells"),
        ("train.json", json.dumps({"v": 1, "dialogs": GOOD}, indent=1), "not dialogs"),
        ("train.json", '[{"prompt": }]', "train.json:1: broken JSON list"),
        ("train.json", json.dumps([{"question": LONG}] * 30), "its fields ('question')"),
        ("train.json", '[{"prompt" 1},' + json.dumps([LONG] * 30)[1:], "broken JSON list: Expec"),
        ("data/train.jsonl", "é".encode("utf-16").decode("latin-1"), "UTF-8 data/train.jsonl >"),
    ],
)
def test_the_reason_is_said_with_its_place(name, text, said, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="latin-1" if "UTF-8" in said else "utf-8")
    files, notes = chosen(tmp_path)
    assert files == []
    assert said in notes
    assert notes.startswith(f"{name} cannot be used: ")
    assert look_at(tmp_path / name, name, given=True).problem


def test_what_may_be_anything_is_not_named_beside_data(tmp_path):
    tiny.write_jsonl(tmp_path / "train.jsonl", GOOD)
    (tmp_path / "people.json").write_text(json.dumps(ODD))
    (tmp_path / "prices.csv").write_text("day,price\n1,2\n")
    (tmp_path / "config.json").write_text(json.dumps({"port": 80}))
    assert chosen(tmp_path) == (["train.jsonl"], "")


def test_a_good_row_after_bad_ones_is_enough(tmp_path):
    bad = ["\0\0\n", {"prompt": 1, "response": 2}, "nonsense\n"]
    (tmp_path / "train.jsonl").write_text(lines(*bad * 6, *GOOD))
    look = look_at(tmp_path / "train.jsonl", "train.jsonl")
    assert look.shape == "prompt"
    assert look.skipped.startswith("train.jsonl:1: it contains NUL")


def test_a_long_list_is_not_read_to_its_end(tmp_path):
    """Its end is broken, which only reading it all would tell; rows begin at the margin."""
    for begin in ("[\n", '{"version": 1, "data": [\n'):
        rows = ",\n".join(json.dumps({**row, "note": LONG}) for row in GOOD * 5)
        (tmp_path / "train.json").write_text(begin + rows + ", nonsense")
        assert look_at(tmp_path / "train.json", "train.json").shape == "prompt"


@pytest.mark.parametrize(
    ("names", "pattern", "missing"),
    [
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
         "train-*-of-00002.parquet", ()),
        (["a-00001-of-00002.jsonl.zst", "a-00002-of-00002.jsonl.zst"],
         "a-*-of-00002.jsonl.zst", ()),
        (["train-00000-of-00003-6a1ea4a7d3e2.parquet", "train-00002-of-00003-b00b5cafe123.parquet"],
         "train-*-of-00003*.parquet", (1,)),
        (["x_1_of_2.csv"], "x_*_of_2.csv", (0,)),
        (["part-00000-ab12-c000.snappy.parquet", "part-00001-ab12-c000.snappy.parquet"],
         "part-*-ab12-c000.snappy.parquet", ()),
        (["0000.parquet", "0001.parquet", "0003.parquet"], "*.parquet", (2,)),
    ],
)  # fmt: skip
def test_parts_of_a_set_are_known_by_their_names(names, pattern, missing):
    [found] = shards_among([*names])
    assert (found.names, found.pattern, found.missing) == (tuple(names), pattern, missing)


@pytest.mark.parametrize(
    "names",
    [
        ["2023.jsonl", "2024.jsonl"],
        ["alpaca_1000.jsonl", "alpaca_5000.jsonl"],
        ["train_v1.jsonl", "train_v2.jsonl"],
        ["a-00000-of-00002-aaaaaa.jsonl", "a-00000-of-00002-bbbbbb.jsonl"],
        ["train-0001.jsonl", "train-9999.jsonl"],
    ],
)
def test_years_sizes_and_versions_are_no_parts(names):
    assert sorted(each.names for each in shards_among(names)) == [(name,) for name in names]


def test_a_folder_of_thousands_of_parts_takes_no_time():
    names = [f"train-{number:05}-of-05000.parquet" for number in range(5000)]
    start = time.perf_counter()
    [found] = shards_among(names)
    assert (len(found.names), found.missing) == (5000, ())
    assert time.perf_counter() - start < 5


def test_a_set_without_one_part_is_taken_and_said(tmp_path):
    for number in (0, 3):
        tiny.write_jsonl(tmp_path / f"train-0000{number}-of-00004.jsonl", GOOD)
    files, notes = chosen(tmp_path)
    assert files == ["train-00000-of-00004.jsonl", "train-00003-of-00004.jsonl"]
    assert "2 parts are missing: 1, 2" in notes


def test_a_state_of_something_else_hides_no_data(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/state.json").write_text("{}")
    tiny.write_jsonl(tmp_path / "out/data.jsonl", GOOD)
    (tmp_path / "out/data").mkdir()
    tiny.write_jsonl(tmp_path / "out/data/train.jsonl", GOOD * 2)
    assert chosen(tmp_path)[0] == ["out/data/train.jsonl"]


def test_a_saved_dataset_is_one_candidate(tmp_path):
    datasets.Dataset.from_list(GOOD).save_to_disk(tmp_path / "saved", num_shards=2)
    assert chosen(tmp_path) == (["saved"], "")


def base(folder):
    """A folder that looks like a whole model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"weights")


def adapter(folder, named):
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": named}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def accelerate_fsdp(folder):
    (folder / "out/pytorch_model_fsdp_0").mkdir(parents=True)
    (folder / "out/optimizer_0").mkdir()
    for inner in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / f"out/{inner}/__0_0.distcp").write_bytes(b"")
    return "out cannot be used: "


def torch_checkpoint(folder):
    (folder / "out").mkdir()
    (folder / "out/__0_0.distcp").write_bytes(b"")
    return "out cannot be used: "


def deepspeed(folder):
    (folder / "out/global_step10").mkdir(parents=True)
    (folder / "out/latest").write_text("global_step10")
    return "ZeRO-3"


def an_empty_adapter_on_a_trained_model(folder):
    """As of DPO after a full SFT: the base has a step of its own."""
    base(folder / "sft/checkpoint-500")
    adapter(folder / "dpo", str(folder / "sft/checkpoint-500"))
    return "dpo cannot be used: "


def a_moved_base(folder):
    base(folder / "models/checkpoint-500")
    adapter(folder / "dpo", "/home/somebody/checkpoint-500")
    return "dpo cannot be used: "


@pytest.mark.parametrize(
    "make",
    [
        accelerate_fsdp,
        torch_checkpoint,
        deepspeed,
        an_empty_adapter_on_a_trained_model,
        a_moved_base,
    ],
)
def test_a_base_is_never_taken_for_what_was_trained_on_it(make, tmp_path):
    base(tmp_path / "base")
    said = make(tmp_path)
    notes = []
    assert choose_checkpoints(tmp_path, survey(tmp_path), notes) == []
    [note] = notes
    assert said in note


def test_adapters_with_a_name_are_steps_of_their_run(tmp_path):
    """As PEFT saves them below each checkpoint: with several steps, and a reference beside them."""
    for place in ("out/checkpoint-2/sft", "out/checkpoint-10/sft", "out/sft"):
        adapter(tmp_path / place, "base")
        (tmp_path / place / "adapter_model.safetensors").write_text(place)
    adapter(tmp_path / "out/checkpoint-10/ref", "base")
    (tmp_path / "out/checkpoint-10/ref/adapter_model.safetensors").write_text("ref")
    os.utime(tmp_path / "out/checkpoint-10/ref/adapter_model.safetensors", (1, 1))
    notes = []
    found = choose_checkpoints(tmp_path, survey(tmp_path), notes)
    assert [(each.path, each.about) for each in found] == [
        ("out/checkpoint-2/sft", "adapter, step 2"),
        ("out/checkpoint-10/sft", "adapter, step 10"),
        ("out/sft", "adapter"),
    ]
    assert "to choose others: out/checkpoint-10/ref" in notes[0]


def test_many_that_cannot_be_used_take_few_lines(tmp_path):
    for step in range(9):
        adapter(tmp_path / f"out/checkpoint-{step}", "base")
    notes = []
    assert choose_checkpoints(tmp_path, survey(tmp_path), notes) == []
    assert len(notes) == 4
    assert notes[3].startswith("nor can out/checkpoint-3, ")
