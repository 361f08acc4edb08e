"""Broken files by the hundred: which mutation of which good file, all told by a name and a number."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from mutations import ENCODED, FILES, LINES, ROWS, Random, Row, chat_rows, line, text_rows


class Broken(NamedTuple):
    """A file to be written."""

    name: str
    file: str
    content: bytes


def lines(rows: list[Row]) -> bytes:
    return b"".join(line(row) + b"\n" for row in rows)


def array(rows: list[Row]) -> bytes:
    return b"[\n" + b",\n".join(map(line, rows)) + b"\n]\n"


def printed(rows: list[Row]) -> bytes:
    return "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in rows).encode()


def comma_separated(rows: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[Row]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


def arrow(rows: list[Row]) -> bytes:
    sink, table = pyarrow.BufferOutputStream(), pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue().to_pybytes()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[[], bytes]] = {
    "x.jsonl": lambda: lines(text_rows()),
    "chats.jsonl": lambda: lines(chat_rows()),
    "x.json": lambda: array(text_rows()),
    "printed.json": lambda: printed(chat_rows()),
    "x.csv": lambda: comma_separated(text_rows()),
    "x.parquet": lambda: parquet(text_rows()),
    "chats.parquet": lambda: parquet(chat_rows()),
    "x.arrow": lambda: arrow(text_rows()),
    "x.jsonl.gz": lambda: gzip.compress(lines(text_rows()), mtime=0),
    "x.jsonl.zst": lambda: zstd(lines(text_rows())),
    "x.jsonl.bz2": lambda: bz2.compress(lines(text_rows())),
    "x.csv.gz": lambda: gzip.compress(comma_separated(text_rows()), mtime=0),
    "x.parquet.gz": lambda: gzip.compress(parquet(text_rows()), mtime=0),
}
TEXT = ("x.jsonl", "chats.jsonl", "x.json", "printed.json", "x.csv")


def of_rows(seed: int = 0) -> Iterator[Broken]:
    """Yield files of which a row in three is broken by one mutation, in each layout that can hold them."""
    for name, mutate in ROWS.items():
        for file, good in (("x.jsonl", text_rows()), ("chats.jsonl", chat_rows()), ("x.json", text_rows())):
            rng = random.Random(f"{seed} {name} {file}")
            made = [mutate(row, rng) if rng.random() < 0.33 else line(row) for row in good]
            content = b"[" + b",\n".join(made) + b"]" if file == "x.json" else b"\n".join(made)
            yield Broken(f"{name} in {file}", file, content)


def of_lines(seed: int = 0) -> Iterator[Broken]:
    """Yield files of which a line in three is broken by one mutation."""
    for name, mutate in LINES.items():
        for file in ("x.jsonl", "x.csv"):
            rng = random.Random(f"{seed} {name} {file}")
            good = FORMATS[file]().splitlines()
            made = [mutate(one, rng) if one and rng.random() < 0.33 else one for one in good]
            yield Broken(f"{name} in {file}", file, b"\n".join(made))


def of_files(seed: int = 0) -> Iterator[Broken]:
    """Yield whole files that something happened to."""
    for name, mutate in FILES.items():
        for file, good in FORMATS.items():
            yield Broken(f"{name}: {file}", file, mutate(good(), random.Random(f"{seed} {name} {file}")))
    for name, mutate in ENCODED.items():
        for file in TEXT:
            yield Broken(
                f"{name}: {file}", file, mutate(FORMATS[file](), random.Random(f"{seed} {name} {file}"))
            )


def of_names() -> Iterator[Broken]:
    """Yield good content under the name of another format."""
    for ending in ("jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz", "csv.zst", "parquet.bz2"):
        for file, good in FORMATS.items():
            yield Broken(f"{file} called .{ending}", f"other.{ending}", good())


def of_packing(seed: int = 0) -> Iterator[Broken]:
    """Yield packed files that were put together wrongly, or only unusually."""
    rng = random.Random(f"{seed} packing")
    whole = lines(text_rows())
    half, rest = gzip.compress(whole[:1000], mtime=0), gzip.compress(whole[1000:], mtime=0)
    contents: dict[str, bytes] = {
        "two members": half + rest,
        "an empty member between two": half + gzip.compress(b"", mtime=0) + rest,
        "an empty member only": gzip.compress(b"", mtime=0),
        "nothing": b"",
        "packed twice": gzip.compress(gzip.compress(whole, mtime=0), mtime=0),
        "a member and then the rest unpacked": half + whole[1000:],
        "a second member that is cut": half + rest[: rng.randrange(1, len(rest))],
        "zstd under its name": zstd(whole),
        "a header only": half[:10],
        "its magic bytes only": half[:2],
        "noise behind its magic bytes": half[:3] + rng.randbytes(200),
    }
    return (Broken(f"{name}: x.jsonl.gz", "x.jsonl.gz", content) for name, content in contents.items())


def interleaved(seed: int = 0) -> Iterator[Broken]:
    """Yield lines of two files that two processes wrote at the same time."""
    others: dict[str, list[bytes]] = {
        "chats": list(map(line, chat_rows())),
        "other columns": [line({"instruction": f"Q{i}", "win": f"A{i}", "lose": f"B{i}"}) for i in range(30)],
        "itself": list(map(line, text_rows())),
        "a CSV": comma_separated(text_rows()).splitlines(),
    }
    for name, other in others.items():
        rng = random.Random(f"{seed} {name}")
        mixed = [one for pair in zip(map(line, text_rows()), other, strict=False) for one in _some(pair, rng)]
        yield Broken(f"interleaved with {name}", "x.jsonl", b"\n".join(mixed))
        torn = b"".join(_pieces(b"\n".join(mixed), rng))
        yield Broken(f"torn and interleaved with {name}", "x.jsonl", torn)


def _some(pair: tuple[bytes, bytes], rng: Random) -> list[Any]:
    return rng.choice([[pair[0]], [pair[1]], [*pair], [*reversed(pair)]])


def _pieces(content: bytes, rng: Random) -> Iterator[bytes]:
    """Yield blocks in which two writers' buffers were flushed, every other pair of them exchanged."""
    size = rng.randrange(300, 900)
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    for first in range(0, len(blocks), 2):
        yield from reversed(blocks[first : first + 2]) if rng.random() < 0.5 else blocks[first : first + 2]


def all_of(seed: int = 0) -> list[Broken]:
    """Return every broken file of a seed."""
    makers = (of_rows, of_lines, of_files, of_packing, interleaved)
    return [*(broken for make in makers for broken in make(seed)), *of_names()]
