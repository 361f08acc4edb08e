"""What the tests of the readers share: files that are written, read, packed, or made while they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from orpo_lightning.data.compression import HEAD
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.readers import read_file
from orpo_lightning.data.rows import Row


def read(path: Path, content: bytes | None = None) -> list[Row | LeftOut]:
    """Read a file, after giving it a content."""
    if content is not None:
        path.write_bytes(content)
    return list(read_file(path))


def places(rows: list[Row | LeftOut], path: Path) -> list[str]:
    return [row.where.removeprefix(str(path)) for row in rows]


def details(rows: list[Row | LeftOut], path: Path) -> list[str]:
    """Return what is said of the broken rows, without the file's folder."""
    broken = [row for row in rows if isinstance(row, LeftOut)]
    assert all(row.is_broken and row.detail.startswith(row.where) for row in broken)
    return [row.detail.replace(str(path), path.name) for row in broken]


def stream_of(pieces: Iterator[bytes]) -> io.BufferedReader:
    """Return a file that is made while it is read."""

    class Raw(io.RawIOBase):
        left = b""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.left = self.left or next(pieces, b"")
            taken, self.left = self.left[: len(buffer)], self.left[len(buffer) :]
            buffer[: len(taken)] = taken
            return len(taken)

    return io.BufferedReader(Raw(), HEAD)


def packed(kind: str, content: bytes) -> bytes:
    if kind == "zst":
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return bytes(sink.getvalue().to_pybytes())
    return gzip.compress(content) if kind == "gz" else bz2.compress(content)


def noise(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [{"chosen": rng.randbytes(40).hex(), "rejected": rng.randbytes(40).hex()} for _ in range(count)]
