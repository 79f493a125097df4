"""Tokens and labels are those of TRL's own batches, to the token."""

import json
from itertools import pairwise

import pytest
import torch

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.data.rows import DataSettings
from tests.support import chats, tiny

MESSAGES = [
    {"messages": [chats.ASKED, chats.SAID]},
    {"messages": [chats.ASKED, chats.SAID, chats.ASKED_AGAIN, chats.SAID_AGAIN]},
    {"messages": [{"role": "system", "content": "Be brief."}, chats.ASKED, chats.SAID]},
]
TEXTS = [{"text": row["response"]} for row in tiny.rows(5)]
PROMPTS = [
    {"prompt": f"{row['prompt']} ", "completion": row["response"]} for row in tiny.rows(6)
] + [{"prompt": "The ca", "completion": "t walks."}]  # one token on the border
CHATS = [
    {"prompt": [chats.ASKED], "completion": [chats.SAID]},
    {"prompt": [chats.ASKED, chats.SAID, chats.ASKED_AGAIN], "completion": [chats.SAID_AGAIN]},
]
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
TOOLS = [
    {
        "messages": [
            chats.ASKED,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "weather", "arguments": {"city": "O"}},
                    }
                ],
            },
            {"role": "tool", "content": "4"},
            chats.SAID,
        ],
        "tools": json.dumps([{"type": "function", "function": chats.WEATHER}]),
    }
]
THOUGHTS = [
    {
        "messages": [
            chats.ASKED,
            {"role": "assistant", "content": "<think>\nThe menu.\n</think>\n\nOpen settings."},
            chats.ASKED_AGAIN,
            {"role": "assistant", "content": "<think>\nSame.\n</think>\n\nIn the same place."},
        ]
    }
]
SHARED = [
    {
        "conversations": [
            {"from": "user", "value": "Where is the cat?"},
            {"from": "assistant", "value": "In the park."},
        ]
    }
]
CHAT = {"template": "chat", "max_tokens": 1024}
ALL = {**CHAT, "learn": "all"}

CASES = {
    "messages, the default": (MESSAGES, chats.CHATML, {}, ALL),
    "assistant only": (MESSAGES, chats.MARKED, {"assistant_only_loss": True}, CHAT),
    "conversations": (SHARED, chats.CHATML, {}, ALL),
    "text": (TEXTS, chats.CHATML, {}, {}),
    "prompt and completion": (PROMPTS, chats.CHATML, {}, {}),
    "... all of it": (PROMPTS, chats.CHATML, {"completion_only_loss": False}, {"learn": "all"}),
    "prompt and completion, messages": (CHATS, chats.CHATML, {}, CHAT),
    "... that think": (CHATS, chats.THINKING, {}, CHAT),
    "... all of them": (CHATS, chats.CHATML, {"completion_only_loss": False}, ALL),
    "tools": (TOOLS, chats.THINKING, {}, ALL),
    "thoughts": (THOUGHTS, chats.THINKING, {}, ALL),
    "options": (
        [{**MESSAGES[0], "chat_template_kwargs": {"enable_thinking": False}}],
        chats.THINKING,
        {},
        ALL,
    ),
    "cut": (MESSAGES, chats.CHATML, {"max_length": 30}, {**ALL, "max_tokens": 30}),
    "cut to nothing": (PROMPTS, chats.CHATML, {"max_length": 14}, {"max_tokens": 14}),
}


def batches(tmp_path, rows, template, **settings):
    """What TRL's collator hands to the model, one row a batch."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = chats.tokenizer(template)
    model = tiny.llama(len(tokenizer))
    config = SFTConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=1,
        report_to=[],
        bf16=False,
        use_cpu=True,
        seed=0,
        **{"max_length": 1024, **settings},
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return trainer, [trainer.data_collator([row]) for row in trainer.train_dataset]


def examples(tmp_path, rows, template_text, **settings):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = DataSettings(files=("data.jsonl",), **settings)
    return load_dataset(tmp_path, chosen, Encoder(chats.tokenizer(template_text), chosen))


def same(example, ids, labels):
    ours, theirs = example.labels.tolist(), labels.tolist()
    # The first token of a sequence has no loss, whatever its label says.
    return example.input_ids.tolist() == ids.tolist() and ours[1:] == theirs[1:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_tokens_and_labels_are_those_of_the_trainer_s_own_batch(tmp_path, name):
    rows, template, theirs, ours = CASES[name]
    _, made = batches(tmp_path, rows, template, **theirs)
    found = examples(tmp_path, rows, template, **ours)
    assert len(found.examples) == len(made) > 0
    for example, batch in zip(found.examples, made, strict=True):
        assert same(example, batch["input_ids"][0], batch["labels"][0])
        assert example.learnt
    dropped = [bad.dropped for bad in found.bad]
    assert len(rows) - len(made) == len(dropped)
    assert all(dropped)


@pytest.mark.filterwarnings("ignore")
def test_packing_changes_no_row(tmp_path):
    _, made = batches(tmp_path, PROMPTS, chats.CHATML, packing=True, max_length=64)
    found = examples(tmp_path, PROMPTS, chats.CHATML, max_tokens=64)
    ids = torch.cat([batch["input_ids"][0] for batch in made])
    labels = torch.cat([batch["labels"][0] for batch in made])
    places = torch.cat([batch["position_ids"][0] for batch in made])
    starts = [*(places == 0).nonzero().flatten().tolist(), len(ids)]
    packed = {
        (tuple(ids[a:b].tolist()), tuple(labels[a + 1 : b].tolist())) for a, b in pairwise(starts)
    }
    assert packed == {
        (tuple(each.input_ids.tolist()), tuple(each.labels.tolist()[1:])) for each in found.examples
    }


@pytest.mark.filterwarnings("ignore")
def test_a_pack_that_was_saved_comes_apart(tmp_path):
    trainer, _ = batches(tmp_path, PROMPTS, chats.CHATML, packing=True, max_length=64)
    plain = examples(tmp_path, PROMPTS, chats.CHATML, max_tokens=64)
    found = examples(tmp_path, list(trainer.train_dataset), chats.CHATML)
    assert {each.digest for each in found.examples} == {each.digest for each in plain.examples}
    assert found.examples[0].row.id == "data.jsonl:1/1"
    assert "walk" in found.examples[0].row.response
