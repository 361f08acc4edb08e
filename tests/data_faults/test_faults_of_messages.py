"""Conversations that are not what a template can render: rows D21 to D26 of the fault table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults import Prepare, amid, chats, left_out, refusal, said, spoken, texts, turn, write
from tiny_models import tiny_tokenizer

SKIP = " (--data.on_error skip leaves such rows out)"
ALTERNATING = (
    "{% for message in messages %}"
    "{% if message.role == 'system' or (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def told(prepare: Prepare, folder: Path, row: dict[str, Any], tokenizer: Any = None) -> str:
    """Return why a row stops the run, having checked its line, and that the others are trained without it."""
    path = write(folder / "x.jsonl", amid(row, chats()))
    message = refusal(prepare, path, tokenizer=tokenizer)
    assert message.startswith(f"{path}:21: ")
    assert message.endswith(SKIP)
    data = prepare(path, tokenizer=tokenizer, on_error="skip")
    assert left_out(data) == [(f"{path}:21", "broken row")]
    assert spoken(data) == said(chats())
    return message.removeprefix(f"{path}:21: ").removesuffix(SKIP)


def chat(prompt: Any = None, chosen: Any = None, rejected: Any = None) -> dict[str, Any]:
    """Return a row whose parts are given, or good."""
    given = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return chats(1, first=900)[0] | {key: value for key, value in given.items() if value is not None}


# D21


@pytest.mark.parametrize(
    ("role", "meant"),
    [("bot", "assistant"), ("human", "user"), ("gpt", "assistant"), ("developer", "system")],
)
@pytest.mark.parametrize("key", ["prompt", "chosen"])
def test_d21_an_unknown_role_is_named_with_the_known_ones_and_the_one_that_is_meant(
    key: str, role: str, meant: str, prepare: Prepare, tmp_path: Path
) -> None:
    message = told(prepare, tmp_path, chat(**{key: [turn(role, "Hi")]}))
    assert message.startswith(
        f"{key}[0]: role must be one of system, user, assistant, tool, found {role!r} "
        f"(write {meant!r} instead)"
    )


@pytest.mark.parametrize(
    ("role", "found"), [("narrator", "'narrator'"), (None, "null"), (3, "int 3"), (["user"], "a list")]
)
def test_d21_a_role_that_means_nothing_is_named_without_a_guess(
    role: Any, found: str, prepare: Prepare, tmp_path: Path
) -> None:
    message = told(prepare, tmp_path, chat([turn(role, "Hi")]))
    assert f"role must be one of system, user, assistant, tool, found {found} (read as" in message


# D22


@pytest.mark.parametrize("last", ["user", "system", "tool"])
def test_d22_an_answer_that_does_not_end_with_the_assistant_is_named(
    last: str, prepare: Prepare, tmp_path: Path
) -> None:
    message = told(prepare, tmp_path, chat(chosen=[turn("assistant", "Hi"), turn(last, "Ho")]))
    assert message.startswith(f"chosen: the last message must be from 'assistant', found {last!r}")


def test_d22_so_is_an_answer_without_any_message(prepare: Prepare, tmp_path: Path) -> None:
    message = told(prepare, tmp_path, chat(rejected=[]))
    assert message.startswith("rejected: the last message must be from 'assistant', found no message")


# D23

ODD = {
    "an assistant's turn first": [turn("assistant", "Hello!"), turn("user", "Hi")],
    "two users in a row": [turn("user", "Hi"), turn("user", "Are you there?")],
    "a system turn": [turn("system", "Be brief."), turn("user", "Hi")],
}


@pytest.mark.parametrize("kind", ODD)
def test_d23_turns_that_the_template_refuses_are_named_with_what_it_says(
    kind: str, prepare: Prepare, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = ALTERNATING
    if kind == "a system turn":
        row = chat([turn("system", "Be brief."), turn("user", "Hi"), turn("user", "Ho")])
    else:
        row = chat(ODD[kind])
    message = told(prepare, tmp_path, row, tokenizer)
    assert "roles must alternate user/assistant" in message


@pytest.mark.parametrize("kind", ODD)
def test_d23_turns_that_the_template_takes_are_trained_on(
    kind: str, prepare: Prepare, tmp_path: Path
) -> None:
    data = prepare(write(tmp_path / "x.jsonl", [chat(ODD[kind])]))
    prompt = data.processor.decode(data.train_dataset[0].prompt)
    assert [message["content"] in prompt for message in ODD[kind]] == [True, True]


# D24, D25


@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "expected a message with role and content, found keys 'role'"),
        ({"content": None}, "content must be text, found null"),
        ({"content": 5}, "content must be text, found int 5"),
        ({"content": True}, "content must be text, found true or false"),
        ({"content": {"text": "Hi"}}, "content must be text, found an object"),
        ({"text": "Hi"}, "expected a message with role and content, found keys 'role', 'text'"),
    ],
)
def test_d24_a_message_without_text_is_named(
    key: str, content: dict[str, Any], words: str, prepare: Prepare, tmp_path: Path
) -> None:
    role = "user" if key == "prompt" else "assistant"
    message = told(prepare, tmp_path, chat(**{key: [{"role": role, **content}]}))
    assert message.startswith(f"{key}[0]")
    assert words in message


@pytest.mark.parametrize(
    ("item", "found"), [("Hi", "text"), (5, "int 5"), (None, "null"), (["user", "Hi"], "a list")]
)
def test_d24_what_is_no_message_is_named(item: Any, found: str, prepare: Prepare, tmp_path: Path) -> None:
    message = told(prepare, tmp_path, chat([turn("user", "Hi"), item]))
    assert message.startswith(f"prompt[1]: expected a message with role and content, found {found}")


def test_d25_a_picture_is_named_and_that_only_text_is_read(prepare: Prepare, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x.png"}}]
    message = told(prepare, tmp_path, chat([turn("user", parts)]))
    assert message.startswith(
        "prompt[0].content[1]: text only: expected a part of type 'text', found type 'image_url'"
    )


def test_d25_parts_that_are_all_text_are_that_text(prepare: Prepare, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    row = chat([turn("user", parts)])
    assert spoken(prepare(write(tmp_path / "x.jsonl", [row])))[0][0] == "What is this?"


# D26


def test_d26_whole_conversations_that_part_before_the_answer_are_named_with_the_turn(
    prepare: Prepare, tmp_path: Path
) -> None:
    start = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "How are you?")]
    other = [*start[:2], turn("user", "Who are you?")]
    last = turn("assistant", "Well.")
    row = {"prompt": None, "chosen": [*start, last], "rejected": [*other, last]}
    message = told(prepare, tmp_path, row)
    assert message.startswith("chosen and rejected answer different prompts: turn 2 differs")


def test_d26_so_are_conversations_of_different_lengths(prepare: Prepare, tmp_path: Path) -> None:
    start, last = (
        [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Ho")],
        turn("assistant", "Yes."),
    )
    row = {"prompt": None, "chosen": [*start, last], "rejected": [start[0], last]}
    message = told(prepare, tmp_path, row)
    assert message.startswith(
        "chosen and rejected answer different prompts: turns before the answer: 3 (chosen), 1 (rejected)"
    )


def test_d26_so_is_an_answer_to_another_prompt_than_the_rows(prepare: Prepare, tmp_path: Path) -> None:
    row = chat([turn("user", "Hi")], [turn("user", "Ho"), turn("assistant", "Yes.")])
    assert told(prepare, tmp_path, row).startswith(
        "chosen begins with a user turn but does not repeat the prompt's"
    )


def test_d26_texts_without_a_prompt_that_begin_differently_are_named(
    prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in texts()]
    path = write(tmp_path / "x.jsonl", amid({"chosen": "Yes.", "rejected": "No."}, rows))
    message = refusal(prepare, path)
    assert message.startswith(
        f"{path}:21: there is no key 'prompt', and chosen and rejected do not begin alike; add the prompt"
    )
    assert spoken(prepare(path, on_error="skip")) == said(texts())
