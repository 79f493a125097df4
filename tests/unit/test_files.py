"""Data files of every kind give the same rows, and say what is wrong with them."""

import builtins
import gzip
import json
import os
import pickle
import sqlite3
import subprocess
import zipfile

import datasets
import pytest
import zstandard

from rapidin_cli.data.files import data_stamp, read_values
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import BadRow, DataSettings
from rapidin_cli.errors import InputError
from rapidin_cli.setup.search import survey
from rapidin_cli.workspace.config import load_config
from tests.support.data_files import (
    CHATS,
    KINDS,
    ROWS,
    write_arrow,
    write_csv,
    write_folder,
    write_jsonl,
    write_parquet,
    write_splits,
)


def rows_of(folder, name):
    return list(read_rows(folder, DataSettings(files=(name,))))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path):
    KINDS[name](tmp_path / name, ROWS)
    found = rows_of(tmp_path, name)
    assert [(r.id, r.prompt, r.response) for r in found] == [
        (r["id"], r["prompt"], r["response"]) for r in ROWS
    ]
    assert len({row.line for row in found}) == len(ROWS)


@pytest.mark.parametrize("name", ["data.parquet", "data"])
def test_tables_hold_conversations(name, tmp_path):
    KINDS[name](tmp_path / name, CHATS)
    assert [row.messages for row in rows_of(tmp_path, name)] == [
        tuple(chat["messages"]) for chat in CHATS
    ]


def test_cells_keep_their_line_breaks_and_quotes(tmp_path):
    rows = [{"prompt": 'say "hi",\r\nplease', "response": "hi\nthere"}, ROWS[0] | {"id": "x"}]
    rows[1].pop("id")
    write_csv(tmp_path / "data.csv", rows)
    found = rows_of(tmp_path, "data.csv")
    assert [(r.prompt, r.response) for r in found] == [(r["prompt"], r["response"]) for r in rows]
    assert [r.line for r in found] == [2, 5]


def test_a_row_with_too_few_cells_is_bad_and_the_others_are_read(tmp_path):
    (tmp_path / "data.csv").write_text("prompt,response\na,b\nc\nd,e,f\ng,h\n")
    found = rows_of(tmp_path, "data.csv")
    assert [type(row) is BadRow for row in found] == [False, True, True, False]
    assert str(found[1]) == "data.csv:3: a row must have 2 cells"


def broken_gzip(path):
    path.write_bytes(gzip.compress(b'{"prompt": "a", "response": "b"}\n' * 5000)[:-40])


def no_gzip(path):
    path.write_text("{}")


def broken_parquet(path):
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])


def broken_csv(path):
    path.write_text('prompt,response\n"a"b,c\n')


def twice_named(path):
    path.write_text("prompt,prompt\na,b\n")


def splits(path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"one": rows, "other": rows}).save_to_disk(path)


def utf16(path):
    path.write_text(json.dumps(ROWS[0]), encoding="utf-16")


def latin(path):
    path.write_bytes('{"prompt": "é", "response": "b"}'.encode("latin-1"))


def a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.jsonl", "{}")


def a_pickle(path):
    path.write_bytes(pickle.dumps(ROWS))


def a_database(path):
    with sqlite3.connect(path) as database:
        database.execute("create table rows (prompt text)")


def broken_zst(path):
    path.write_bytes(zstandard.compress(b"a" * 9999)[:-4])


def broken_arrow(path):
    write_arrow(path, ROWS)
    path.write_bytes(b"nothing")


def any_folder(path):
    path.mkdir()


def lost_shard(path):
    write_folder(path, ROWS)
    next(path.glob("*.arrow")).unlink()


def two_lists(path):
    path.write_text(f"{json.dumps(ROWS)}\n{json.dumps(ROWS)}")


def two_wrapped_lists(path):
    path.write_text(json.dumps({"train": ROWS, "examples": ROWS}, indent=1))


def more_after_the_object(path):
    path.write_text(json.dumps({"data": ROWS}, indent=1) * 2)


def cut_object(path):
    path.write_text(json.dumps({"data": ROWS}, indent=1)[:-1])


def utf16_without_a_mark(path):
    path.write_text(json.dumps(ROWS[0]), encoding="utf-16-le")


def latin_far_down(path):
    write_jsonl(path, ROWS * 500)
    path.write_bytes(path.read_bytes() + "é\n".encode("latin-1"))


def binary(path):
    path.write_bytes(bytes(range(1, 256)) + bytes(range(256)))


def lz4(path):
    path.write_bytes(b"\x04\x22\x4d\x18 and so on")


def chosen_rows(path):
    """As datasets 1 saved what was selected or shuffled: rows, and which of them to take."""
    write_folder(path, ROWS)
    state = json.loads((path / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (path / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("data.jsonl.gz", broken_gzip, "is not a valid gzip file"),
        ("data.jsonl.gz", no_gzip, "is not a valid gzip file"),
        ("data.parquet", broken_parquet, "is not a valid Parquet file"),
        ("data.csv", broken_csv, "data.csv:2: broken CSV"),
        ("data.csv", twice_named, "must name its columns, each only once"),
        ("data", splits, "several splits (one, other)"),
        ("data.jsonl", utf16, "data.jsonl is UTF-16 text, not UTF-8"),
        ("data.jsonl", latin, "data.jsonl is not UTF-8 text (byte"),
        ("data.jsonl", a_zip, "data.jsonl is a ZIP archive"),
        ("data.json", a_pickle, "data.json is a Python pickle"),
        ("data.jsonl", a_database, "is an SQLite database"),
        ("data.jsonl.zst", broken_zst, "is not a valid zst file"),
        ("data.arrow", broken_arrow, "is not a valid Arrow file"),
        ("data", any_folder, "is a folder, but not one that"),
        ("data", lost_shard, "data lacks data-0000"),
        ("data.json", two_lists, "data.json:2: there is more after the end of the list"),
        ("data.json", two_wrapped_lists, "two lists of rows, 'train' and 'examples'"),
        ("data.json", more_after_the_object, "there is more after the end"),
        ("data.json", cut_object, "broken JSON"),
        ("data.jsonl", utf16_without_a_mark, "data.jsonl is UTF-16LE text"),
        ("data.jsonl", latin_far_down, "not UTF-8 text (byte 1 of line 3001)"),
        ("data.jsonl", binary, "data.jsonl is a binary file"),
        ("data.jsonl", lz4, "data.jsonl is an LZ4 file"),
        ("data", chosen_rows, "a list of the rows to take"),
    ],
)
def test_what_cannot_be_read_is_said(name, make, told, tmp_path):
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        list(read_values(tmp_path / name, name))
    assert told in caught.value.message
    assert caught.value.hint


def test_a_split_can_be_named(tmp_path):
    write_splits(tmp_path / "data", ROWS)
    assert len(rows_of(tmp_path, "data/test")) == 2
    before = data_stamp(tmp_path / "data")
    arrow = next((tmp_path / "data/train").glob("*.arrow"))
    os.utime(arrow, (1, 1))
    assert data_stamp(tmp_path / "data") != before


def test_a_split_that_is_linked_is_seen_to_change(tmp_path):
    write_splits(tmp_path / "data", ROWS)
    (tmp_path / "data/train").rename(tmp_path / "elsewhere")
    (tmp_path / "data/train").symlink_to(tmp_path / "elsewhere")
    before = data_stamp(tmp_path / "data")
    os.utime(next((tmp_path / "elsewhere").glob("*.arrow")), (1, 1))
    assert data_stamp(tmp_path / "data") != before


def test_only_what_is_read_is_stamped(tmp_path):
    write_splits(tmp_path / "data", ROWS)
    before = data_stamp(tmp_path / "data")
    os.utime(next((tmp_path / "data/test").glob("*.arrow")), (1, 1))
    (tmp_path / "data/train/notes.txt").write_text("nothing of the rows")
    assert data_stamp(tmp_path / "data") == before


def test_a_folder_of_files_names_the_pattern_that_lists_them(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data/part-0.parquet", ROWS)
    (tmp_path / "data/README.md").write_text("rows")
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path, "data")
    assert caught.value.hint == 'name the files in it: [data] files = ["data/*.parquet"]'
    assert len(rows_of(tmp_path, "data/part-0.parquet")) == 6


def test_the_command_that_converts_can_be_pasted(tmp_path):
    (tmp_path / "my data").mkdir()
    utf16(tmp_path / "my data/a.jsonl")
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path, "my data/a.jsonl")
    command = caught.value.hint.removeprefix("convert it: ")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert len(rows_of(tmp_path, "my data/utf8-a.jsonl")) == 1


def test_a_broken_line_takes_no_others_with_it(tmp_path):
    """Neither by what it lacks, nor by line separators inside of texts, nor by zeros at the end."""
    row = json.dumps({"prompt": "a\u2028b", "response": "c"}, ensure_ascii=False)
    (tmp_path / "data.json").write_text('{"prompt": "x\n' + f"{row}\n{row}\n" + "\0\0", "utf-8")
    found = rows_of(tmp_path, "data.json")
    assert [type(each) is BadRow for each in found] == [True, False, False, True]
    assert str(found[3]).startswith("data.json:4: it contains NUL bytes")
    (tmp_path / "data.json").write_text('{"prompt": "x",\n' + f"{row}\n{row}\n", "utf-8")
    assert [type(each) is BadRow for each in rows_of(tmp_path, "data.json")] == [True, False, False]


def test_patterns_name_the_files_that_they_match(tmp_path):
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS[:2])
    (tmp_path / "rin.toml").write_text('[data]\nfiles = ["*.jsonl", "a.jsonl"]\n')
    assert load_config(tmp_path).data.files == ("a.jsonl", "b.jsonl")
    (tmp_path / "rin.toml").write_text('[data]\nfiles = ["*.csv"]\n')
    with pytest.raises(InputError, match=r"nothing matches \*\.csv"):
        load_config(tmp_path)


def test_lines_of_a_wrapped_list_are_those_of_the_file(tmp_path):
    (tmp_path / "data.json").write_text('{"a": [1],\n "rows": [\n{"text": "x"},\n\n{"text": "y"}]}')
    assert [line for line, _ in read_values(tmp_path / "data.json", "data.json")] == [3, 5]


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("data.parquet", "pyarrow", "parquet"),
        ("data.arrow", "pyarrow", "parquet"),
        ("data", "pyarrow", "parquet"),
        ("data.jsonl.zst", "zstandard", "zst"),
    ],
)
def test_a_missing_package_is_named_with_its_command(name, package, extra, tmp_path, monkeypatch):
    KINDS[name](tmp_path / name, ROWS)
    load = builtins.__import__

    def without(name, *rest):
        if name.startswith(package):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=f"{package}, which is not installed") as caught:
        rows_of(tmp_path, name)
    assert caught.value.hint == f'pip install "rapidin[{extra}]"'


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.csv", "data.parquet"])
def test_rin_init_finds_it(name, tmp_path):
    KINDS[name](tmp_path / name, ROWS)
    [found] = survey(tmp_path).data
    assert (found.path.name, found.look.shape) == (name, "prompt")
