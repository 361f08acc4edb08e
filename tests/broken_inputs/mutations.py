"""What happens to good files on their way: seeded mutations of rows, of lines, and of whole files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Random = random.Random
GOOD = 30


def text_rows(count: int = GOOD) -> list[Row]:
    """Return rows of plain text with what is awkward to write in one format or another."""
    return [
        {
            "prompt": f"Question {i}: na\u00efve caf\u00e9, \u4e2d\u6587?\n",
            "chosen": f'Answer {i}, "quoted"; 3 \u2264 4.',
            "rejected": f"Wrong {i}\tand\n\nlong \U0001f600.",
        }
        for i in range(count)
    ]


def chat_rows(count: int = GOOD) -> list[Row]:
    """Return the same rows as messages."""
    return [
        {
            key: [{"role": "user" if key == "prompt" else "assistant", "content": text}]
            for key, text in row.items()
        }
        for row in text_rows(count)
    ]


def line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")


# A row that is broken in itself: returns the line to write in its place.


def _with(value: Any) -> Callable[[Row, Random], bytes]:
    return lambda row, rng: line(row | {rng.choice(list(row)): value})


def _with_text(value: str) -> Callable[[Row, Random], bytes]:
    """Put JSON text in a value's place that `json.dumps` would not write."""
    return lambda row, rng: line(row | {rng.choice(list(row)): "HERE"}).replace(b'"HERE"', value.encode())


def _renamed(row: Row, rng: Random) -> bytes:
    key = rng.choice(list(row))
    other = rng.choice([key.upper(), key[:-1], f"{key} ", "text", ""])
    return line({other if name == key else name: value for name, value in row.items()})


def _removed(row: Row, rng: Random) -> bytes:
    gone = rng.choice(list(row))
    return line({key: value for key, value in row.items() if key != gone})


def _doubled_key(row: Row, rng: Random) -> bytes:
    return line(row)[:-1] + b', "' + rng.choice(list(row)).encode() + b'": "another"}'


def _nested(row: Row, rng: Random) -> bytes:
    return rng.choice([line({"data": row}), line([row]), line({"rows": [row, row]}), line(json.dumps(row))])


def _wrapped_value(row: Row, rng: Random) -> bytes:
    key = rng.choice(list(row))
    return line(
        row | {key: rng.choice([[row[key]], {"text": row[key]}, [[row[key]]], {"0": {"1": row[key]}}])}
    )


def _huge(row: Row, rng: Random) -> bytes:
    return line(row | {rng.choice([*row, "extra"]): "x" * 300_000})


def _many_keys(row: Row, rng: Random) -> bytes:
    return line(row | {f"key {i}": i for i in range(5000)})


ROWS: dict[str, Callable[[Row, Random], bytes]] = {
    "null": _with(None),
    "number": _with(12.5),
    "truth value": _with(True),
    "empty": _with(""),
    "white space": _with(" \n\u200b"),
    "empty list": _with([]),
    "list of texts": _with(["a", "b"]),
    "NUL": _with("a\x00b"),
    "surrogate": _with_text('"a\\udcffb"'),
    "NaN": _with_text("NaN"),
    "huge number": _with_text("9" * 6000),
    "deep": _with_text("[" * 3000 + "]" * 3000),
    "raw line end": _with_text('"a\tb\x0bc"'),
    "key renamed": _renamed,
    "key removed": _removed,
    "key doubled": _doubled_key,
    "row nested": _nested,
    "value nested": _wrapped_value,
    "huge value": _huge,
    "many keys": _many_keys,
}


# A line that is broken whatever stands in it: returns what to write in its place.


def _cut(line: bytes, rng: Random) -> bytes:
    return line[: rng.randrange(1, len(line))]


def _beheaded(line: bytes, rng: Random) -> bytes:
    return line[rng.randrange(1, len(line)) :]


def _flipped(line: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(line))
    return line[:at] + bytes([line[at] ^ (1 << rng.randrange(8))]) + line[at + 1 :]


def _inserted(*pieces: bytes) -> Callable[[bytes, Random], bytes]:
    def mutate(line: bytes, rng: Random) -> bytes:
        at = rng.choice([0, len(line), rng.randrange(len(line))])
        return line[:at] + rng.choice(pieces) + line[at:]

    return mutate


def _split(line: bytes, rng: Random) -> bytes:
    at = rng.randrange(1, len(line))
    return line[:at] + b"\n" + line[at:]


LINES: dict[str, Callable[[bytes, Random], bytes]] = {
    "cut": _cut,
    "beheaded": _beheaded,
    "flipped bit": _flipped,
    "mark inserted": _inserted(b"\xef\xbb\xbf"),
    "NULs inserted": _inserted(b"\0", b"\0" * 4096),
    "carriage return inserted": _inserted(b"\r", b"\r\r"),
    "other line end inserted": _inserted(b"\x0b", b"\x0c", b"\xc2\x85", b"\xe2\x80\xa8"),
    "line end inserted": _split,
    "latin-1": lambda line, rng: line.decode().encode("latin-1", "replace"),
    "utf-16": lambda line, rng: line.decode().encode("utf-16"),
    "single quotes": lambda line, rng: line.replace(b'"', b"'"),
    "twice on a line": lambda line, rng: line + rng.choice([b"", b" ", b",", b"\r"]) + line,
    "comma behind": lambda line, rng: line + b",",
    "comment": lambda line, rng: rng.choice([b"# a comment", b"// a comment", b"/* a */ " + line]),
    "log line": lambda line, rng: b"2024-01-01 10:00:00 INFO wrote 100 rows",
    "noise": lambda line, rng: rng.randbytes(200).replace(b"\n", b" "),
    "blank": lambda line, rng: rng.choice([b"", b"   ", b"\t\r", b"\xc2\xa0"]),
    "other shape": lambda line, rng: rng.choice([*map(json_line, chat_rows(3)), b"a,b,c", b'"a","b","c"']),
}


def json_line(row: Any) -> bytes:
    return line(row)


# A file as a whole.


def _cut_file(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def _cut_end(content: bytes, rng: Random) -> bytes:
    return content[: len(content) - rng.randrange(1, 12)]


def _holed(content: bytes, rng: Random) -> bytes:
    """Return a file with a hole, as a disk that was full leaves it."""
    at, size = rng.randrange(len(content)), rng.randrange(1, 1500)
    return content[:at] + b"\0" * min(size, len(content) - at) + content[at + size :]


def _moved(content: bytes, rng: Random) -> bytes:
    first, second, third = sorted(rng.sample(range(len(content)), 3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def _many_flips(content: bytes, rng: Random) -> bytes:
    for _ in range(5):
        content = _flipped(content, rng)
    return content


FILES: dict[str, Callable[[bytes, Random], bytes]] = {
    "cut": _cut_file,
    "end missing": _cut_end,
    "beginning missing": _beheaded,
    "flipped bit": _flipped,
    "five flipped bits": _many_flips,
    "hole": _holed,
    "block moved": _moved,
    "twice": lambda content, rng: content * 2,
    "noise behind": lambda content, rng: content + rng.randbytes(64),
    "NULs behind": lambda content, rng: content + b"\0" * 512,
    "noise": lambda content, rng: rng.randbytes(500),
}
# Of text only.
ENCODED: dict[str, Callable[[bytes, Random], bytes]] = {
    **{
        name: lambda content, rng, name=name: content.decode().encode(name, "replace")
        for name in ("utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7")
    },
    "old Macintosh": lambda content, rng: content.replace(b"\n", b"\r"),
    "line ends mixed": lambda content, rng: b"".join(
        part + rng.choice([b"\n", b"\r\n", b"\n\n"]) for part in content.splitlines()
    ),
    "mark before every line": lambda content, rng: b"".join(
        b"\xef\xbb\xbf" + part for part in content.splitlines(keepends=True)
    ),
}
