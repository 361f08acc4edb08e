"""Good rows, files of them, and what became of each: kept word for word, left out, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.errors import UserError

Prepare = Callable[..., PreferenceDataModule]
Texts = tuple[str, str, str]
STOP = "<|im_end|>"
GOOD = 40
"""So many good rows around a bad one stay below data.max_dropped with one or two bad ones."""


def texts(count: int = GOOD, first: int = 0) -> list[dict[str, Any]]:
    """Return rows of plain text, no two with the same prompt or answer."""
    return [
        {"prompt": f"Question {i}?\n", "chosen": f"Answer {i}.", "rejected": f"Wrong {i}."}
        for i in range(first, first + count)
    ]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def chats(count: int = GOOD, first: int = 0) -> list[dict[str, Any]]:
    """Return the rows of `texts` as messages."""
    return [
        {
            "prompt": [turn("user", row["prompt"].strip())],
            "chosen": [turn("assistant", row["chosen"])],
            "rejected": [turn("assistant", row["rejected"])],
        }
        for row in texts(count, first)
    ]


def line_of(item: Mapping[str, Any] | str | bytes) -> bytes:
    if isinstance(item, bytes):
        return item
    return (item if isinstance(item, str) else json.dumps(item)).encode()


def write(path: Path, items: Iterable[Mapping[str, Any] | str | bytes]) -> str:
    """Write rows, or lines that are none, one a line; return the path as text."""
    path.write_bytes(b"".join(line_of(item) + b"\n" for item in items))
    return str(path)


def amid(bad: Any, rows: list[dict[str, Any]] | None = None, at: int = 21) -> list[Any]:
    """Return good rows with a bad one among them, on line `at`."""
    good = texts() if rows is None else rows
    return [*good[: at - 1], bad, *good[at - 1 :]]


def making(folder: Path) -> Prepare:
    """Return a function that prepares the data module of a training source and any other arguments."""
    shared = tiny_tokenizer("chatml")

    def prepare(train: Any, tokenizer: Any = None, **arguments: Any) -> PreferenceDataModule:
        data = PreferenceDataModule(train=train, **{"cache_dir": str(folder / "cache")} | arguments)
        data.processor = tokenizer or shared
        data.prepare_data()
        data.setup()
        return data

    return prepare


def refusal(prepare: Prepare, train: Any, exit_code: int = 3, **arguments: Any) -> str:
    """Return why the data is refused, having checked that it is one line with that exit code."""
    with pytest.raises(UserError) as caught:
        prepare(train, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert type(caught.value).exit_code == exit_code, message
    return message


def spoken(data: PreferenceDataModule, split: str = "train") -> list[Texts]:
    """Return the texts that are trained on: of messages without their frame, and without the stop tokens."""
    return [
        (
            _unframed(data.processor.decode(pair.prompt)),
            *(data.processor.decode(answer).removesuffix(STOP) for answer in (pair.chosen, pair.rejected)),
        )
        for pair in getattr(data, f"{split}_dataset")
    ]


def said(rows: Iterable[Mapping[str, Any]]) -> list[Texts]:
    """Return the texts of such rows as `spoken` finds them."""

    def text(part: Any) -> str:
        return part if isinstance(part, str) else part[-1]["content"]

    return [(text(row["prompt"]), text(row["chosen"]), text(row["rejected"])) for row in rows]


def _unframed(prompt: str) -> str:
    start, end = "<|im_start|>user\n", f"{STOP}\n<|im_start|>assistant\n"
    return prompt.removeprefix(start).removesuffix(end) if prompt.endswith(end) else prompt


def left_out(data: PreferenceDataModule) -> list[tuple[str, str]]:
    """Return place and reason of everything that was left out; every row is accounted for."""
    items = list(data.preparation.left_out())
    assert all(item["detail"].startswith(item["where"]) for item in items)
    return [(item["where"], item["reason"]) for item in items]


def suspicious(data: PreferenceDataModule) -> Iterator[tuple[str, int, list[str]]]:
    """Yield kind, number and first places of the suspicious training pairs, as a report names them."""
    for one in examined(data)["splits"]["train"]["suspicious"]:
        if one["rows"]:
            yield one["kind"], one["rows"], one["examples"]


def examined(data: PreferenceDataModule) -> dict[str, Any]:
    """Return the report on the data."""
    from orpo_lightning.data.health import Rules, examine, gather

    limits = {key: data.rules[key] for key in Rules._fields if key != "seed"}
    rules, allowed = Rules(**limits, seed=data.seed), data.cleaning.max_dropped
    return examine(gather(data.preparation), data.processor, rules, max_dropped=allowed, with_rows=False)
