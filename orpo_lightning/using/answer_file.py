"""Answers to a file of prompts, kept batch by batch: a run that was killed goes on to the same bytes.

Batches are made of all rows before the first is answered, and each is answered whole. What is done stands in
`OUT.partial`, a line for each batch under a hash of its rows and of everything that decides its answers. A
run begins with what it finds there, and the file of answers appears when all of it is done.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_lightning.data.json_reader import read_json
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.prompts import Prompt, read_prompt
from orpo_lightning.data.readers import read_file
from orpo_lightning.durations import clock
from orpo_lightning.errors import DataError, UsageError, first_line
from orpo_lightning.full_disk import WRITE_ELSEWHERE
from orpo_lightning.using.generation import Answer, Answerer, Sampling
from orpo_lightning.whole_files import append_line, json_objects, sync, whole_file

KEYS = ("answer", "base_answer")


class Asked(NamedTuple):
    """A row of the file of prompts."""

    row: dict[str, Any]
    prompt: Prompt


def read_prompts(name: str, stdin: Any) -> list[Asked]:
    """Return the rows of a file, or of standard input where the name is `-`.

    Raises:
        DataError: a row cannot be used, or has an answer already.
        UsageError: there is no such file.
    """
    path = Path(name).expanduser()
    if name != "-" and not path.is_file():
        raise UsageError(
            f"--prompts: expected a file or -, found {'a folder' if path.is_dir() else 'nothing'} at {name}"
        )
    rows = read_json("stdin", stdin) if name == "-" else read_file(path)
    return [_asked(row) for row in rows]


def _asked(row: Any) -> Asked:
    if isinstance(row, LeftOut):
        raise DataError(row.detail.replace("with chosen and rejected", "with a prompt"))
    for key in KEYS:
        if key in row:
            raise DataError(f"{row.where}: has a key {key!r} already: rename it, the answer goes there")
    _refuse_what_json_lacks(row)
    return Asked(dict(row), read_prompt(row, row.where))


def _refuse_what_json_lacks(row: Any) -> None:
    """Stop at a value that could not be written again behind hours of answers: a time, bytes, NaN, ..."""
    for key, value in row.items():
        try:
            _as_line({key: value}).encode()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{row.where}: column {key!r} cannot be written as JSON ({first_line(error)}): leave it out, "
                "or make it text"
            ) from error


class Plan(NamedTuple):
    """What is to be answered, and by what."""

    asked: Sequence[Asked]
    ids: Sequence[list[int]]
    sampling: Sampling
    batch_size: int
    settings: Mapping[str, Any]
    """Whatever else decides the answers: model, adapter, quantisation, ..."""

    def batches(self, answerer: Answerer) -> list[tuple[str, list[int]]]:
        """Return the rows of each batch, under a hash of all that decides their answers."""
        fixed = json.dumps([self.settings, self.sampling, self.batch_size], sort_keys=True, default=str)
        return [
            (_hash([fixed, *(f"{place} {self.ids[place]}" for place in places)]), places)
            for places in answerer.batches(self.ids, self.sampling, self.batch_size)
        ]


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(f"{len(text)} {text}\n".encode())
    return digest.hexdigest()


def answer_all(
    plan: Plan,
    answerer: Answerer,
    answer: Callable[[list[int]], list[list[Answer]]],
    partial: Path | None,
    tell: Callable[[str], None],
) -> list[list[dict[str, Any]]]:
    """Return the answers to each row, of each model that is asked, as they stand in the file.

    Args:
        plan: what is asked.
        answerer: makes batches.
        answer: answers the rows of a batch: of each row one answer of each model.
        partial: where each batch is kept once it is done; None keeps none.
        tell: is told how far it is.

    Raises:
        SurroundingsError: the disk is full.
    """
    batches = plan.batches(answerer)
    kept = _kept(partial)
    done = {key: kept[key] for key, _ in batches if key in kept}
    if done:
        tell(f"{_rows_of(batches, done):,} of {len(plan.asked):,} rows were answered before")
    progress = _Progress(len(plan.asked), _rows_of(batches, done), tell)
    for key, places in batches:
        if key in done:
            continue
        answers = answer(places)
        done[key] = [[_as_json(one) for one in row] for row in answers]
        if partial is not None:
            _keep(partial, key, done[key])
        progress.add(len(places), sum(one.tokens for row in answers for one in row))
    found = {place: row for key, places in batches for place, row in zip(places, done[key], strict=True)}
    return [found[place] for place in range(len(plan.asked))]


def _rows_of(batches: Iterable[tuple[str, list[int]]], done: Mapping[str, Any]) -> int:
    return sum(len(places) for key, places in batches if key in done)


def _as_json(answer: Answer) -> dict[str, Any]:
    return answer._asdict()


def _kept(partial: Path | None) -> dict[str, Any]:
    """Return the batches that were kept; a last line that a kill cut short counts for nothing."""
    if partial is None:
        return {}
    return {batch["batch"]: batch["answers"] for batch in json_objects(partial) if "answers" in batch}


def _keep(partial: Path, key: str, answers: Any) -> None:
    line = json.dumps({"batch": key, "answers": answers}, ensure_ascii=False)
    append_line(partial, line, "the answers so far", WRITE_ELSEWHERE)
    sync(partial)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as JSON lines: the whole file appears, or none of it."""
    with (
        whole_file(path, "the file of answers", WRITE_ELSEWHERE) as staging,
        staging.open("w", encoding="utf-8") as stream,
    ):
        stream.writelines(_as_line(row) + "\n" for row in rows)


def _as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class _Progress:
    """Tells now and then how far it is and how long the rest will take."""

    def __init__(self, total: int, before: int, tell: Callable[[str], None]) -> None:
        self._total, self._before, self._tell = total, before, tell
        self._rows, self._tokens, self._start, self._told = 0, 0, time.monotonic(), 0.0

    def add(self, rows: int, tokens: int) -> None:
        """Count what was answered, and tell of it once in two seconds and at the end."""
        self._rows, self._tokens = self._rows + rows, self._tokens + tokens
        done, now = self._before + self._rows, time.monotonic()
        if now - self._told < 2 and done < self._total:
            return
        self._told = now
        seconds = max(now - self._start, 1e-6)
        eta = clock(seconds / self._rows * (self._total - done))
        self._tell(f"{done:,}/{self._total:,} rows  {self._tokens / seconds:,.0f} tokens/s  eta {eta}")
