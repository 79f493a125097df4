"""Rows as people have them, from `rin init --yes` to `rin cache`, with no other argument."""

import json
import tomllib

import pytest

from tests.support import chats, tiny
from tests.support.forked import rin

TWO = [chats.ASKED, chats.SAID, chats.ASKED_AGAIN, chats.SAID_AGAIN]
SHARED = [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "Ja."}]
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
CALLS = [{"type": "function", "function": CALL}]
ALPACA = {"instruction": "And my address?", "input": "", "output": "In the same place."}
THOUGHT = "<think>\nThe menu.\n</think>\n\nOpen settings."

ROWS = {
    "alpaca_history_system": {**ALPACA, "system": "Be short.", "history": [["Hm?", "Ja."]]},
    "messages": {"messages": TWO[:2]},
    "messages_tool_calls": {
        "messages": [
            chats.ASKED,
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "content": "4"},
            chats.SAID,
        ],
        "tools": [{"type": "function", "function": chats.WEATHER}],
    },
    "messages_weight": {"messages": [TWO[0], {**TWO[1], "weight": 0}, *TWO[2:]]},
    "text_parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hm?"}]}, TWO[1]]
    },
    "prompt_completion": {"prompt": "How? ", "completion": "So."},
    "prompt_completion_messages": {"prompt": TWO[:1], "completion": TWO[1:2]},
    "sharegpt_system_column": {"conversations": SHARED, "system": "Be short."},
    "sharegpt_function_call": {
        "conversations": [
            SHARED[0],
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "4"},
            SHARED[1],
        ],
        "tools": json.dumps([chats.WEATHER]),
    },
    "thinking_two_turns": {
        "messages": [
            TWO[0],
            {"role": "assistant", "content": THOUGHT},
            TWO[2],
            {"role": "assistant", "content": THOUGHT},
        ]
    },
    "reasoning_content": {"messages": [TWO[0], {**TWO[1], "reasoning_content": "The menu."}]},
    "chat_template_kwargs": {
        "messages": TWO[:2],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "assistant_first": {"messages": TWO[1:]},
    "tokens": {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    "segments": {"segments": [{"label": False, "text": "Hm? "}, {"label": True, "text": "Ja."}]},
    "two shapes": {**ALPACA, "text": "Below is an instruction."},
}
REFUSED = {
    "preference": {"prompt": "How?", "chosen": "So.", "rejected": "No."},
    "preference_messages": {"chosen": TWO[:2], "rejected": TWO[:2]},
    "preference_sharegpt": {"conversations": SHARED[:1], "chosen": {}, "rejected": SHARED[1]},
    "rejected_response": {"messages": TWO, "rejected_response": "No."},
    "kto": {"messages": TWO, "label": False},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = chats.tokenizer(chats.THINKING)
    tiny.llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def started(folder, base, row):
    (folder / "model").symlink_to(base)
    tiny.write_jsonl(folder / "data/train.jsonl", [row])
    return rin(folder, "init", "--yes", "--checkpoint", "model", "--data", "data/train.jsonl")


@pytest.mark.parametrize("shape", ROWS)
def test_it_is_cached_as_it_is(shape, base, tmp_path):
    done = started(tmp_path, base, ROWS[shape])
    assert done.returncode == 0, done.stderr
    assert "row data/train.jsonl:1: " in done.stderr
    assert "⟦" in done.stderr  # what is learnt is marked
    cached = rin(tmp_path, "cache")
    assert cached.returncode == 0, cached.stderr
    assert "1 rows computed" in cached.stderr
    shown = json.loads(rin(tmp_path, "show", "data/train.jsonl:1", "--json").stdout)
    assert 0 < shown["learnt"] <= shown["tokens"]


@pytest.mark.parametrize("shape", REFUSED)
def test_preference_rows_are_a_clear_no(shape, base, tmp_path):
    done = started(tmp_path, base, REFUSED[shape])
    assert done.returncode == 4
    assert "train.jsonl:1: " in done.stderr
    assert "a row of preference training" in done.stderr
    assert not (tmp_path / "rin.toml").exists()


def test_what_nothing_says_is_said(base, tmp_path):
    done = started(tmp_path, base, ROWS["messages"])
    assert "learn       assistant  (nothing here says so: SFTTrainer" in done.stderr


def test_what_is_learnt_follows_what_the_trainer_left(base, tmp_path):
    """One argument less to know: SFTTrainer learns every token of conversations."""
    card = "base_model: x\ndatasets:\n- path: y\n  type: chat_template\ntrain_on_inputs: true\n"
    (tmp_path / "train.yaml").write_text(card + "sequence_len: 99\n")
    done = started(tmp_path, base, ROWS["messages"])
    written = tomllib.loads((tmp_path / "rin.toml").read_text())["data"]
    assert (written["learn"], written["max_tokens"], written["cut"]) == ("all", 99, "drop")
    assert "trained by  axolotl  (train.yaml)" in done.stderr
    assert "⟦<|im_start|>user" in done.stderr


def test_the_checkpoint_is_asked(base, tmp_path):
    started(tmp_path, base, ROWS["messages"])
    done = rin(tmp_path, "doctor", "--data", "--json")
    checks = json.loads(done.stdout)["checks"]
    assert checks[0]["finding"].startswith("mean nats a response token over 1 rows: 'chat' ")
    assert done.returncode == 0
