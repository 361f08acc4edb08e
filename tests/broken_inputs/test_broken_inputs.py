"""Broken files: never a traceback, never a hang, and no row is lost without being accounted for."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from files import Broken, all_of
from mutations import chat_rows, text_rows
from oracle import Said, all_texts, read
from tiny_models import tiny_tokenizer

from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.data.left_out import BROKEN
from orpo_lightning.errors import UserError

SECONDS = 20
ORIGINALS = all_texts([*text_rows(), *chat_rows()])
TOKENIZER = tiny_tokenizer("chatml")
_START, _END, _STOP = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"


def chosen_files() -> list[Broken]:
    """Return some of all broken files, every mutation among them."""
    everything = all_of()
    rng = random.Random(0)
    by_mutation: dict[str, list[Broken]] = {}
    for one in everything:
        by_mutation.setdefault(re.split(" in x| in chats|: | called", one.name)[0], []).append(one)
    return [one for files in by_mutation.values() for one in rng.sample(files, min(2, len(files)))]


FILES = {one.name: one for one in chosen_files()}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"still at work after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def prepare(path: Path, folder: Path, on_error: str) -> PreferenceDataModule | str:
    """Return the data module of a file, or why it is refused, in one line that names the file."""
    data = PreferenceDataModule(
        train=str(path), on_error=on_error, max_dropped=1.0, cache_dir=str(folder / "cache")
    )
    data.processor = TOKENIZER
    try:
        with time_limit(SECONDS):
            data.prepare_data()
            data.setup()
    except UserError as error:
        return _checked(str(error), error.exit_code, path)
    return data


def _checked(message: str, exit_code: int, path: Path) -> str:
    assert len(message.splitlines()) == 1
    assert message.isprintable(), message
    assert str(path) in message
    assert exit_code == 3
    return message


def kept(data: PreferenceDataModule) -> list[tuple[str, str, str]]:
    """Return the texts that are trained on."""
    decode = data.processor.decode
    return [
        (
            _unframed(decode(pair.prompt)),
            *(decode(answer).removesuffix(_STOP) for answer in (pair.chosen, pair.rejected)),
        )
        for pair in data.train_dataset or ()
    ]


def _unframed(prompt: str) -> str:
    return prompt.removeprefix(_START).removesuffix(_END) if prompt.endswith(_END) else prompt


def accounted(data: PreferenceDataModule) -> int:
    """Return how many rows were kept or left out, and check that the totals say so too."""
    items = list(data.preparation.left_out())
    assert all(item["where"] and item["reason"] and item["detail"] for item in items)
    count = len(data.train_dataset) + sum(item["rows"] for item in items)
    assert sum(source.info.rows for source in data.train_dataset.sources) == count
    assert sum(left.rows for left in data.report()["train"].dropped.values()) == count - len(
        data.train_dataset
    )
    return count


def counted_in(message: str) -> int:
    """Return how many rows a message says were left out, where none is left."""
    return sum(int(number.replace(",", "")) for number in re.findall(r"([\d,]+) [^(;,:]+ \(first ", message))


def check(broken: Broken, folder: Path) -> None:
    """Check everything that must hold of a broken file."""
    path = folder / broken.file
    path.write_bytes(broken.content)
    said = read(path)
    skipped = prepare(path, folder, "skip")
    strict = prepare(path, folder, "stop")
    if isinstance(skipped, str):
        if said is not None and said.is_sure and "no usable pair is left" in skipped:
            assert counted_in(skipped) == len(said.rows), skipped
        assert isinstance(strict, str)
        return
    _check_kept(skipped, said)
    faults = [item for item in skipped.preparation.left_out() if item["reason"] == BROKEN]
    if faults:
        assert isinstance(strict, str)
        assert faults[0]["where"] in strict
    else:
        assert not isinstance(strict, str), strict
        assert kept(strict) == kept(skipped)


def _check_kept(data: PreferenceDataModule, said: Said | None) -> None:
    assert said is not None, "nothing can be read of this file, and yet there are pairs"
    assert said.is_sure, "a part of this file cannot be read, and nothing is said of it"
    assert accounted(data) == len(said.rows)
    for pair in kept(data):
        assert pair in ORIGINALS or said.holds(pair), pair


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_gives_no_traceback_no_hang_and_no_silent_loss(name: str, tmp_path: Path) -> None:
    check(FILES[name], tmp_path)
