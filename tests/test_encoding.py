"""Fast encoding beside the rule itself: prompt and answer together, less the prompt's own tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tiny_models import CHATML_TEMPLATE, tiny_tokenizer

from orpo_lightning.data.encoding import Encoder
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.rendering import Renderer, Texts
from orpo_lightning.data.templates import TEMPLATES, read_template

WORDS = [
    "the",
    " the",
    "you",
    " you\n",
    "\n\n",
    " ",
    "  ",
    "and",
    "é",
    "中",
    "😀",
    "[INST]",
    "</s>",
    "<|im_end|>",
    ".",
]


def random_text(rng: random.Random, most: int) -> str:
    return "".join(rng.choices(WORDS, k=rng.randrange(1, most)))


@pytest.mark.parametrize("kind", ["chatml", "mistral"])
@pytest.mark.parametrize("framed", [True, False])
def test_answers_have_the_tokens_they_have_behind_their_whole_prompt(kind: str, framed: bool) -> None:
    rng, tokenizer = random.Random(0), tiny_tokenizer(kind)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start, end = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n") if framed else ("", "")
    texts = [
        Texts(start + random_text(rng, 12) + end, random_text(rng, 8), random_text(rng, 8), is_rendered=True)
        for _ in range(400)
    ]
    compared = 0
    for text, pair in zip(texts, Encoder(tokenizer).encode(texts), strict=True):
        assert pair.prompt == ids(text.prompt)
        for answer, found in ((text.chosen, pair.chosen), (text.rejected, pair.rejected)):
            whole = ids(text.prompt + answer)
            if whole[: len(pair.prompt)] == pair.prompt:
                assert found == whole[len(pair.prompt) :], (text.prompt, answer)
                compared += 1
    assert compared > 400


def test_a_pair_has_the_same_tokens_whatever_stands_beside_it() -> None:
    rng, encoder = random.Random(1), Encoder(tiny_tokenizer("chatml"))
    texts = [Texts(random_text(rng, 12), random_text(rng, 8), random_text(rng, 8), True) for _ in range(50)]
    assert [encoder.encode([text])[0] for text in texts] == encoder.encode(texts)


def test_a_text_of_millions_of_characters_is_cut_where_nobody_looks() -> None:
    tokenizer = tiny_tokenizer("chatml")
    long = Texts("the " * 400_000, "you " * 500_000, "you.", is_rendered=True)
    (pair,) = Encoder(tokenizer, longest=100).encode([long])
    assert 100 < len(pair.prompt) < 20_000
    assert 100 < len(pair.chosen) < 20_000
    assert pair.chosen[:100] == tokenizer("you " * 200, add_special_tokens=False)["input_ids"][:100]
    assert tokenizer.decode(pair.rejected) == "you."


# Templates of ours


def chat(tokenizer: Any, *turns: str, chosen: str = "Four.", rejected: str = "Five.") -> Any:
    roles = ["system", "user", "assistant", "user"][4 - len(turns) if len(turns) != 1 else 1 :]
    prompt = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return Renderer(tokenizer).render([PreferenceRecord(prompt, *answers, "x:1")])[0]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [("Hi",), ("Hi", "Yes?", "2 + 2?"), ("Be brief.", "Hi", "Yes?", "2 + 2?")])
def test_a_named_template_writes_every_turn_once_and_answers_go_on_from_it(
    name: str, turns: tuple[str, ...]
) -> None:
    tokenizer = tiny_tokenizer("mistral")
    tokenizer.chat_template = read_template(name)
    texts = chat(tokenizer, *turns)
    assert isinstance(texts, Texts)
    for turn in turns:
        assert texts.prompt.count(turn) == 1
    assert texts.chosen.strip().startswith("Four.")
    assert texts.rejected.strip().startswith("Five.")
    assert texts.chosen.replace("Four.", "Five.") == texts.rejected
    assert "<s><s>" not in texts.prompt


@pytest.mark.parametrize("name", ["ChatML", "llama_3", "LLAMA2"])
def test_the_name_of_a_template_is_read_whatever_its_case_and_marks(name: str) -> None:
    assert "{%" in read_template(name)


# Thoughts that templates write


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_an_empty_thought_that_the_template_writes_belongs_to_the_prompt() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = THINKING
    texts = chat(tokenizer, "Hi")
    assert texts.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert texts.chosen.startswith("Four.<|im_end|>")


def test_a_thought_that_only_the_generation_prompt_opens_is_left_out_and_said_so() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = CHATML_TEMPLATE.replace("assistant\n'", "assistant\n<think>\n'")
    renderer = Renderer(tokenizer)
    record = PreferenceRecord(
        [{"role": "user", "content": "Hi"}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "assistant", "content": "b"}],
        "x:1",
    )
    (texts,) = renderer.render([record])
    assert isinstance(texts, Texts)
    assert texts.prompt.endswith("<|im_start|>assistant\n")
    assert len(renderer.notes) == 1
    assert "<think>" in renderer.notes[0]


# Control tokens


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_control_token_in_a_message_is_encoded_as_the_text_it_is(token: str) -> None:
    tokenizer = tiny_tokenizer("chatml")
    texts = chat(tokenizer, f"Say {token} now", chosen=f"No {token}.")
    assert texts.has_control_tokens
    (pair,) = Encoder(tokenizer).encode([texts])
    control = tokenizer.convert_tokens_to_ids(token)
    plain = chat(tokenizer, "Say it now", chosen="No.")
    (reference,) = Encoder(tokenizer).encode([plain])
    # As many control tokens as the template writes around a text without any.
    assert pair.prompt.count(control) == reference.prompt.count(control)
    assert pair.chosen.count(control) == reference.chosen.count(control)
    assert tokenizer.decode(pair.chosen).startswith(f"No {token}.")


def test_a_template_that_fails_on_one_row_names_it_and_renders_the_others() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if messages[0].content == 'x' %}{{ raise_exception('no x') }}{% endif %}" + (CHATML_TEMPLATE)
    )
    answers = ([{"role": "assistant", "content": text}] for text in "ab")
    first = PreferenceRecord([{"role": "user", "content": "x"}], *answers, "x:1")
    second = first._replace(prompt=[{"role": "user", "content": "y"}], where="x:2")
    broken, fine = Renderer(tokenizer).render([first, second])
    assert isinstance(broken, LeftOut)
    assert broken.detail == "x:1: the chat template cannot render this row: no x"
    assert isinstance(fine, Texts)
