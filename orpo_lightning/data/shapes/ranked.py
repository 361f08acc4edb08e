"""Several answers with scores or ranks: the best against the worst, as turns of a chat, one pair of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.messages import Message, read_messages, read_tools, user_turn, with_system
from orpo_lightning.data.shapes.base import NO_PREFERENCE, PreferenceRecord, Row, Shape
from orpo_lightning.data.shapes.transcripts import is_transcript, read_transcript
from orpo_lightning.data.values import check_text, first_key, is_list, kind, names, number, quote
from orpo_lightning.errors import DataError

_PROMPTS = ("prompt", "instruction", "question")
_ANSWERS = ("completions", "responses", "answers", "generations")
_TEXTS = ("response", "text", "content", "completion", "answer")
_SCORES = ("overall_score", "score", "rating", "rank")
_PARALLEL = ("scores", "ratings", "ranks")


def _is_ranked(row: Row) -> bool:
    return any(key in row for key in _PROMPTS) and any(is_list(row.get(key)) for key in _ANSWERS)


def _read_ranked(row: Row, where: str) -> PreferenceRecord | LeftOut:
    """Read a prompt and a list of answers, each with a score (the higher the better) or a rank (1 the best).

    The answers are objects, or texts beside a list of their `scores`, `ratings` or `ranks`. Of equal ones
    the first counts, one without a score does not; where all are equal, no answer is preferred.
    """
    turns = with_system(row, _prompt(row, where), where)
    key = first_key(row, _ANSWERS, where)
    answers = row[key]
    if not is_list(answers):
        raise DataError(f"{where}: {key} must be a list of answers, found {kind(answers)}")
    texts = [_text(answer, f"{where}: {key}[{i}]") for i, answer in enumerate(answers)]
    scored = [(i, score) for i, score in enumerate(_scores(row, key, where)) if score is not None]
    # Of several equal ones, max and min return the first.
    best = max(scored, key=lambda item: item[1], default=(0, 0.0))
    worst = min(scored, key=lambda item: item[1], default=(0, 0.0))
    if best[1] == worst[1]:
        why = "all answers have the same score" if len(scored) > 1 else "fewer than two answers have a score"
        return LeftOut(where, NO_PREFERENCE, f"{where}: {NO_PREFERENCE}: {why}", row)
    chosen, rejected = ([{"role": "assistant", "content": texts[i]}] for i, _ in (best, worst))
    return PreferenceRecord(
        turns, chosen, rejected, where, tools=read_tools(row, where), margin=best[1] - worst[1]
    )


def _prompt(row: Row, where: str) -> list[Message]:
    """Return the turns before the answer, of which a text may hold several as a transcript."""
    key = first_key(row, _PROMPTS, where)
    prompt, place = row[key], f"{where}: {key}"
    if is_list(prompt) and prompt:
        return read_messages(prompt, place)
    turns = [user_turn(check_text(prompt, place))]
    if is_transcript(prompt):
        spoken = read_transcript(prompt, place)
        if spoken[-1] == {"role": "assistant", "content": ""}:
            turns = spoken[:-1]
    return turns


def _text(answer: Any, place: str) -> str:
    if not isinstance(answer, Mapping):
        return check_text(answer, place)
    key = next((key for key in _TEXTS if answer.get(key) is not None), None)
    if key is None:
        expected = ", ".join(_TEXTS)
        raise DataError(f"{place}: expected an answer with one of {expected}; its keys are {names(answer)}")
    return check_text(answer[key], f"{place}.{key}")


def _scores(row: Row, key: str, where: str) -> list[float | None]:
    """Return each answer's score, the higher the better."""
    answers = row[key]
    for name in _SCORES:
        values = [answer.get(name) if isinstance(answer, Mapping) else None for answer in answers]
        if any(value is not None for value in values):
            return [_score(value, name, f"{where}: {key}[{i}].{name}") for i, value in enumerate(values)]
    for name in _PARALLEL:
        beside = row.get(name)
        if beside is None:
            continue
        if not is_list(beside) or len(beside) != len(answers):
            found = f"{len(beside)} of them" if is_list(beside) else kind(beside)
            raise DataError(
                f"{where}: {name} must be a list, one for each of {len(answers)} {key}; found {found}"
            )
        return [_score(value, name, f"{where}: {name}[{i}]") for i, value in enumerate(beside)]
    if not answers:
        return []
    expected = f"{', '.join(_SCORES)} in {key}, or {', '.join(_PARALLEL)} beside them"
    raise DataError(f"{where}: no answer has a score; expected {expected}; the row's keys are {names(row)}")


def _score(value: Any, name: str, place: str) -> float | None:
    if value is None:
        return None
    found = number(value)
    if found is None:
        raise DataError(f"{place} must be a number, found {quote(value)}")
    return -found if name.startswith("rank") else found


RANKED = Shape("ranked", _is_ranked, _read_ranked)
