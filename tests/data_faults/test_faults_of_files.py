"""Files that are not what they should be, and files that are all right: rows D01 to D08 of the table."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from faults import GOOD, Prepare, amid, left_out, refusal, said, spoken, texts, write

LINES = b"".join(json.dumps(row).encode() + b"\n" for row in texts())
TABLE = pyarrow.Table.from_pylist(texts())


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def zstd_stream(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(table: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def arrow(table: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def comma_separated(table: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue().to_pybytes()


# D01: nothing in it

EMPTY: dict[str, bytes] = {
    "nothing.jsonl": b"",
    "nothing.parquet": b"",
    "nothing.jsonl.gz": b"",
    "blank_lines.jsonl": b"\n  \n\r\n",
    "mark.jsonl": b"\xef\xbb\xbf",
    "array.json": b"[]",
    "spaced_array.json": b" [ \n ]\n",
    "header.csv": b"prompt,chosen,rejected\n",
    "packed.jsonl.gz": gzip.compress(b""),
    "packed.jsonl.zst": zstd_stream(b""),
    "packed.jsonl.bz2": bz2.compress(b""),
    "no_rows.parquet": parquet(TABLE[:0]),
    "no_rows.arrow": arrow(TABLE[:0]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_d01_an_empty_file_is_called_so_with_its_path(name: str, prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(EMPTY[name])
    assert refusal(prepare, str(path)) == f"{path} is empty: expected at least one preference pair"


# D02: not there, not a file, not for us


def test_d02_a_missing_file_is_named_with_the_nearest_name(prepare: Prepare, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", texts())
    message = refusal(prepare, str(tmp_path / "pair.jsonl"))
    assert message.startswith(
        f"{tmp_path / 'pair.jsonl'}: no such file (did you mean {tmp_path}/pairs.jsonl?)"
    )


def test_d02_a_missing_folder_is_named(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "there" / "pairs.jsonl"
    assert f"{path}: no such file (and no folder {tmp_path / 'there'})" in refusal(prepare, str(path))


def test_d02_a_folder_without_data_says_what_it_should_hold(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("nothing")
    message = refusal(prepare, str(tmp_path / "data"))
    assert message.startswith(f"{tmp_path / 'data'}: the folder holds no file ending in .jsonl, .json, ")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to read everything, for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_d02_a_file_without_permission_is_named_with_the_reason(prepare: Prepare) -> None:
    # A folder that everybody may enter: pytest's own is its user's alone.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name) / "pairs.jsonl"
        write(path, texts())
        path.chmod(0)
        with as_nobody():
            assert refusal(prepare, str(path)) == f"{path}: cannot be read: Permission denied"


def test_d02_a_file_of_another_kind_says_which_endings_are_known(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    write(path, texts())
    message = refusal(prepare, str(path))
    assert re.fullmatch(rf"{path}: expected a name ending in \.jsonl, .*, found '\.txt'", message)


# D03, D04: lines that are no JSON


def test_d03_a_truncated_last_line_is_named_and_said_to_be_cut_off(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write(path, texts(200))
    path.write_bytes(path.read_bytes()[:-10])
    message = refusal(prepare, str(path))
    assert message.startswith(f"{path}:200: is not JSON: ")
    assert "(cut off?)" in message


def test_d03_a_truncated_array_is_named_and_said_to_be_cut_off(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(texts(), indent=1)[:-10])
    assert re.match(rf"{path}:\d+: is not JSON: .* \(cut off\?\)", refusal(prepare, str(path)))


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("zst", zstd_stream), ("bz2", bz2.compress)]
)
def test_d03_a_truncated_compressed_file_says_behind_which_row_it_ends(
    ending: str, pack: Callable[[bytes], bytes], prepare: Prepare, tmp_path: Path
) -> None:
    path = tmp_path / f"x.jsonl.{ending}"
    path.write_bytes(pack(LINES)[:-12])
    message = refusal(prepare, str(path), on_error="skip")
    assert message.startswith(f"{path}: its "), message
    assert " data ends too early, " in message
    assert "download it again" in message


def test_d04_a_broken_line_in_the_middle_stops_with_its_number(prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", amid('{"prompt": "a", "chosen" "b"}'))
    message = refusal(prepare, path)
    assert message.startswith(f"{path}:21: is not JSON: Expecting ':' delimiter, character 25")
    assert message.endswith("(--data.on_error skip leaves such rows out)")


def test_d04_where_broken_lines_are_skipped_one_is_counted_and_the_others_are_trained(
    prepare: Prepare, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", amid('{"prompt": "a", "chosen" "b"}'))
    data = prepare(path, on_error="skip")
    assert left_out(data) == [(f"{path}:21", "broken row")]
    assert spoken(data) == said(texts())


# D05: not UTF-8


def test_d05_a_byte_that_is_not_utf_8_is_named_with_line_offset_and_a_way_out(
    prepare: Prepare, tmp_path: Path
) -> None:
    bad = json.dumps(texts(1)[0] | {"chosen": "caf\u00e9"}, ensure_ascii=False).encode("latin-1")
    path = write(tmp_path / "x.jsonl", amid(bad))
    message = refusal(prepare, path)
    assert message.startswith(f"{path}:21: is not UTF-8 text (byte {bad.index(0xE9)}); ")
    assert "iconv -f latin1 -t utf-8" in message


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_d05_a_whole_file_in_latin_1_is_told_by_its_first_line_that_shows_it(
    name: str, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [row | {"chosen": "Stra\u00dfe"} for row in texts(30)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    content = {
        "x.jsonl": "\n".join(lines),
        "x.json": "[" + ",\n".join(lines) + "]",
        "x.csv": "prompt,chosen,rejected\n" + "".join(f"p{i},Stra\u00dfe,r{i}\n" for i in range(30)),
    }[name]
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    first, line = (2, "p0,Stra") if name == "x.csv" else (1, content.partition("\u00df")[0])
    message = refusal(prepare, str(path))
    assert f"the first: {path}:{first}: is not UTF-8 text (" in message
    assert f"byte {len(line)}); convert the file to UTF-8 first, e.g. iconv" in message


# D06 to D08: other spellings of the same rows

SPELLINGS: dict[str, bytes] = {
    "mark.jsonl": b"\xef\xbb\xbf" + LINES,
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "blank_lines.jsonl": b"\n\n" + LINES.replace(b"\n", b"\n \n\n"),
    "no_final_newline.jsonl": LINES.rstrip(),
    "all_of_these.jsonl": (b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")).rstrip(),
    "mark.csv": b"\xef\xbb\xbf" + comma_separated(TABLE),
    "windows.csv": comma_separated(TABLE).replace(b"\n", b"\r\n").replace(b"?\r\n", b"?\n"),
    "mark.json": b"\xef\xbb\xbf" + json.dumps(texts(), indent=2).encode(),
    "windows.json": json.dumps(texts(), indent=2).replace("\n", "\r\n").encode(),
}
PACKED: dict[str, bytes] = {
    "x.jsonl.gz": gzip.compress(LINES),
    "x.jsonl.zst": zstd_stream(LINES),
    "x.jsonl.bz2": bz2.compress(LINES),
    "two_members.jsonl.gz": gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]),
    "not_called_gz.jsonl": gzip.compress(LINES),
    "not_packed.jsonl.gz": LINES,
    "x.csv.gz": gzip.compress(comma_separated(TABLE)),
    "x.parquet.gz": gzip.compress(parquet(TABLE)),
}
FORMATS: dict[str, bytes] = {
    "array.json": json.dumps(texts()).encode(),
    "array_of_lines.json": b"[\n" + b",\n".join(LINES.splitlines()) + b"\n]\n",
    "printed_objects.json": b"\n".join(json.dumps(row, indent=4).encode() for row in texts()),
    "x.csv": comma_separated(TABLE),
    "x.parquet": parquet(TABLE),
    "x.arrow": arrow(TABLE),
    "lines.json": LINES,
    "array.jsonl": json.dumps(texts()).encode(),
    "lines.csv": LINES,
    "parquet.jsonl": parquet(TABLE),
    "arrow.parquet": arrow(TABLE),
    "x.JSONL": LINES,
}


@pytest.mark.parametrize("name", [*SPELLINGS, *PACKED, *FORMATS])
def test_d06_d07_d08_the_same_rows_in_any_spelling_packing_and_format_are_the_same_training_data(
    name: str, prepare: Prepare, tmp_path: Path
) -> None:
    path, clean = tmp_path / name, tmp_path / "clean.jsonl"
    path.write_bytes((SPELLINGS | PACKED | FORMATS)[name])
    clean.write_bytes(LINES)
    data, expected = prepare(str(path)), prepare(str(clean))
    assert spoken(data) == spoken(expected) == said(texts())
    assert data.train_dataset.fingerprint() == expected.train_dataset.fingerprint()
    assert left_out(data) == []


PLAIN_CSV = b"prompt,chosen,rejected\n" + b"".join(b"Q%d?,A%d,B%d\n" % (i, i, i) for i in range(GOOD))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("csv.jsonl", PLAIN_CSV, "comma-separated text? its file's name must end in .csv"),
        ("csv.parquet", comma_separated(TABLE), "is not a readable Parquet file"),
        ("x.csv", PLAIN_CSV.replace(b",", b";"), "expected names separated by commas, found ';'"),
        ("x.jsonl", b"PK\x03\x04" + b"\0" * 50, "is a zip archive; unpack it first"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("x.json", b"<!DOCTYPE html><html></html>", "is a page of the web"),
        ("x.jsonl", LINES.decode().encode("utf-16"), "is UTF-16 text; convert it first"),
        ("x.parquet", parquet(TABLE)[:-200], "is not a readable Parquet file"),
    ],
)
def test_d08_a_file_of_another_format_than_its_name_says_is_read_or_named(
    name: str, content: bytes, words: str, prepare: Prepare, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(prepare, str(path))
    assert str(path) in message
    assert words in message
