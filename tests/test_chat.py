"""`chat` as a user types it: through a real pseudo-terminal, with the tiny model of the quickstart."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from orpo_lightning.data.prompts import Prompt
from orpo_lightning.modeling import add_lora, load_base
from orpo_lightning.using.conversation import Conversation, printable
from orpo_lightning.using.generation import Answer, Answerer, Sampling
from orpo_lightning.using.trained import find, load

ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "configs" / "quickstart" / "model")
QUESTION = "Which word names an instrument, vest or cello?"
SECONDS = 120


class Terminal:
    """A program that believes to sit at a terminal; what it shows is read until it waits for the user."""

    def __init__(self, *words: str, folder: Path = ROOT) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "200"}
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(sys.executable, [sys.executable, "-m", "orpo_lightning", *words], environment)
        self.seen = ""

    def until(self, pattern: str) -> str:
        """Return what was shown up to and with a pattern."""
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, self.seen
            ready, _, _ = select.select([self.file], [], [], 1)
            if ready:
                try:
                    self.seen += os.read(self.file, 65536).decode(errors="replace").replace("\r", "")
                except OSError:  # the other end is closed
                    raise AssertionError(f"ended before {pattern!r}: {self.seen}") from None
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, line: str) -> str:
        """Type a line and return what is shown for it, until the next prompt."""
        os.write(self.file, line.encode() + b"\n")
        self.until(re.escape(line) + "\n")
        return self.until(r"(?m)^> ").removesuffix("> ").removesuffix("\n")

    def end(self) -> int:
        """Return the exit code."""
        os.write(self.file, b"\x04")
        while True:
            try:
                if not os.read(self.file, 65536):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter on the quickstart's model that answers otherwise."""
    folder = tmp_path_factory.mktemp("adapter")
    model = add_lora(
        load_base(BASE), r=4, alpha=8, dropout=0.0, targets="all-linear", variant="lora", init="default"
    )
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def chat(adapter: str) -> Iterator[Terminal]:
    terminal = Terminal("chat", adapter, "--max_new_tokens", "30", "--accelerator", "cpu")
    terminal.until(r"(?m)^> ")
    yield terminal
    os.kill(terminal.pid, signal.SIGKILL) if _runs(terminal.pid) else None
    os.close(terminal.file)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def answers(adapter: str) -> Any:
    """Return a function that answers turns with adapter and base, as chat should."""
    loaded = load(find(adapter), accelerator="cpu")
    answerer = Answerer(loaded.model, loaded.tokenizer)

    def both(*texts: str, system: str = "") -> tuple[str, str]:
        roles = ("user", "assistant")
        turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        turns = [{"role": "system", "content": system}] * bool(system) + turns
        ids = answerer.prompts.encode([Prompt(turns, "test")])
        with_adapter = answerer.answers(ids, Sampling(max_new_tokens=30))[0]
        with loaded.model.disable_adapter():
            return with_adapter.text, answerer.answers(ids, Sampling(max_new_tokens=30))[0].text

    return both


def test_a_whole_conversation_at_the_terminal(chat: Terminal, answers: Any, tmp_path: Path) -> None:
    cut = " (cut: no room for more)"
    # It answers, and what was said before is part of the next prompt.
    first, base = answers(QUESTION)
    assert first != base
    assert chat.type(QUESTION).removesuffix(cut) == first
    second, _ = answers(QUESTION, first, "And now?")
    assert chat.type("And now?").removesuffix(cut) == second
    # The base beside the adapter.
    assert "shown too" in chat.type("/compare")
    third, third_of_base = answers(QUESTION, first, "And now?", second, "Why?")
    shown = chat.type("Why?").replace(cut, "")
    assert shown == f"base: {third_of_base}\nadapter: {third}"
    assert "shown no more" in chat.type("/compare")
    # A system turn, and a beginning anew.
    assert chat.type("/reset") == "(nothing was said)"
    assert chat.type("/system Be brief.") == "(system: Be brief.)"
    with_system, _ = answers(QUESTION, system="Be brief.")
    assert chat.type(QUESTION).removesuffix(cut) == with_system
    # Saved as a row that generate and fit's data can be made of.
    file = tmp_path / "talk.jsonl"
    assert chat.type(f"/save {file}") == f"(saved 2 turns to {file})"
    assert json.loads(file.read_text()) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": with_system},
        ]
    }
    assert chat.type("/save").startswith("error: /save FILE")
    assert chat.type(f"/save {tmp_path}") == f"error: {tmp_path}: Is a directory"
    assert "error: no command /nonsense" in chat.type("/nonsense")
    assert "/system TEXT" in chat.type("/help")
    # A context of 256 tokens is soon full: it goes on without the oldest turns, and says so once.
    chat.type("/reset")
    shown = [chat.type(f"{QUESTION} {number}") for number in range(9)]
    told = [number for number, text in enumerate(shown) if "the oldest turns are left out" in text]
    assert len(told) == 1
    assert told[0] > 0
    os.write(chat.file, b"vest or cello, " * 60 + b"\n")  # too long for a line of the terminal
    chat.until("leave no room for an answer.*\n> ")
    # Ctrl-C at the prompt ends nothing, Ctrl-D does.
    os.write(chat.file, b"never mind")
    chat.until("never mind")  # until it waits for keys, readline may miss a signal
    time.sleep(0.3)
    os.write(chat.file, b"\x03")
    assert "(Ctrl-D ends)" in chat.until(r"(?m)^> ")
    assert chat.end() == 0


def test_ctrl_c_stops_an_answer_and_not_the_program(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tiny_model("llama", tokenizer=tokenizer, max_position_embeddings=20_000).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = ("--max_new_tokens", "15000", "--temperature", "1", "--accelerator", "cpu")
    terminal = Terminal("chat", str(tmp_path), *words)
    try:
        terminal.until(r"(?m)^> ")
        os.write(terminal.file, b"the thing\n")
        terminal.until("the thing\n[^\n]{3,}")
        os.write(terminal.file, b"\x03")
        terminal.until(r"\(stopped\)\n> ")
        assert "has no adapter to switch off" in terminal.type("/compare")
        assert terminal.type("/system") == "(no system turn)"
        assert terminal.end() == 0
    finally:
        if _runs(terminal.pid):
            os.kill(terminal.pid, signal.SIGKILL)


def test_what_a_model_writes_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\nd\r\x07\x9b") == "a\ufffd[2Jb\tc\nd\ufffd\ufffd\ufffd"


class _Stub:
    """Stands for an Answerer whose answers come at once."""

    context = None
    prompts: Any

    def __init__(self, ended: Any) -> None:
        self.ended = ended
        self.prompts = Answerer(tiny_model("llama"), tiny_tokenizer("chatml")).prompts

    def room(self, ids: Any, sampling: Sampling) -> int:
        return sampling.max_new_tokens

    def stream(self, ids: Any, sampling: Sampling, write: Any, key: Any) -> Answer:
        write("you")
        return Answer("you", 1, self.ended)


@pytest.mark.parametrize(("ended", "turns"), [("stop", 2), ("length", 2), ("interrupted", 2)])
def test_an_answer_that_was_stopped_stays_in_the_conversation(ended: Any, turns: int) -> None:
    shown: list[str] = []
    talk = Conversation(None, _Stub(ended), Sampling(), shown.append, has_adapter=False)  # type: ignore[arg-type]
    assert talk.say("the")
    assert [turn["content"] for turn in talk.turns] == ["the", "you"]
    assert "".join(shown).startswith("you")
    assert talk.say("   ")
    assert len(talk.turns) == turns
    assert not talk.say("/quit")
