"""Rows as people have them: what the text is, what of it is learnt, and what is refused by name.

The rules are those that the trainers' documentation gives: LLaMA-Factory's data/README.md (alpaca
with `system` and `history`, sharegpt with `system`, `tools`, function_call and observation),
axolotl's dataset formats (`train` and `training` of a turn, `segments`, tokenised rows), OpenAI's
and Mistral's `weight`, TRL's dataset formats, ms-swift's `loss`.
"""

import json

import pytest

from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import IGNORED
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.errors import InputError
from tests.support import chats, tiny

USER = "<|im_start|>user\nHow do I reset my password?<|im_end|>\n"
ANSWER = "<|im_start|>assistant\nOpen settings, choose security.<|im_end|>\n"
AGAIN = "<|im_start|>user\nAnd my e-mail address?<|im_end|>\n"
ANSWER_AGAIN = "<|im_start|>assistant\nIt is in the same place.<|im_end|>\n"
SYSTEM = "<|im_start|>system\nAnswer shortly.<|im_end|>\n"
WHOLE = USER + ANSWER + AGAIN + ANSWER_AGAIN
TWO = [chats.ASKED, chats.SAID, chats.ASKED_AGAIN, chats.SAID_AGAIN]
LEARNT, LEARNT_AGAIN = (
    "Open settings, choose security.<|im_end|>",
    "It is in the same place.<|im_end|>",
)
SHARED = [
    {"from": "human", "value": chats.ASKED["content"]},
    {"from": "gpt", "value": chats.SAID["content"]},
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = '\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>'


def load(tmp_path, rows, chat=chats.CHATML, **settings):
    tiny.write_jsonl(tmp_path / "data.jsonl", rows)
    chosen = DataSettings(files=("data.jsonl",), **{"template": "chat", **settings})
    return load_dataset(tmp_path, chosen, Encoder(chats.tokenizer(chat), chosen))


def texts(tmp_path, row, chat=chats.CHATML, **settings):
    """The whole text of a row, and what of it is learnt, passage by passage."""
    example = load(tmp_path, [row], chat, **settings).examples[0]
    tokenizer = chats.tokenizer()
    passages, open_ = [], []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label == IGNORED and open_:
            passages.append(tokenizer.decode(open_))
        open_ = [*open_, int(token)] if label != IGNORED else []
    passages += [tokenizer.decode(open_)] if open_ else []
    return tokenizer.decode(example.input_ids.tolist()), passages


def weighted(**flag):
    return {"messages": [TWO[0], {**TWO[1], **flag}, *TWO[2:]]}


@pytest.mark.parametrize(
    ("row", "text", "learnt"),
    [
        ({"messages": TWO[:2]}, USER + ANSWER, [LEARNT]),
        ({"messages": TWO}, WHOLE, [LEARNT, LEARNT_AGAIN]),
        (
            {
                "instruction": chats.ASKED_AGAIN["content"],
                "input": "",
                "output": chats.SAID_AGAIN["content"],
                "system": "Answer shortly.",
                "history": [[chats.ASKED["content"], chats.SAID["content"]]],
            },
            SYSTEM + USER + ANSWER + AGAIN + ANSWER_AGAIN,
            [LEARNT, LEARNT_AGAIN],
        ),
        ({"conversations": SHARED, "system": "Answer shortly."}, SYSTEM + USER + ANSWER, [LEARNT]),
        ({"conversations": TWO[:2]}, USER + ANSWER, [LEARNT]),
        ({"messages": SHARED}, USER + ANSWER, [LEARNT]),
        ({"prompt": [chats.ASKED], "completion": [chats.SAID]}, USER + ANSWER, [LEARNT + "\n"]),
        *[
            (weighted(**flag), WHOLE, [LEARNT_AGAIN])
            for flag in ({"weight": 0}, {"train": False}, {"training": False}, {"loss": False})
        ],
        (weighted(weight=1, train=None), WHOLE, [LEARNT, LEARNT_AGAIN]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "How do I "},
             {"type": "text", "text": "reset my password?"}]}, chats.SAID]},
            USER + ANSWER,
            [LEARNT],
        ),
    ],
)  # fmt: skip
def test_conversations_in_chatml(tmp_path, row, text, learnt):
    assert texts(tmp_path, row) == (text, learnt)
    if "completion" not in row:
        assert texts(tmp_path, row, chats.MARKED) == (text, learnt)


def test_what_is_learnt_is_a_setting(tmp_path):
    row = {"messages": TWO}
    for template in (chats.CHATML, chats.MARKED):
        assert texts(tmp_path, row, template, learn="last") == (WHOLE, [LEARNT_AGAIN])
        assert texts(tmp_path, row, template, learn="all") == (WHOLE, [WHOLE])
    pair = {"prompt": "Where? ", "response": "In the park."}
    assert texts(tmp_path, pair, template="plain", learn="all")[1] == [
        "Where? In the park.<|im_end|>"
    ]
    assert texts(tmp_path, pair, template="plain")[1][0].strip() == "In the park.<|im_end|>"


def test_tool_calls_of_openai_and_of_sharegpt(tmp_path):
    turns = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"degrees": 4}'},
        {"role": "assistant", "content": "Four degrees."},
    ]
    tool = {"type": "function", "function": chats.WEATHER}
    text, learnt = texts(tmp_path, {"messages": turns, "tools": [tool]}, chats.THINKING)
    assert text.startswith("<|im_start|>system\nTools: " + json.dumps(tool)[:40])
    assert len(learnt) == 2
    assert learnt[0].endswith(CALLED)
    assert learnt[1].endswith("Four degrees.<|im_end|>")
    shared = {
        "conversations": [
            {"from": "human", "value": "Weather in Oslo?"},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": '{"degrees": 4}'},
            {"from": "gpt", "value": "Four degrees."},
        ],
        "tools": json.dumps([chats.WEATHER]),
    }
    assert texts(tmp_path, shared, chats.THINKING) == (text, learnt)


def thought(text, answer):
    return {"role": "assistant", "content": f"<think>\n{text}\n</think>\n\n{answer}"}


def test_thoughts_of_two_turns(tmp_path):
    """The whole is rendered once; the first answer is learnt as it stands there."""
    turns = [chats.ASKED, thought("The menu.", "Open settings."), chats.ASKED_AGAIN,
             thought("The same menu.", "In the same place.")]  # fmt: skip
    text, learnt = texts(tmp_path, {"messages": turns}, chats.THINKING)
    assert "The menu." not in text
    assert learnt == [
        "Open settings.<|im_end|>",
        "<think>\nThe same menu.\n</think>\n\nIn the same place.<|im_end|>",
    ]
    answers = {n: turns[n]["content"].split("\n\n")[-1] for n in (1, 3)}
    for number, answer in answers.items():  # of a turn that never had a thought
        turns[number] = {"role": "assistant", "content": answer}
    assert texts(tmp_path, {"messages": turns}, chats.THINKING)[1] == [
        "Open settings.<|im_end|>",
        "<think>\n\n</think>\n\nIn the same place.<|im_end|>",
    ]


def test_reasoning_content_is_part_of_the_answer(tmp_path):
    turn = {**chats.SAID, "reasoning_content": "They want the menu."}
    text, learnt = texts(tmp_path, {"messages": [chats.ASKED, turn]}, chats.THINKING)
    assert learnt == ["<think>\nThey want the menu.\n</think>\n\n" + LEARNT]
    assert text.endswith(learnt[0] + "\n")


def test_a_question_in_one_s_own_words_stands_where_an_answer_of_training_stands(tmp_path):
    """With the empty thought that the template writes before an answer without one."""
    example = load(tmp_path, [{"messages": TWO[:2]}], chats.THINKING).examples[0]
    encoder = Encoder(chats.tokenizer(chats.THINKING), DataSettings(template="chat"))
    query = encoder.query(chats.ASKED["content"], chats.SAID["content"])
    size = len(query.input_ids)
    assert query.input_ids.tolist() == example.input_ids.tolist()[:size]
    assert encoder.query_of_row(example.row).input_ids.tolist() == query.input_ids.tolist()
    decoded = chats.tokenizer().decode(query.input_ids[query.labels != IGNORED].tolist())
    assert decoded == chats.SAID["content"]
    # An answer that brings its own thought stands where the model begins to think.
    own = encoder.query(chats.ASKED["content"], "<think>\nHm.\n</think>\n\nOpen.")
    assert chats.tokenizer().decode(own.input_ids.tolist()).count("<think>") == 1


def test_rows_of_tokens_are_taken_as_they_are(tmp_path):
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9], "attention_mask": [1] * 5}
    example = load(tmp_path, [row], max_tokens=3).examples[0]
    assert example.input_ids.tolist() == row["input_ids"]
    assert example.labels.tolist() == row["labels"]
    padded = {"input_ids": [*row["input_ids"], 0, 0], "labels": [*row["labels"], -100, -100],
              "attention_mask": [1, 1, 1, 1, 1, 0, 0]}  # fmt: skip
    assert load(tmp_path, [padded]).examples[0].digest == example.digest
    masked = {"input_ids": row["input_ids"], "completion_mask": [0, 0, 1, 1, 1]}
    assert load(tmp_path, [masked]).examples[0].digest == example.digest
    pack = {"input_ids": row["input_ids"] * 2, "labels": row["labels"] * 2,
            "position_ids": [0, 1, 2, 3, 4] * 2}  # fmt: skip
    numbered = {**pack, "attention_mask": [1] * 5 + [2] * 5}
    del numbered["position_ids"]
    ended = {name: [*values, 0] for name, values in pack.items()} | {
        "attention_mask": [1] * 10 + [0]
    }
    ended["labels"][-1] = IGNORED
    for made in (pack, numbered, ended):
        found = load(tmp_path, [made], learn="all").examples
        assert [each.digest for each in found] == [example.digest] * 2
        assert [each.row.id for each in found] == ["data.jsonl:1/1", "data.jsonl:1/2"]


def test_prompt_and_response_may_be_tokenised_apart(tmp_path):
    """LLaMA-Factory's rule: tokens of the prompt, then tokens of the response, then EOS."""
    tokenizer = chats.tokenizer()
    row = {"prompt": "The ca", "response": "t walks."}  # one token on the border, as one text
    alone = [tokenizer(text).input_ids for text in (row["prompt"], row["response"])]
    assert tokenizer("The cat walks.").input_ids != [*alone[0], *alone[1]]
    example = load(tmp_path, [row], template="plain", join="tokens").examples[0]
    assert example.input_ids.tolist() == [*alone[0], *alone[1], tokenizer.eos_token_id]
    assert example.labels.tolist()[: len(alone[0])] == [IGNORED] * len(alone[0])
    assert example.learnt == len(alone[1]) + 1
    whole = load(tmp_path, [row], template="plain", join="tokens", learn="all").examples[0]
    assert whole.input_ids.tolist() == example.input_ids.tolist()
    chat = {"messages": TWO}
    assert texts(tmp_path, chat, join="tokens") == texts(tmp_path, chat)
    assert texts(tmp_path, chat, join="tokens", learn="all") == (WHOLE, [WHOLE])


def test_segments_are_joined_and_tokenised_one_by_one(tmp_path):
    row = {"segments": [{"label": False, "text": "Where? "}, {"label": True, "text": "Here."}]}
    text, learnt = texts(tmp_path, row, template="plain")
    assert (text, learnt) == ("Where? Here.", ["Here."])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "'chosen', 'rejected': a row of pref"),
        ({"chosen": TWO[:2], "rejected": TWO[:2]}, "'chosen', 'rejected': a row of preference"),
        (
            {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1]},
            "preference training",
        ),
        ({"messages": TWO, "rejected_response": "No."}, "'rejected_response': a row of preference"),
        ({"messages": TWO, "label": False}, "'label': a row of preference training"),
        ({"prompt": "a", "completion": "b", "label": True}, "'label': a row of preference"),
        ({"messages": TWO, "kto_tag": True}, "'kto_tag': a row of preference training"),
        ({"messages": TWO, "images": ["a.png"]}, "'images': some trainers read it"),
        ({"messages": TWO, "functions": [{"name": "f"}]}, "'functions': some trainers read it"),
        ({"text": "a", "system": "b"}, "'system': some trainers read it"),
        ({"messages": TWO, "history": [["a", "b"]]}, "'history': some trainers read it"),
        (weighted(weight=0.5), "messages[1]: weight 0.5"),
        (
            weighted(train_detail=[{"begin_offset": 0}]),
            "messages[1]: rin cannot follow 'train_detail'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TWO[1]]},
            "has a part of type 'image_url': rin explains text only",
        ),
        ({"conversations": [SHARED[0], {"from": "function_call", "value": "x"}]}, "must be JSON"),
        ({"messages": TWO, "tools": "{"}, "field 'tools' is not JSON"),
        (
            {"messages": [{"role": "system", "content": "A"}, *TWO], "system": "B"},
            "the conversation's own system turn differ",
        ),
        ({"messages": TWO, "text": "a"}, "could be messages or text: set [data] format"),
        ({"instruction": "a", "output": "b", "text": "c"}, "could be alpaca or text"),
        ({"input_ids": [1, 2], "labels": [2, 3]}, "labels must not be shifted"),
        ({"input_ids": [1, 2], "labels": [1]}, "'labels' has 1 entries for 2 tokens"),
        ({"input_ids": [1, 99999]}, "are not of this tokenizer"),
        ({"input_ids": [1, "2"]}, "must be a list of whole numbers"),
        ({"input_ids": [1, 2], "seq_lengths": [1]}, "does not add up to 2 tokens"),
        ({"segments": [{"text": "a"}]}, "segments[0] must have"),
    ],
)
def test_what_rin_cannot_follow_is_refused_by_name(tmp_path, row, reason):
    with pytest.raises(InputError) as caught:
        load(tmp_path, [row])
    assert "data.jsonl:1: " in caught.value.message
    assert reason in caught.value.message


def test_a_setting_accepts_what_training_did_not_read(tmp_path):
    row = {"messages": TWO[:2], "images": ["a.png"], "rejected_response": "No.", "label": False}
    names = ("images", "rejected_response", "label")
    assert texts(tmp_path, row, ignore_fields=names) == (USER + ANSWER, [LEARNT])
    flagged = weighted(weight=0)
    assert texts(tmp_path, flagged, ignore_fields=("weight",))[1] == [LEARNT, LEARNT_AGAIN]
    with pytest.raises(InputError, match="says that it is not learnt"):
        load(tmp_path, [flagged], learn="all")


def test_empty_fields_say_nothing(tmp_path):
    row = {"messages": TWO[:2], "images": None, "history": [], "system": "", "tools": "",
           "topic": "passwords", "label": "passwords", "chosen": None}  # fmt: skip
    assert texts(tmp_path, row) == (USER + ANSWER, [LEARNT])


def test_history_needs_a_template_for_conversations(tmp_path):
    row = {"instruction": "a", "output": "b", "history": [["c", "d"]]}
    with pytest.raises(InputError, match=r"'history' needs \[data\] template"):
        load(tmp_path, [row], template="alpaca")
    assert len(texts(tmp_path, row)[1]) == 2


def test_a_template_of_one_s_own_names_any_field(tmp_path):
    row = {"prompt": "Where?", "response": "Here.", "context": "A park."}
    text, _ = texts(tmp_path, row, template="{context} {prompt} ")
    assert text == "A park. Where? Here.<|im_end|>"
    with pytest.raises(InputError, match="cannot be filled in: no field 'place'"):
        load(tmp_path, [row], template="{place} {prompt} ")


def test_a_question_that_lacks_a_field_is_told_how_to_bring_it(tmp_path):
    settings = DataSettings(template="{context} {prompt} ")
    encoder = Encoder(chats.tokenizer(), settings)
    with pytest.raises(InputError, match="no field 'context'") as caught:
        encoder.query("Where?", "Here.")
    assert "--queries FILE" in caught.value.hint
    row = {"prompt": "Where?", "response": "Here.", "context": "A park."}
    found = load(tmp_path, [row], template=settings.template).examples[0]
    assert encoder.query_of_row(found.row).learnt


def test_a_chat_template_in_a_file_takes_the_place_of_the_tokenizer_s(tmp_path):
    found = texts(tmp_path, {"messages": TWO[:2]}, template=chats.MARKED)
    assert found == (USER + ANSWER, [LEARNT])


def test_unlearnt_rows_are_left_out_as_in_training(tmp_path):
    silent = {"messages": [TWO[0], {**TWO[1], "weight": 0}]}
    dataset = load(tmp_path, [{"messages": TWO}, silent])
    assert len(dataset.examples) == 1
    assert dataset.bad[0].dropped
