"""Data files of every kind give the same rows, and say what is wrong with them."""

import builtins
import bz2
import csv
import gzip
import json
import lzma
import os
import pickle
import sqlite3
import zipfile

import datasets
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from rapidin_cli.data.files import data_stamp, read_values
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import BadRow, DataSettings
from rapidin_cli.errors import InputError
from rapidin_cli.setup.search import survey
from rapidin_cli.workspace.config import load_config
from tests.support import tiny

ROWS = [{"id": f"r{n}", **row} for n, row in enumerate(tiny.rows(6))]
CHATS = [
    {"messages": [{"role": "user", "content": f"Hm {n}?"}, {"role": "assistant", "content": "Ja."}]}
    for n in range(4)
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_jsonl_gz(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def write_list_gz(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_csv_gz(path, rows):
    write_csv(path.with_suffix(""), rows)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


def packed(pack):
    def make(path, rows):
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        half = len(lines) // 2
        # Several streams in one file, as parallel compressors write them.
        path.write_bytes(pack(lines[:half]) + pack(lines[half:]))

    return make


def write_wrapped(path, rows):
    path.write_text(json.dumps({"version": "1.0", "data": rows}, indent=1))


def write_wrapped_line(path, rows):
    path.write_text(json.dumps({"train": rows}))


def write_divided(mark):
    def make(path, rows):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=mark)
            table.writeheader()
            table.writerows(rows)

    return make


def write_arrow(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


def write_feather(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


def write_splits(path, rows):
    made = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"test": made.select(range(2)), "train": made}).save_to_disk(path)


def write_parquet(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def write_folder(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(path, num_shards=2)


KINDS = {
    "data.jsonl": write_jsonl,
    "data.jsonl.gz": write_jsonl_gz,
    "data.json.gz": write_list_gz,
    "data.csv": write_csv,
    "data.csv.gz": write_csv_gz,
    "data.parquet": write_parquet,
    "data": write_folder,
    "data.jsonl.bz2": packed(bz2.compress),
    "data.jsonl.xz": packed(lzma.compress),
    "data.jsonl.zst": packed(zstandard.compress),
    "zipped-without-saying.jsonl": packed(gzip.compress),
    "wrapped.json": write_wrapped,
    "line.json": write_wrapped_line,
    "lines.json": write_jsonl,
    "semicolons.csv": write_divided(";"),
    "tabs.tsv": write_divided("\t"),
    "bars.csv": write_divided("|"),
    "data.arrow": write_arrow,
    "feather.arrow": write_feather,
    "parquet-without-saying.json": write_parquet,
    "splits": write_splits,
}


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
        ("data", lost_shard, "cannot read data"),
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


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    write_parquet(tmp_path / "data.parquet", ROWS)
    load = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pyarrow, which is not installed") as caught:
        list(read_values(tmp_path / "data.parquet", "data.parquet"))
    assert caught.value.hint == 'pip install "rapidin[parquet]"'


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.csv", "data.parquet"])
def test_rin_init_finds_it(name, tmp_path):
    KINDS[name](tmp_path / name, ROWS)
    [found] = survey(tmp_path).data
    assert (found.path.name, found.look.shape) == (name, "prompt")
