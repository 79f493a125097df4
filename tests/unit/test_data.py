import json

import numpy as np
import pytest

from rapidin_cli.data.encoding import Encoder, labels_of_spans
from rapidin_cli.data.examples import IGNORED, padded
from rapidin_cli.data.files import read_values
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.data.rendering import ALPACA
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.errors import InputError
from rapidin_cli.influence.tokens import token_texts
from tests.support import tiny
from tests.support.examples import one_token_queries

PAIR = {"prompt": "Where is the cat?", "response": "In the park."}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is the cat?"},
        {"role": "assistant", "content": "In the park."},
        {"role": "user", "content": "And the dog?"},
        {"role": "assistant", "content": "In the house."},
    ]
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Where is the cat?"},
        {"from": "gpt", "value": "In the park."},
    ]
}


def load(tmp_path, tokenizer, rows, *, skip_bad=False, raw=None, **settings):
    path = tmp_path / "data.jsonl"
    path.write_text(raw if raw is not None else "".join(json.dumps(r) + "\n" for r in rows))
    chosen = DataSettings(files=("data.jsonl",), **{"template": "chat", **settings})
    return load_dataset(tmp_path, chosen, Encoder(tokenizer, chosen), skip_bad=skip_bad)


def learnt(tokenizer, example):
    return tokenizer.decode(example.input_ids[example.labels != IGNORED].tolist())


def whole(tokenizer, example):
    return tokenizer.decode(example.input_ids.tolist())


def test_a_pair_through_the_chat_template(tmp_path, tokenizer):
    example = load(tmp_path, tokenizer, [PAIR]).examples[0]
    assert whole(tokenizer, example) == (
        "<|user|>\nWhere is the cat?<|end|>\n<|assistant|>\nIn the park.<|end|>\n"
    )
    assert learnt(tokenizer, example) == "In the park.<|end|>"


def test_every_assistant_turn_of_a_chat_is_learnt(tmp_path, tokenizer):
    example = load(tmp_path, tokenizer, [CHAT]).examples[0]
    assert learnt(tokenizer, example) == "In the park.<|end|>In the house.<|end|>"
    assert example.row.response == "In the house."


def test_sharegpt_is_the_same_chat(tmp_path, tokenizer):
    pair = load(tmp_path, tokenizer, [PAIR]).examples[0]
    shared = load(tmp_path, tokenizer, [SHAREGPT]).examples[0]
    assert shared.digest == pair.digest


def test_alpaca_and_its_template(tmp_path, tokenizer):
    row = {"instruction": "Name a cat", "input": "in the park", "output": "Fox"}
    example = load(tmp_path, tokenizer, [row], template="alpaca").examples[0]
    assert "### Input:\nin the park\n\n### Response:\nFox<|end|>" in whole(tokenizer, example)
    assert learnt(tokenizer, example) == "Fox<|end|>"
    assert "{instruction}" in ALPACA


def test_plain_text_is_learnt_whole(tmp_path, tokenizer):
    example = load(tmp_path, tokenizer, [{"text": "The cat walks."}], template="plain").examples[0]
    assert learnt(tokenizer, example) == "The cat walks.<|end|>"


def test_names_of_fields_and_own_templates(tmp_path, tokenizer):
    example = load(
        tmp_path,
        tokenizer,
        [{"q": "Where?", "a": "Here."}],
        prompt_field="q",
        response_field="a",
        template="Q: {prompt}\nA: ",
        append_eos=False,
    ).examples[0]
    assert whole(tokenizer, example) == "Q: Where?\nA: Here."
    assert learnt(tokenizer, example) == "Here."


def test_a_json_list_is_read_with_its_lines(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[\n  {"text": "a"},\n\n  {"text":\n "b"}\n]')
    assert list(read_values(path, "list.json")) == [(2, {"text": "a"}), (4, {"text": "b"})]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"prompt": "a"\n', "data.jsonl:1: broken JSON at column 15"),
        (json.dumps(PAIR) + "\n[1]\n", "data.jsonl:2: a row must be a JSON object"),
        (json.dumps(PAIR) + '\n{"prompt": "x"}\n', "data.jsonl:2: field 'response' is missing"),
        ('{"prompt": "x", "response": " "}\n', "data.jsonl:1: field 'response' is empty"),
        ('{"prompt": 3, "response": "x"}\n', "data.jsonl:1: field 'prompt' must be text"),
        ('{"prompt": "x", "response": "\\ud800"}\n', "half a surrogate pair"),
        ('{"colour": "x"}\n', "data.jsonl:1: unknown shape"),
        ('{"messages": []}\n', "must be a non-empty list"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "no assistant turn"),
        ('{"conversations": [{"from": "alien", "value": "x"}]}\n', "no valid 'from'"),
        ("", "no usable row"),
        ('[{"text": "a"},', "broken JSON list"),
    ],
)
def test_bad_rows_stop_with_file_line_and_reason(tmp_path, tokenizer, raw, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")) as caught:
        load(tmp_path, tokenizer, [], raw=raw)
    assert caught.value.hint


def test_a_row_that_is_cut_to_nothing_is_left_out_as_in_training(tmp_path, tokenizer):
    long = {"prompt": PAIR["prompt"] * 9, "response": "In the park."}
    dataset = load(tmp_path, tokenizer, [PAIR, long, PAIR], max_tokens=40)
    assert [example.row.line for example in dataset.examples] == [1, 3]
    assert str(dataset.bad[0]).startswith("data.jsonl:2: no labelled token is left after cutting")
    with pytest.raises(InputError, match="no usable row"):
        load(tmp_path, tokenizer, [PAIR], max_tokens=5)


def test_three_ways_of_cutting(tmp_path, tokenizer):
    rows = [PAIR, {"prompt": "Where is the dog number 12?", "response": "In the house."}]
    full, longer = load(tmp_path, tokenizer, rows).examples
    limit = len(full.input_ids)
    right = load(tmp_path, tokenizer, rows, max_tokens=limit).examples[1]
    left = load(tmp_path, tokenizer, rows, max_tokens=limit, cut="left").examples[1]
    assert right.input_ids.tolist() == longer.input_ids.tolist()[:limit]
    assert left.input_ids.tolist() == longer.input_ids.tolist()[-limit:]
    assert left.labels.tolist() == longer.labels.tolist()[-limit:]
    assert right.truncated
    assert left.truncated
    dropped = load(tmp_path, tokenizer, rows, max_tokens=limit, cut="drop")
    assert [each.row.line for each in dropped.examples] == [1]
    assert "more than max_tokens" in dropped.bad[0].reason


def test_a_repeated_id_is_no_mistake_of_the_row_and_its_place_becomes_its_name(tmp_path, tokenizer):
    rows = [{**row, "id": name} for row, name in zip(tiny.rows(3), ("a", 1, "1"), strict=True)]
    found = load(tmp_path, tokenizer, rows).examples
    assert [example.row.id for example in found] == ["a", "1", "data.jsonl:3"]


def test_cutting_is_counted(tmp_path, tokenizer):
    full = load(tmp_path, tokenizer, [PAIR])
    cut = load(tmp_path, tokenizer, [PAIR], max_tokens=len(full.examples[0].input_ids) - 2)
    assert (full.truncated, cut.truncated) == (0, 1)
    assert cut.examples[0].digest != full.examples[0].digest


def test_skipped_rows_are_listed(tmp_path, tokenizer):
    raw = "nonsense\n" + json.dumps(PAIR) + '\n{"prompt": "x", "response": ""}\n'
    dataset = load(tmp_path, tokenizer, [], raw=raw, skip_bad=True)
    assert [bad.line for bad in dataset.bad] == [1, 3]
    assert len(dataset.examples) == 1


def test_order_and_repeats_do_not_change_the_data_digest(tmp_path, tokenizer):
    rows = tiny.rows(5)
    first = load(tmp_path, tokenizer, rows)
    second = load(tmp_path, tokenizer, [*rows[::-1], rows[0]])
    assert first.digest == second.digest
    assert len(second.by_digest) == 5
    assert load(tmp_path, tokenizer, rows[:4]).digest != first.digest


def test_queries_have_no_eos_and_the_same_prompt_as_rows(tmp_path, tokenizer):
    settings = DataSettings(template="chat")
    encoder = Encoder(tokenizer, settings)
    query = encoder.query("Where is the cat?", "In the park.")
    example = load(tmp_path, tokenizer, [PAIR]).examples[0]
    assert learnt(tokenizer, query) == "In the park."
    assert whole(tokenizer, example).startswith(whole(tokenizer, query))
    of_row = encoder.query_of_row(example.row)
    assert of_row.input_ids.tolist() == query.input_ids.tolist()
    assert encoder.prompt_ids("Where is the cat?") == query.input_ids.tolist()[: -query.learnt]


def test_token_queries_are_cut_after_their_token(tokenizer):
    query = Encoder(tokenizer, DataSettings(template="chat")).query("Where?", "In the park.")
    parts = one_token_queries(query)
    assert len(parts) == query.learnt
    for part in parts:
        assert part.learnt == 1
        assert part.labels[-1] == query.input_ids[len(part.labels) - 1]


def test_padding(tmp_path, tokenizer):
    examples = load(tmp_path, tokenizer, tiny.rows(3)).examples
    ids, labels = padded(examples)
    for n, example in enumerate(examples):
        size = len(example.input_ids)
        assert (ids[n, :size] == example.input_ids).all()
        assert (labels[n, size:] == IGNORED).all()
    assert ids.dtype == np.int64


def test_a_template_that_rewrites_history_is_refused(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if not loop.last %}old{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}"
    )
    with pytest.raises(InputError, match="rewrites earlier turns"):
        load(tmp_path, tokenizer, [CHAT])


def test_files_of_the_same_name_do_not_clash(tmp_path, tokenizer):
    for folder in ("a", "b"):
        tiny.write_jsonl(tmp_path / folder / "d.jsonl", tiny.rows(2))
    settings = DataSettings(files=("a/d.jsonl", "b/d.jsonl"), template="chat")
    dataset = load_dataset(tmp_path, settings, Encoder(tokenizer, settings))
    assert [e.row.id for e in dataset.examples] == [
        "a/d.jsonl:1",
        "a/d.jsonl:2",
        "b/d.jsonl:1",
        "b/d.jsonl:2",
    ]


def test_a_template_with_today_s_date_needs_the_day_of_training(tmp_path):
    dated = tiny.tokenizer()
    dated.chat_template = "{{ strftime_now('%d %b %Y') }} " + tiny.CHAT_TEMPLATE
    with pytest.raises(InputError, match="today's date"):
        load(tmp_path, dated, [PAIR])
    with pytest.raises(InputError, match="not YYYY-MM-DD"):
        load(tmp_path, dated, [PAIR], date="yesterday")
    example = load(tmp_path, dated, [PAIR], date="2026-03-01").examples[0]
    assert whole(dated, example).startswith("01 Mar 2026 <|user|>")


def test_conversations_that_cannot_be_rendered_are_bad_rows(tmp_path):
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(InputError, match=r"data\.jsonl:1: the chat template rejects"):
        load(tmp_path, bare, [CHAT], template="plain")


def test_a_conversation_may_begin_with_the_assistant(tmp_path, tokenizer):
    first = {"messages": [{"role": "assistant", "content": "Hello."}, *CHAT["messages"][1:]]}
    example = load(tmp_path, tokenizer, [first]).examples[0]
    assert learnt(tokenizer, example) == "Hello.<|end|>In the park.<|end|>In the house.<|end|>"


def test_a_text_row_as_a_query_is_encoded_as_in_training(tmp_path, tokenizer):
    settings = DataSettings(template="chat")
    example = load(tmp_path, tokenizer, [{"text": "The cat walks."}]).examples[0]
    query = Encoder(tokenizer, settings).query_of_row(example.row)
    assert query.input_ids.tolist() == example.input_ids.tolist()[:-1]  # without EOS


def test_tokens_of_trimmed_white_space_are_labelled():
    offsets = [(0, 0), (0, 2), (4, 4), (4, 5)]  # added, prompt, indentation, word
    assert labels_of_spans([9, 8, 7, 6], offsets, [(2, 5)]) == [IGNORED, IGNORED, 7, 6]


def test_settings_that_cannot_work_are_refused(tokenizer):
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        Encoder(bare, DataSettings(template="chat"))
    with pytest.raises(InputError, match="is neither chat"):
        Encoder(tokenizer, DataSettings(template="chatml"))


@pytest.mark.parametrize(
    "text", ["The cat number 3 walks. " * 20, "naïve 日本語 🙂🙂 text " * 15, "", "\n\n  x\t" * 20]
)
def test_token_texts_add_up_to_the_text(tokenizer, text):
    ids = tokenizer(text).input_ids
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert max(map(len, texts), default=0) < 12  # none holds its neighbours' text
