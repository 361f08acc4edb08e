"""Files that are packed, cut off, damaged, or something else than their name says."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from reading import details, noise, packed, read

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.readers import KNOWN_ENDINGS, READERS, read_file
from orpo_lightning.data.rows import Row
from orpo_lightning.errors import DataError, SurroundingsError


@pytest.mark.parametrize("name", [f"x{ending}" for ending in READERS])
def test_an_empty_file_has_no_rows_under_any_name(name: str, tmp_path: Path) -> None:
    assert read(tmp_path / name, b"") == []


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.arrow"])
def test_parquet_is_known_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"chosen": ["a"]}), tmp_path / name)
    assert read(tmp_path / name) == [{"chosen": "a"}]


def test_json_under_the_name_of_csv_is_read_as_what_it_is(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", b'{"a": "1,2"}\n{"a": "3"}') == [{"a": "1,2"}, {"a": "3"}]
    assert read(tmp_path / "x.csv", b'[{"a": "1,2"}]') == [{"a": "1,2"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), "is UTF-16 text; convert it first"),
        ("x.json", b"<!DOCTYPE html><html>", "is a page of the web, not the data"),
        ("x.csv", b"PK\x03\x04rest", "is a zip archive; unpack it first"),
        ("x.jsonl.gz", b"\1\2\0\3", "is not gzip data; copy or download it again"),
        ("x.parquet", b'{"a": 1}', ""),
        ("x.parquet", b"chosen,rejected\na,b", "is not a readable Parquet file"),
        ("x.arrow", b"chosen,rejected\na,b\0\0\0\0", "is not a readable Arrow file"),
    ],
)  # fmt: skip
def test_what_is_no_data_of_that_kind_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    if not said:  # JSON is JSON, whatever its name
        assert read(tmp_path / name, content) == [{"a": 1}]
        return
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, content)
    assert str(caught.value).startswith(f"{tmp_path / name}: {said}")
    assert "\n" not in str(caught.value)


def test_csv_under_the_name_of_json_lines_is_suspected(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    said = details(read(path, b"chosen,rejected\na,b\n"), path)
    assert said[0].endswith("(comma-separated text? its file's name must end in .csv)")


def test_text_under_a_name_of_packed_data_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "x.jsonl.gz", b'{"a": 1}') == [{"a": 1}]


def test_the_endings_that_are_listed_are_those_that_are_read() -> None:
    assert all(ending in KNOWN_ENDINGS for ending in (*READERS, ".gz", ".zst", ".bz2"))


@pytest.mark.parametrize(("kind", "called"), [("gz", "gzip"), ("bz2", "bz2"), ("zst", "zstd")])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_packed_data_that_ends_too_early_is_told_with_the_line_it_ends_after(
    kind: str, called: str, share: float, tmp_path: Path
) -> None:
    rows = noise(20_000)
    whole = packed(kind, "".join(json.dumps(row) + "\n" for row in rows).encode())
    path = tmp_path / f"x.jsonl.{kind}"
    path.write_bytes(whole[: int(len(whole) * share)])
    found: list[Any] = []
    with pytest.raises(DataError) as caught:
        found.extend(read_file(path))
    end = f"after {path}:{len(found)}" if found else "before its first row"
    assert str(caught.value) == f"{path}: its {called} data ends too early, {end}; copy or download it again"
    assert found == rows[: len(found)]
    # bzip2 gives a block of 900 KB or nothing; of the others hardly anything in front of the cut is lost.
    assert len(found) > share * len(rows) - (6_000 if kind == "bz2" else 1_500)


@pytest.mark.parametrize("kind", ["gz", "bz2"])  # zstd data need have no checksum
def test_damaged_packed_data_is_an_error_about_the_file(kind: str, tmp_path: Path) -> None:
    whole = bytearray(packed(kind, "".join(json.dumps(row) + "\n" for row in noise(2000)).encode()))
    middle = len(whole) // 2
    whole[middle : middle + 40] = b"\xff" * 40
    path = tmp_path / f"x.jsonl.{kind}"
    with pytest.raises(DataError, match="copy or download it again"):
        read(path, bytes(whole))


def test_several_packed_files_one_behind_the_other_are_one(tmp_path: Path) -> None:
    for kind in ("gz", "bz2", "zst"):
        content = packed(kind, b'{"a": 1}\n') + packed(kind, b'{"a": 2}\n')
        assert read(tmp_path / f"x.jsonl.{kind}", content) == [{"a": 1}, {"a": 2}]


def test_an_arrow_stream_that_was_cut_between_two_batches_is_not_taken_for_a_shorter_one(
    tmp_path: Path,
) -> None:
    path, table = tmp_path / "x.arrow", pyarrow.Table.from_pylist(noise(50))
    with pyarrow.ipc.new_stream(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=25)
    whole = path.read_bytes()
    with pytest.raises(DataError, match=r"its end mark is missing \(cut off\?\)"):
        read(path, whole[:-8])
    assert pyarrow.ipc.open_stream(path.read_bytes()).read_all().num_rows == 50  # pyarrow takes it as it is
    with pytest.raises(DataError, match=re.escape(str(path))):
        read(path, whole[: len(whole) // 2])


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_full_disk_is_said_where_packed_tables_are_unpacked(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        name = "full"

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: Full())
    with pytest.raises(SurroundingsError, match=r"no room in .* to unpack it"):
        read(tmp_path / f"x{ending}.gz", gzip.compress(b"PAR1" if ending == ".parquet" else b"ARROW1\0\0"))


def mutated(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(max(1, len(changed)))
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + rng.randrange(1, 40)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                changed[at : at + 8] = rng.choice([b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7])
    return bytes(changed)


def _parquet(rows: list[dict[str, Any]], path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=10)


def _arrow(rows: list[dict[str, Any]], path: Path) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=10)


def _csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[list[dict[str, Any]], Path], None]] = {
    "x.jsonl": lambda rows, path: path.write_text("\n".join(map(json.dumps, rows))) and None,
    "x.json": lambda rows, path: path.write_text(json.dumps(rows, indent=1)) and None,
    "x.csv": _csv,
    "x.parquet": _parquet,
    "x.arrow": _arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_change_of_bytes_gives_anything_but_rows_broken_rows_or_one_line(
    name: str, tmp_path: Path
) -> None:
    rng, path = random.Random(name), tmp_path / name
    WRITERS[name](noise(30), path)
    content = path.read_bytes()
    for number in range(150):
        path.write_bytes(mutated(content, rng))
        try:
            found = read(path)
        except DataError as error:
            said = str(error)
        else:
            said = f"{path}: rows"
            assert all(isinstance(row, (Row, LeftOut)) for row in found)
        assert said.startswith(str(path)), number
        assert "\n" not in said, number


def test_a_broken_line_anywhere_costs_that_line_and_no_other(tmp_path: Path) -> None:
    rows, rng, path = noise(30), random.Random(1), tmp_path / "x.jsonl"
    content = [json.dumps(row).encode() for row in rows]
    for number in range(len(rows)):
        line = mutated(content[number], rng).replace(b"\n", b" ")
        found = read(path, b"\n".join([*content[:number], line, *content[number + 1 :]]))
        untouched = rows[:number] + rows[number + 1 :]
        assert [row for row in found if row in untouched] == untouched
        assert len(found) == len(rows) - (not line.strip())
