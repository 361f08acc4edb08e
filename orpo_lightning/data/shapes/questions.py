"""A question and two answers under other names than ours: they become a user's and two assistant turns."""

from __future__ import annotations

from typing import Any

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.messages import Message, user_turn
from orpo_lightning.data.shapes.base import (
    ANSWERS,
    NO_PREFERENCE,
    PreferenceRecord,
    Row,
    Shape,
    are_texts,
    check_answers,
    conversational,
    has_answers,
)
from orpo_lightning.data.values import check_text, first_key, is_list, kind, names, need, number, quote
from orpo_lightning.errors import DataError

_QUESTIONS = ("question", "input", "prompt")
_ARGILLA = ("chosen_response", "rejected_response")
_ARGILLA_QUESTIONS = ("instruction", "prompt", "input")
_OUTPUTS = ("output_1", "output_2")
_LISTED = ("output[0]", "output[1]")


def _is_orca(row: Row) -> bool:
    if not has_answers(row) or "instruction" in row:
        return False
    return (
        are_texts(row, "question")
        or are_texts(row, "input")
        or ("system" in row and are_texts(row, "prompt"))
    )


def _read_orca(row: Row, where: str) -> PreferenceRecord:
    """Read a `question`, an `input`, or a `prompt` beside `system`, which may be empty; and two answers."""
    return _answered(_first(row, _QUESTIONS, where), row, where, ANSWERS)


def _is_argilla(row: Row) -> bool:
    return are_texts(row, *_ARGILLA) and any(are_texts(row, key) for key in _ARGILLA_QUESTIONS)


def _read_argilla(row: Row, where: str) -> PreferenceRecord:
    """Read an `instruction`, `prompt` or `input`, and `chosen_response` and `rejected_response`."""
    return _answered(_first(row, _ARGILLA_QUESTIONS, where), row, where, _ARGILLA)


def _is_instruction(row: Row) -> bool:
    if not are_texts(row, "instruction"):
        return False
    return has_answers(row) or is_list(row.get("output")) or are_texts(row, *_OUTPUTS)


def _read_instruction(row: Row, where: str) -> PreferenceRecord | LeftOut:
    """Read an `instruction` with its `input`, and two answers in one of three forms.

    They are `chosen` and `rejected`; or `output`, a list of the better and the worse one; or `output_1` and
    `output_2`, of which `preference` names one: with neither, the row says nothing. `history`, a list of
    earlier instructions with their answers, comes before.
    """
    instruction = check_text(need(row, "instruction", where), f"{where}: instruction")
    if row.get("input"):
        instruction += "\n\n" + check_text(row["input"], f"{where}: input")
    turns = [*_history(row, where), user_turn(instruction)]
    if any(key in row for key in ANSWERS):
        return _answered(turns, row, where, ANSWERS)
    if any(key in row for key in _OUTPUTS):
        better = _preferred(need(row, "preference", where), where)
        if better is None:
            detail = f"{where}: {NO_PREFERENCE}: preference names neither output"
            return LeftOut(where, NO_PREFERENCE, detail, row)
        return _answered(turns, row, where, _OUTPUTS if better == 1 else (_OUTPUTS[1], _OUTPUTS[0]))
    if "output" in row:
        return _answered(turns, {**row, **_listed(row["output"], where)}, where, _LISTED)
    found = f"the row's keys are {names(row)}"
    raise DataError(f"{where}: expected chosen and rejected, output, or output_1 and output_2; {found}")


def _listed(outputs: Any, where: str) -> dict[str, Any]:
    """Return two answers of a list under names that tell them apart."""
    if not is_list(outputs) or len(outputs) != 2:
        found = f"{len(outputs)} of them" if is_list(outputs) else kind(outputs)
        raise DataError(f"{where}: output must be a list of two answers, the better one first; found {found}")
    return dict(zip(_LISTED, outputs, strict=True))


def _preferred(value: object, where: str) -> int | None:
    """Return which of two outputs is preferred, None for neither."""
    given = number(value)
    if given in (1.0, 2.0):
        return int(given)
    if given in (0.0, 1.5) or (isinstance(value, str) and value.strip().lower() == "tie"):
        return None
    expected = "1 or 2, or 0 or 'tie' for neither"
    raise DataError(f"{where}: preference must be {expected}, found {quote(value)}")


def _history(row: Row, where: str) -> list[Message]:
    turns: list[Message] = []
    for index, exchange in enumerate(row.get("history") or ()):
        place = f"{where}: history[{index}]"
        if not is_list(exchange) or len(exchange) != 2:
            raise DataError(f"{place}: expected an instruction and its answer, found {kind(exchange)}")
        asked, answer = (check_text(text, place) for text in exchange)
        turns += [user_turn(asked), {"role": "assistant", "content": answer}]
    return turns


def _first(row: Row, keys: tuple[str, ...], where: str) -> list[Message]:
    """Return the user turn that one of several columns holds."""
    key = first_key(row, keys, where)
    return [user_turn(check_text(row[key], f"{where}: {key}"))]


def _answered(turns: list[Message], row: Row, where: str, keys: tuple[str, str]) -> PreferenceRecord:
    check_answers(row, where, keys)
    return conversational(turns, row, where, keys)


ORCA = Shape("orca", _is_orca, _read_orca)
INSTRUCTION = Shape("instruction", _is_instruction, _read_instruction)
ARGILLA = Shape("argilla", _is_argilla, _read_argilla)
