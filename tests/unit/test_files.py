"""Data files of every kind give the same rows, and say what is wrong with them."""

import builtins
import csv
import gzip
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from rapidin_cli.data.files import read_values
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import BadRow, DataSettings
from rapidin_cli.errors import InputError
from rapidin_cli.setup.search import survey
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
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)


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
        ("data", splits, "several splits (train)"),
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
    splits(tmp_path / "data")
    assert len(rows_of(tmp_path, "data/train")) == len(ROWS)


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
    assert (found.path.name, found.shape) == (name, "prompt")
