"""One answer a row, liked or not, as KTO trains on them: rows of one prompt are put together to pairs."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.messages import (
    Message,
    read_messages,
    read_tools,
    user_turn,
    whole_conversation,
    with_system,
)
from orpo_lightning.data.shapes.base import Opinion, PreferenceRecord, Row, Shape, is_messages
from orpo_lightning.data.values import check_text, is_list, kind, need, number, quote
from orpo_lightning.errors import DataError

NO_COUNTERPART = "no counterpart"
_WORDS = {"true": True, "false": False}


class Waiting:
    """Holds the opinions that have no counterpart yet, and only those."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._queues: dict[str | bytes, deque[tuple[int, Opinion]]] = {}
        self._seen = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._queues.values()))

    def pair(self, opinion: Opinion) -> PreferenceRecord | None:
        """Return the record that an opinion completes, or keep it.

        Of one prompt, the first liked answer is paired with the first disliked one, the second with the
        second, and so on: so all that wait for a counterpart are of one mind.
        """
        self._seen += 1
        key = _key(opinion)
        queue = self._queues.setdefault(key, deque())
        if not queue or queue[0][1].liked == opinion.liked:
            queue.append((self._seen, opinion))
            return None
        other = queue.popleft()[1]
        if not queue:
            del self._queues[key]
        liked, disliked = (opinion, other) if opinion.liked else (other, opinion)
        places = f"{liked.where} and {disliked.where}"
        return PreferenceRecord(
            liked.prompt, liked.completion, disliked.completion, places, tools=liked.tools, rows=2
        )

    def rest(self) -> Iterator[LeftOut]:
        """Yield the rows that found no counterpart, in the order they came in."""
        waiting = sorted(item for queue in self._queues.values() for item in queue)
        for _, opinion in waiting:
            wanted = "disliked" if opinion.liked else "liked"
            detail = f"{opinion.where}: {NO_COUNTERPART}: no further {wanted} answer to the same prompt"
            yield LeftOut(opinion.where, NO_COUNTERPART, detail, opinion.row)


def _key(opinion: Opinion) -> str | bytes:
    if isinstance(opinion.prompt, str):
        return opinion.prompt
    # A hash: the prompts of a large set, written out a second time, would be much to hold.
    written = json.dumps([opinion.prompt, opinion.tools], sort_keys=True)
    return hashlib.blake2b(written.encode(), digest_size=16).digest()


def _is_text(row: Row) -> bool:
    return "label" in row and all(isinstance(row.get(key), str) for key in ("prompt", "completion"))


def _read_text(row: Row, where: str) -> Opinion:
    """Read `prompt`, `completion` and `label`; texts stay as they are."""
    prompt, completion = (
        check_text(need(row, key, where), f"{where}: {key}") for key in ("prompt", "completion")
    )
    return Opinion(prompt, completion, _is_liked(row, where), where, None, row)


def _is_chat(row: Row) -> bool:
    if "label" not in row:
        return False
    if "completion" in row and isinstance(row.get("prompt"), (str, list, tuple)):
        return is_messages(row["completion"]) or is_list(row["prompt"])
    return is_list(row.get("messages")) and not {"chosen", "rejected", "completion"} & row.keys()


def _read_chat(row: Row, where: str) -> Opinion:
    """Read `prompt` and `completion`, or `messages` that end with the answer; and `label`."""
    if "completion" in row:
        turns, column = _prompt(row, where), "completion"
    else:
        turns, column = [], "messages"
    answer = need(row, column, where)
    conversation = whole_conversation(turns, answer, f"{where}: {column}")
    if len(conversation) == 1:
        raise DataError(f"{where}: no turn before the answer; expected a prompt or a whole conversation")
    prompt = with_system(row, conversation[:-1], where)
    return Opinion(prompt, conversation[-1:], _is_liked(row, where), where, read_tools(row, where), row)


def _prompt(row: Row, where: str) -> list[Message]:
    """Return the turns of a prompt; a text is one of them, but with a text to answer it that is no chat."""
    prompt, place = need(row, "prompt", where), f"{where}: prompt"
    if is_list(prompt):
        return read_messages(prompt, place)
    if not isinstance(prompt, str):
        raise DataError(f"{place} must be text or a list of messages, found {kind(prompt)}")
    if isinstance(row["completion"], str):
        raise DataError(f"{where}: expected messages in prompt or completion, found text in both")
    return [user_turn(check_text(prompt, place))]


def _is_liked(row: Row, where: str) -> bool:
    value = need(row, "label", where)
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    if isinstance(value, bool):
        return value
    if number(value) not in (0.0, 1.0):
        raise DataError(f"{where}: label must be true or false, found {quote(value)}")
    return bool(number(value))


UNPAIRED_TEXT = Shape("unpaired text", _is_text, _read_text)
UNPAIRED_MESSAGES = Shape("unpaired messages", _is_chat, _read_chat)
