"""Parquet and Arrow files, batch by batch; and tables that come from elsewhere."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any

from orpo_lightning.data.compression import is_plain
from orpo_lightning.data.left_out import LeftOut, broken
from orpo_lightning.data.rows import Row
from orpo_lightning.errors import DataError, SurroundingsError, first_line

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 512
_END_OF_STREAM = b"\0\0\0\0"
_FILE_MAGIC = b"ARROW1"


def read_parquet(name: str, stream: BufferedReader) -> Iterator[Row | LeftOut]:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: it is not readable as one.
    """
    import pyarrow.parquet

    with (
        _file_of(name, stream) as path,
        _faults_named(name, "Parquet"),
        # Buffered: else a whole column of a row group is in memory at once.
        pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file,
    ):
        yield from rows_of(_parquet_batches(file), name)


def read_arrow(name: str, stream: BufferedReader) -> Iterator[Row | LeftOut]:
    """Yield the rows of an Arrow file, in the stream or the file format.

    Raises:
        DataError: it is not readable as one.
    """
    with _file_of(name, stream) as path, _faults_named(name, "Arrow"):
        yield from rows_of(_arrow_batches(name, path), name)


def rows_of(batches: Iterable[Any], name: str) -> Iterator[Row | LeftOut]:
    """Yield the rows of record batches or tables; few of them are Python objects at a time.

    Args:
        batches: of pyarrow.
        name: begins the rows' places.
    """
    number = 0
    for batch in batches:
        decoders = {field.name: decode for field in batch.schema if (decode := _json_decoder(field.type))}
        step = rows_at_a_time(batch.nbytes, batch.num_rows)
        for start in range(0, batch.num_rows, step):
            for values in _values(batch.slice(start, step), decoders):
                number += 1
                where = f"{name} row {number}"
                if isinstance(values, Exception):
                    yield broken(where, f"{where}: a value cannot be read: {first_line(values)}")
                else:
                    yield Row(values, where)


def rows_at_a_time(size: int, rows: int) -> int:
    """Return how many rows of a batch of this many bytes to take at once."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _parquet_batches(file: Any) -> Iterator[Any]:
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        size = rows_at_a_time(group.total_byte_size, group.num_rows)
        yield from file.iter_batches(batch_size=size, row_groups=[number])


def _arrow_batches(name: str, path: str) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(path) as file:
        size = file.size()
        file.seek(max(0, size - 8))
        end = file.read()
        file.seek(0)
        if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            if not end.endswith(_END_OF_STREAM):
                raise DataError(f"{name}: its end mark is missing (cut off?); copy or download it again")
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            # Offsets of a damaged file may point anywhere in memory.
            batch.validate(full=True)
            yield batch


def _values(batch: Any, decoders: dict[str, Callable[[Any], Any]]) -> Iterator[Any]:
    """Yield the values of each row, or why they cannot be read."""
    faults = (ValueError, OverflowError, ArithmeticError, ImportError, NotImplementedError)
    rows: list[Any]
    try:
        rows = [_decoded(values, decoders) for values in batch.to_pylist()]
    except faults as error:
        if batch.num_rows == 1:
            rows = [error]
        else:
            for number in range(batch.num_rows):
                yield from _values(batch.slice(number, 1), decoders)
            return
    yield from rows


def _decoded(values: dict[str, Any], decoders: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    for column, decode in decoders.items():
        values[column] = decode(values[column])
    return values


def _json_decoder(kind: Any) -> Callable[[Any], Any] | None:
    """Return what undoes the JSON that `datasets` keeps values of mixed types in, if it is there."""
    import pyarrow.types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if pyarrow.types.is_struct(kind):
        inner = {field.name: decode for field in kind if (decode := _json_decoder(field.type))}
        return (lambda value: value and _decoded(value, inner)) if inner else None
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        decode = _json_decoder(kind.value_type)
        return (lambda value: value and [decode(item) for item in value]) if decode else None
    return None


@contextmanager
def _file_of(name: str, stream: BufferedReader) -> Iterator[str]:
    """Give the path of a file with the stream's content: both formats are read from the end."""
    if is_plain(stream):
        yield stream.raw.name  # type: ignore[attr-defined]
        return
    with tempfile.NamedTemporaryFile(prefix="orpo_lightning-") as file:
        while data := stream.read1(1 << 20):
            try:
                file.write(data)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                room = f"no room in {tempfile.gettempdir()} to unpack it"
                raise SurroundingsError(
                    f"{name}: {room}; set TMPDIR to another folder, or unpack it yourself"
                ) from error
        file.flush()
        yield file.name


@contextmanager
def _faults_named(name: str, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{name}: is not a readable {kind} file: {first_line(error)}") from error
