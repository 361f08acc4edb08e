"""A conversation in the terminal: what was said, what of it still fits, and the commands beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orpo_lightning.data.messages import Message, user_turn
from orpo_lightning.data.prompts import Prompt
from orpo_lightning.errors import DataError, UserError, first_line
from orpo_lightning.using.generation import Answer, Answerer, Sampling

COMMANDS = """/reset         forget what was said
/system TEXT   say this to the model before everything else; without TEXT, nothing
/compare       answers of the base beside those of the adapter, on or off
/save FILE     append the conversation to a file, as a row of JSON lines
/help          these lines
/quit          end, as Ctrl-D does; Ctrl-C stops an answer"""
# What moves the cursor or colours the screen is the terminal's business, not a model's.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return a model's text as a terminal may show it: without control characters but tab and line end."""
    return _CONTROLS.sub("\ufffd", text)


class Conversation:
    """The turns of one conversation with a model.

    Args:
        model: of the answers; with an adapter that can be switched off, or without.
        answerer: writes them.
        sampling: how.
        write: shows text, as it comes.
        has_adapter: whether the base can be compared with.
    """

    def __init__(
        self,
        model: Any,
        answerer: Answerer,
        sampling: Sampling,
        write: Callable[[str], None],
        *,
        has_adapter: bool,
    ) -> None:
        """Start with nothing said."""
        self.turns: list[Message] = []
        self.system = ""
        self.compares = False
        self._model, self._answerer, self._sampling, self._write = model, answerer, sampling, write
        self._has_adapter = has_adapter
        self._left_out_told = False
        self._notes_told = 0

    def say(self, text: str) -> bool:
        """Answer a line, or do what a command says; return whether to go on."""
        try:
            if text.startswith("/"):
                return self._command(text)
            if text.strip():
                self._answer(text)
        except UserError as error:
            self._line(f"error: {first_line(error)}")
        return True

    def _command(self, text: str) -> bool:
        name, _, rest = text[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "reset": self._reset,
            "system": self._set_system,
            "compare": self._compare,
            "save": self._save,
            "help": lambda _: self._line(COMMANDS),
        }
        if name in ("quit", "exit"):
            return False
        if name in commands:
            commands[name](rest.strip())
        else:
            self._line(f"error: no command /{name}; there are:\n{COMMANDS}")
        return True

    def _reset(self, rest: str) -> None:
        self.turns, self._left_out_told = [], False
        self._line("(nothing was said)")

    def _set_system(self, rest: str) -> None:
        self.system = rest
        self._line(f"(system: {rest})" if rest else "(no system turn)")

    def _compare(self, rest: str) -> None:
        if not self._has_adapter:
            self._line("error: this is a whole model: it has no adapter to switch off")
            return
        self.compares = not self.compares
        self._line(f"(the base's answers are shown {'too' if self.compares else 'no more'})")

    def _save(self, rest: str) -> None:
        if not rest:
            self._line("error: /save FILE: name a file")
            return
        path = Path(rest).expanduser()
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"messages": self._messages(0)}, ensure_ascii=False) + "\n")
        except OSError as error:
            self._line(f"error: {path}: {error.strerror}")
            return
        self._line(f"(saved {len(self.turns)} turns to {path})")

    def _messages(self, left_out: int) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns[left_out:]]

    def _answer(self, text: str) -> None:
        self.turns.append(user_turn(text))
        try:
            ids = self._fitting()
            if self.compares:
                self._write("base: ")
                with self._model.disable_adapter():
                    base = self._answerer.stream(ids, self._sampling, self._show, key=len(self.turns))
                self._end(base)
                if base.ended == "interrupted":
                    self.turns.pop()
                    return
                self._write("adapter: ")
            answer = self._answerer.stream(ids, self._sampling, self._show, key=len(self.turns))
        except BaseException:
            self.turns.pop()
            raise
        self._end(answer)
        self.turns.append({"role": "assistant", "content": answer.text})

    def _show(self, piece: str) -> None:
        self._write(printable(piece))

    def _end(self, answer: Answer) -> None:
        why = {"stop": "", "length": " (cut: no room for more)", "interrupted": " (stopped)"}[answer.ended]
        self._line(why)

    def _fitting(self) -> list[int]:
        """Return the tokens of the prompt, without the oldest turns where all would not fit.

        An answer may be as long as was asked for, or a quarter of the context where that is less.
        """
        context = self._answerer.context
        wanted = (
            self._sampling.max_new_tokens
            if context is None
            else min(self._sampling.max_new_tokens, context // 4)
        )
        for left_out in range(0, len(self.turns), 2):
            ids = self._answerer.prompts.encode([Prompt(self._messages(left_out), "the conversation")])[0]
            self._tell_notes()
            if self._answerer.room(ids, self._sampling) < wanted:
                continue
            if left_out and not self._left_out_told:
                self._left_out_told = True
                self._line(f"(the oldest turns are left out: the model's context is {context:,} tokens)")
            return ids
        raise DataError(
            f"this takes {len(ids):,} tokens, which leave no room for an answer: the model's context is "
            f"{context:,} tokens"
        )

    def _tell_notes(self) -> None:
        notes = self._answerer.prompts.notes
        for note in notes[self._notes_told :]:
            self._line(f"(note: {note})")
        self._notes_told = len(notes)

    def _line(self, text: str) -> None:
        self._write(text + "\n")
