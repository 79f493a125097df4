"""The data as tokens on disk: the same examples, once, in bounded memory."""

import json
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from rapidin_cli.data import token_store
from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.examples import IGNORED, Dataset, Example
from rapidin_cli.data.loading import load_dataset
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import BadRow, DataSettings, Row
from rapidin_cli.data.token_store import EncodedRows, TokenStore
from rapidin_cli.errors import InputError
from rapidin_cli.influence.lexical import Lexical
from tests.support import tiny

SETTINGS = DataSettings(files=("data.jsonl",), template="chat", max_tokens=26)


class Counting:
    """Makes an encoder, and knows how often."""

    def __init__(self):
        self.made = 0

    def __call__(self):
        self.made += 1
        return Encoder(tiny.tokenizer(), SETTINGS)


@pytest.fixture
def folder(tmp_path):
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(tiny.rows(300))]
    rows.append({**rows[7], "id": "copy"})
    rows[3]["id"] = "two\nlines"
    rows.insert(5, {"prompt": "no response"})
    tiny.write_jsonl(tmp_path / "data.jsonl", rows)
    old = (tmp_path / "data.jsonl").stat().st_mtime - 60
    os.utime(tmp_path / "data.jsonl", (old, old))
    return tmp_path


def load(folder, encoder, **more):
    options = {"skip_bad": True, "kept": folder / "kept", "tokenizer": "t", **more}
    return load_dataset(folder, SETTINGS, encoder, **options)


def test_stored_examples_are_those_of_a_plain_reading(folder):
    plain = load(folder, Counting(), kept=None)
    stored = load(folder, Counting())
    assert len(stored.examples) == len(plain.examples) == 301
    for ours, theirs in zip(stored.examples, plain.examples, strict=True):
        assert ours.row == theirs.row
        assert (ours.input_ids == theirs.input_ids).all()
        assert (ours.labels == theirs.labels).all()
        assert ours.truncated == theirs.truncated
        assert ours.digest == theirs.digest
        assert ours.learnt == theirs.learnt
    assert stored.bad == plain.bad != []
    assert stored.digest == plain.digest
    assert stored.truncated == plain.truncated > 0
    assert list(stored.by_digest) == list(plain.by_digest)
    assert [[e.row.id for e in group] for group in stored.distinct] == [
        [e.row.id for e in group] for group in plain.by_digest.values()
    ]


def test_nothing_is_tokenised_twice_until_something_changes(folder):
    encoder = Counting()
    load(folder, encoder)
    load(folder, encoder)
    assert encoder.made == 1
    load(folder, encoder, tokenizer="another")
    assert encoder.made == 2
    path = folder / "data.jsonl"
    stat = path.stat()
    path.write_text(path.read_text().replace("r9", "q9"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load(folder, encoder).find("q9") is not None
    assert encoder.made == 3


def test_a_file_that_is_written_twice_at_once_is_read_twice(folder):
    path = folder / "data.jsonl"
    text = path.read_text()
    path.write_text(text)
    stamp = path.stat()
    assert load(folder, Counting()).find("r9") is not None
    path.write_text(text.replace("r9", "q9"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # within one tick of the clock
    assert load(folder, Counting()).find("q9") is not None


def test_rows_are_found_by_id_place_and_digest(folder):
    stored, plain = load(folder, Counting()), load(folder, Counting(), kept=None)
    names = ["r0", "r299", "copy", "two\nlines", "lines", "data.jsonl:9", "nothing", "data.jsonl:6"]
    names += [plain.examples[20].digest.hex()[:9], "two"]
    for name in names:
        ours, theirs = stored.find(name), plain.find(name)
        assert (ours and ours.row) == (theirs and theirs.row), name


def test_bad_rows_stop_unless_they_may_be_skipped(folder):
    for _ in range(2):  # also once they are known
        with pytest.raises(InputError, match=r"data\.jsonl:6: field 'response' is missing|unknown"):
            load(folder, Counting(), skip_bad=False)
        load(folder, Counting())


def test_another_process_gets_whole_examples(folder):
    example = load(folder, Counting()).examples[4]
    again = pickle.loads(pickle.dumps(example))
    assert type(again) is Example
    assert again.digest == example.digest
    assert again.row == example.row


@pytest.mark.parametrize("name", ["rows.json", "tokens", "ids"])
def test_a_damaged_folder_is_written_again(folder, name):
    dataset = load(folder, Counting())
    (dataset.examples.folder / name).unlink()
    encoder = Counting()
    assert len(load(folder, encoder).examples) == 301
    assert encoder.made == 1


def test_old_folders_are_removed_and_used_ones_stay(folder):
    for number in range(7):
        load(folder, Counting(), tokenizer=f"t{number}")
        load(folder, Counting(), tokenizer="t0")
    encoder = Counting()
    load(folder, encoder, tokenizer="t0")
    assert encoder.made == 0
    assert len(list((folder / "kept").iterdir())) <= 4


def test_what_a_killed_writer_left_is_removed(folder):
    load(folder, Counting())
    for name, age in (("new-old", 7200), ("new-now", 5)):
        left = folder / "kept" / name
        left.mkdir()
        (left / "tokens").write_bytes(b"1234")
        then = (left / "tokens").stat().st_mtime - age
        os.utime(left / "tokens", (then, then))
    load(folder, Counting(), tokenizer="another")
    names = {each.name for each in (folder / "kept").iterdir()}
    assert "new-now" in names  # somebody may be writing it
    assert "new-old" not in names
    assert len(names) == 3


def test_a_folder_that_cannot_be_written_is_done_without(folder, monkeypatch):
    monkeypatch.setattr(token_store.os, "access", lambda *_: False)
    dataset = load(folder, Counting())
    assert len(dataset.examples) == 301
    assert list((folder / "kept").iterdir()) == []


def test_a_full_disk_is_done_without(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_store._Writer, "_end_block", full)
    dataset = load(folder, Counting())
    assert len(dataset.examples) == 301
    assert dataset.bad
    assert list((folder / "kept").iterdir()) == []


def test_an_interrupted_writing_leaves_nothing(folder):
    def broken():
        yield load(folder, Counting(), kept=None).examples[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TokenStore(folder / "kept").write("name", ["data.jsonl"], broken(), [])
    assert list((folder / "kept").iterdir()) == []


def test_words_are_indexed_once_and_score_the_same(folder):
    dataset = load(folder, Counting())
    question = dataset.examples[30]
    first = Lexical.of(dataset)
    again = Lexical.of(load(folder, Counting()))
    plain = Lexical([group[0] for group in dataset.distinct])
    assert (dataset.examples.folder / "bm25").is_dir()
    assert (first.scores(question) == plain.scores(question)).all()
    assert (again.scores(question) == plain.scores(question)).all()
    assert plain.scores(question).any()


def test_too_much_text_is_not_indexed(folder, monkeypatch):
    monkeypatch.setattr("rapidin_cli.influence.lexical.MOST_TEXT", 1000)
    assert Lexical.of(load(folder, Counting())) is None


def _examples(count, text):
    """Examples with a text of their own each, as large as `text`."""
    for number in range(count):
        ids = np.arange(number, number + 500, dtype=np.int32)
        labels = np.where(np.arange(500) < 9, IGNORED, ids).astype(np.int32)
        yield Example(
            Row("data.jsonl", number + 1, f"r{number}", "?", f"{number} {text}"), ids, labels
        )


def test_memory_does_not_hold_the_texts(tmp_path):
    count, text = 4000, "a word " * 1000
    tracemalloc.start()
    rows = TokenStore(tmp_path).write("name", ["data.jsonl"], _examples(count, text), [])
    dataset = Dataset(rows, [])
    assert len(dataset.by_digest) == count
    assert sum(len(example.input_ids) for example in dataset.examples) == 500 * count
    assert dataset.examples[3999].row.response.startswith("3999 a word")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000 < count * len(text)  # 28 MB of text, 8 MB of tokens


def test_reading_does_not_hold_the_file(tmp_path):
    path = tmp_path / "data.jsonl"
    with path.open("w") as file:
        for number in range(3000):
            line = {"prompt": f"{number}", "response": f"{number} word " * 1000}
            file.write(json.dumps(line) + "\n")
    tracemalloc.start()
    rows = read_rows(tmp_path, DataSettings(files=("data.jsonl",)))
    assert sum(not isinstance(row, BadRow) for row in rows) == 3000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000 < path.stat().st_size


def test_rows_of_no_length_are_none(tmp_path):
    rows = TokenStore(tmp_path).write("name", ["data.jsonl"], iter(()), [])
    assert len(rows) == len(EncodedRows(tmp_path / "name")) == 0
    assert rows.named("r1") is None
