"""Data files of every kind, as people have them."""

import bz2
import csv
import gzip
import json
import lzma

import datasets
import pyarrow
import zstandard
from pyarrow import parquet

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


def write_rows_that_hold_lists(path, rows):
    """What a row holds is not the file's list of rows."""
    write_jsonl(path, [{**row, "items": [rows[0], rows[0]]} for row in rows])


def write_pretty(path, rows):
    path.write_text("\n".join(json.dumps(row, indent=2) for row in rows))


def write_two_marks(mark):
    def make(path, rows):
        write_divided(mark)(path, [{**row, "first, last": "Ada, L."} for row in rows])

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
    "lines-with-lists.json": write_rows_that_hold_lists,
    "objects.json": write_pretty,
    "two-names.csv": write_two_marks(";"),
    "two-names.tsv": write_two_marks("\t"),
}
