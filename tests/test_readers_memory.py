"""However large a file or a row of it is, reading it takes little memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from reading import read, stream_of

from orpo_lightning.data.arrow_reader import rows_at_a_time
from orpo_lightning.data.csv_reader import read_csv
from orpo_lightning.data.json_reader import read_json
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.readers import read_file
from orpo_lightning.data.rows import LONGEST_ROW, Row
from orpo_lightning.errors import DataError


def peak_of(rows: Iterator[Row | LeftOut]) -> tuple[int, int]:
    """Return how many rows there were, and the most bytes that Python held while they were read."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in rows)
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ROW = json.dumps({"prompt": "p" * 1000, "chosen": "ü" * 20_000, "rejected": "r" * 20_000}).encode()


def many(row: bytes, before: bytes, between: bytes, behind: bytes, size: int) -> Iterator[bytes]:
    yield before
    for number in range(size // len(row)):
        yield row if number == 0 else between + row
    yield behind


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("an array on one line", (b"[", b", ", b"]")),
        ("an array on many lines", (b"[\n", b",\n", b"\n]\n")),
        ("lines", (b"", b"\n", b"\n")),
    ],
)
def test_two_hundred_megabytes_of_json_are_read_in_a_few(
    name: str, stream: tuple[bytes, bytes, bytes]
) -> None:
    size = 200 << 20
    count, peak = peak_of(read_json(name, stream_of(many(ROW, *stream, size=size))))
    assert count == size // len(ROW)
    assert peak < 16 << 20


def test_two_hundred_megabytes_of_csv_are_read_in_a_few() -> None:
    size, row = 200 << 20, b'"' + b"c" * 50_000 + b'",' + b"r" * 50_000
    stream = stream_of(many(row, b"chosen,rejected\n", b"\n", b"\n", size=size))
    count, peak = peak_of(read_csv("x.csv", stream))
    assert count == size // len(row)
    assert peak < 16 << 20


def test_one_row_of_twenty_megabytes_is_a_row(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "word " * (4 << 20), "rejected": "r"}
    for content in (json.dumps(row), json.dumps([row]), json.dumps([row], indent=1)):
        assert read(tmp_path / "x.json", content.encode()) == [row]


def test_a_line_without_end_is_left_out_in_bounded_memory_and_reading_goes_on() -> None:
    pieces = many(b"x" * (1 << 20), b'{"a": 1}\n{"a": "', b"", b'"}\n{"a": 3}\n', size=3 * LONGEST_ROW)
    first, broken, last = read_json("x.jsonl", stream_of(pieces))
    assert (first, last) == ({"a": 1}, {"a": 3})
    assert isinstance(broken, LeftOut)
    assert broken.detail == "x.jsonl:2: the line is longer than 64 MiB; is this JSON lines?"


@pytest.mark.parametrize("read_stream", [read_json, read_csv])
def test_a_value_that_does_not_end_is_an_error_before_memory_is_full(read_stream: Any) -> None:
    start = b'[{"a": "' if read_stream is read_json else b'a,b\n"'
    pieces = many(b"x" * (1 << 20), start, b"\n", b"", size=10 * LONGEST_ROW)
    with pytest.raises(DataError, match=r"(larger|longer) than 64 MiB"):
        list(read_stream("x", stream_of(pieces)))


def test_batches_have_few_rows_where_rows_are_large() -> None:
    assert rows_at_a_time(512 * 100, 512) == 512
    assert rows_at_a_time(1000 << 20, 100) == 1  # 10 MiB each
    assert rows_at_a_time(100 << 20, 100) == 8
    assert rows_at_a_time(0, 10) == 512


def test_a_parquet_file_of_one_large_row_group_is_not_taken_in_at_once(tmp_path: Path) -> None:
    text = random.Random(0).randbytes(10_000).hex()
    table = pyarrow.table({"chosen": [f"{number} {text}" for number in range(5000)]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=5000, use_dictionary=False)
    size = table.nbytes
    del table
    before, largest, count = pyarrow.total_allocated_bytes(), 0, 0
    for row in read_file(tmp_path / "x.parquet"):
        count += 1
        if count % 100 == 0:
            largest = max(largest, pyarrow.total_allocated_bytes() - before)
        assert row["chosen"].startswith(f"{count - 1} ")  # type: ignore[call-overload]
    assert count == 5000
    assert largest < size / 3
