"""Files as streams of bytes, unpacked while they are read where they are compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

ENDINGS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
HEAD = 1 << 20
"""Bytes of the unpacked content that `peek(HEAD)` of a fresh stream shows."""

# A zstd file may begin with a skippable frame, as those of pzstd do.
_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
}
READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading such a stream raises when the file is damaged or ends too early."""


def compression_of(path: Path) -> str | None:
    """Tell how a file is compressed, from its first bytes: its name may say something else."""
    with path.open("rb") as file:
        start = file.read(10)
    return next((kind for kind, magic in _MAGIC.items() if magic.match(start)), None)


def open_unpacked(path: Path) -> io.BufferedReader:
    """Open a file for reading what is in it, compressed or not."""
    kind = compression_of(path)
    if kind is None:
        return io.BufferedReader(io.FileIO(str(path)), HEAD)
    return io.BufferedReader(_Unpacked(_unpacker(path, kind)), HEAD)


def is_plain(stream: io.BufferedReader) -> bool:
    """Tell whether the stream is a file as it stands on disk."""
    return isinstance(stream.raw, io.FileIO)


def _unpacker(path: Path, kind: str) -> BinaryIO | Any:
    if kind == "gzip":
        return gzip.GzipFile(path)
    if kind == "bz2":
        return bz2.BZ2File(path)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


class _Unpacked(io.RawIOBase):
    """Hands out everything in front of a fault before it raises, so that the rows there can be read."""

    def __init__(self, source: BinaryIO | Any) -> None:
        self._source = source
        self._fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view, filled = memoryview(buffer), 0
        while filled < len(view) and self._fault is None:
            try:
                # Pieces of the unpackers' own size: a larger one would be lost whole at a fault within it.
                data = self._source.read(min(len(view) - filled, 1 << 16))
            except READ_ERRORS as error:
                self._fault = error
                break
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
        if not filled and self._fault is not None:
            raise self._fault
        return filled

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()
