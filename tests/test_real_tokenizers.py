"""Token rules on tokenizers of real models, which `scripts/real_tokenizers FOLDER` fetches.

The reference encodes a whole conversation in one go and cuts it, token by token, at the character where the
answer begins. ORPO_TOKENIZERS names the folder; without it these tests are skipped.
"""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpo_lightning.batching import TokenizedPair
from orpo_lightning.data.encoding import Encoder
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.rendering import Renderer, Texts
from orpo_lightning.data.templates import TEMPLATES, read_template
from orpo_lightning.data.tokenization import pairs_of, tokenize_records

FOLDER = os.environ.get("ORPO_TOKENIZERS")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="set ORPO_TOKENIZERS to the folder that scripts/real_tokenizers wrote"
)


class Facts(NamedTuple):
    """What is known of a model's format, from its own documents."""

    template: str | None
    """Of ours, for a tokenizer that has none."""
    bos: str | None
    """What a rendered conversation begins with."""
    stop: str
    """What ends an answer."""
    text_bos: str | None
    """What the tokenizer puts in front of plain text."""
    options: dict[str, Any]
    """How inference asks for an answer without thoughts."""


FACTS = {
    "mistral": Facts("mistral", "<s>", "</s>", "<s>", {}),
    "llama-3": Facts(None, "<|begin_of_text|>", "<|eot_id|>", None, {}),
    "qwen-3": Facts(None, None, "<|im_end|>", None, {"enable_thinking": False}),
    "gemma-3": Facts(None, "<bos>", "<end_of_turn>", "<bos>", {}),
    "phi-3": Facts(None, "<s>", "<|end|>", "<s>", {}),
    "gpt-2": Facts("plain", None, "<|endoftext|>", None, {}),
    "smollm2": Facts(None, None, "<|im_end|>", None, {}),
}
NAMES = pytest.mark.parametrize("name", FACTS)

TURNS = (
    ["What is the capital of France?"],
    ["You are terse.", "Name two primes above 100.", "101 and 103.", "And   their\tsum?"],
    ["Résumé: naïve café — 北京の天気は? 😀👩‍👩‍👧", "Ça va.", "def f(x):\n    return x  # ok\n\n\n"],
    ["<think> in tags, [INST] in brackets & <b>bold</b>", "Fine.", "it's 3.14159, or 1e-9;\r\nisn't it?"],
)
ANSWERS = (
    ("Paris.", "Lyon, I think."),
    ("  204 ", "\n\nThe sum is 204.\n"),
    ("いい天気です。\n\n- a\n- b", "\tI don't know… maybe 雨?"),
    ("1" * 50, "ﬁne — “quoted” ½ \u00a0 x"),
)


MORE_THAN_THE_STOP = ("</s>", "<|end|>", "<|endoftext|>", "<|start_header_id|>")


@cache
def loaded(name: str) -> Any:
    from transformers import AutoTokenizer

    assert FOLDER
    tokenizer = AutoTokenizer.from_pretrained(Path(FOLDER) / name)
    template = FACTS[name].template
    if template is not None:
        assert tokenizer.chat_template is None
        tokenizer.chat_template = read_template(template)
    return tokenizer


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chats() -> list[PreferenceRecord]:
    records = []
    for texts in TURNS:
        roles = ["system", "user", "assistant", "user"][4 - len(texts) :] if len(texts) > 1 else ["user"]
        prompt = [turn(*pair) for pair in zip(roles, texts, strict=True)]
        for chosen, rejected in ANSWERS:
            answers = ([turn("assistant", chosen)], [turn("assistant", rejected)])
            records.append(PreferenceRecord(prompt, *answers, f"x:{len(records)}"))
    return records


def tokenized(records: list[PreferenceRecord], tokenizer: Any) -> list[TokenizedPair]:
    pairs = pairs_of(tokenize_records(records, tokenizer, max_length=100_000))
    assert len(pairs) == len(records)
    return pairs


def split(text: str, start: int, tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """Return the tokens of a text before and behind a character; None where one lies across it."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = encoded["offset_mapping"]
    if any(first < start < last for first, last in places):
        return None
    cut = next((number for number, (first, _) in enumerate(places) if first >= start), len(places))
    return encoded["input_ids"][:cut], encoded["input_ids"][cut:]


def up_to_stop(ids: list[int], stop: int) -> list[int]:
    assert stop in ids
    return ids[: ids.index(stop) + 1]


@NAMES
def test_prompt_and_answers_of_messages_are_the_parts_of_the_whole_conversation(name: str) -> None:
    tokenizer, facts = loaded(name), FACTS[name]
    stop = tokenizer.convert_tokens_to_ids(facts.stop)
    records = chats()
    for record, pair in zip(records, tokenized(records, tokenizer), strict=True):
        prompt = tokenizer.apply_chat_template(
            record.prompt, tokenize=False, add_generation_prompt=True, **facts.options
        )
        assert pair.prompt == tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for answer, found in ((record.chosen, pair.chosen), (record.rejected, pair.rejected)):
            whole = tokenizer.apply_chat_template([*record.prompt, *answer], tokenize=False)
            parts = split(whole, len(prompt), tokenizer)
            content = answer[0]["content"]  # type: ignore[index]
            # White space of prompt and answer would make one token, which inference never sees.
            if parts is None:
                assert name == "smollm2"
                assert content[0].isspace()
                assert tokenizer.decode(found) == content + facts.stop
                continue
            assert pair.prompt == parts[0]
            assert found == up_to_stop(parts[1], stop)


@NAMES
def test_a_conversation_has_one_bos_at_most_and_answers_one_stop_token(name: str) -> None:
    tokenizer, facts = loaded(name), FACTS[name]
    stop = tokenizer.convert_tokens_to_ids(facts.stop)
    for pair in tokenized(chats(), tokenizer):
        if facts.bos is None:
            assert tokenizer.bos_token_id not in pair.prompt[:1] or tokenizer.bos_token == "<|im_start|>"
        else:
            bos = tokenizer.convert_tokens_to_ids(facts.bos)
            assert pair.prompt[0] == bos
            assert [*pair.prompt, *pair.chosen, *pair.rejected].count(bos) == 1
        for answer in (pair.chosen, pair.rejected):
            assert answer[-1] == stop
            assert answer.count(stop) == 1


@NAMES
def test_plain_text_has_the_tokens_and_the_bos_of_inference_and_one_eos(name: str) -> None:
    tokenizer, facts = loaded(name), FACTS[name]
    records = [
        PreferenceRecord(f"{prompt}\n\nAnswer:", f" {chosen.strip()}", f" {rejected.strip()}", "x:1")
        for (*_, prompt) in TURNS
        for chosen, rejected in ANSWERS
    ]
    lead = [] if facts.text_bos is None else [tokenizer.convert_tokens_to_ids(facts.text_bos)]
    for record, pair in zip(records, tokenized(records, tokenizer), strict=True):
        assert pair.prompt == tokenizer(record.prompt)["input_ids"]
        for answer, found in ((record.chosen, pair.chosen), (record.rejected, pair.rejected)):
            before, behind = split(record.prompt + answer, len(record.prompt), tokenizer)
            assert pair.prompt == lead + before
            assert found == [*behind, tokenizer.eos_token_id]


@NAMES
def test_decoding_gives_the_conversation_back(name: str) -> None:
    tokenizer = loaded(name)
    records = chats()
    rendered = Renderer(tokenizer).render(records)
    for texts, pair in zip(rendered, tokenized(records, tokenizer), strict=True):
        assert isinstance(texts, Texts)
        for text, ids in ((texts.chosen, pair.chosen), (texts.rejected, pair.rejected)):
            whole = "".join((texts.prompt + text).split())
            decoded = tokenizer.decode(pair.prompt + ids, clean_up_tokenization_spaces=False)
            # White space aside: SentencePiece puts one in front. Composed: Qwen's normaliser does that.
            seen = composed("".join(decoded.split()))
            assert composed(whole).startswith(seen)
            # Behind the stop token templates write more: another one, or Llama 3's next header.
            assert composed(whole).removeprefix(seen) in ("", *MORE_THAN_THE_STOP)


def composed(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


# Control tokens in messages


@NAMES
@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_control_tokens_in_messages_are_text(name: str, where: str) -> None:
    tokenizer = loaded(name)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    for text in (FACTS[name].stop, FACTS[name].bos or FACTS[name].stop, tokenizer.eos_token):
        said = f"Write {text}{text} now"
        first, second = (
            PreferenceRecord(
                [turn("user", content if where == "prompt" else "Hi")],
                [turn("assistant", content if where == "answer" else "Yes.")],
                [turn("assistant", "No.")],
                "x:1",
            )
            for content in (said, "Write it now")
        )
        (pair,), (plain,) = tokenized([first], tokenizer), tokenized([second], tokenizer)
        for with_token, without in zip(pair, plain, strict=True):
            # The template's own control tokens, and no others.
            assert [i for i in with_token if i in special] == [i for i in without if i in special]
        ids = pair.prompt if where == "prompt" else pair.chosen
        # A special token in it would be decoded to the same text: but there is none, as counted above.
        assert f"Write {text}{text} now" in tokenizer.decode(ids)


@NAMES
def test_a_row_without_control_tokens_is_encoded_alike_by_the_guarded_tokenizer(name: str) -> None:
    tokenizer = loaded(name)
    rendered = [texts for texts in Renderer(tokenizer).render(chats()) if isinstance(texts, Texts)]
    encoder = Encoder(tokenizer)
    guarded = [texts._replace(has_control_tokens=True) for texts in rendered]
    assert encoder.encode(guarded) == encoder.encode(rendered)


# The quick way beside the rule


PIECES = (
    "the", " the", "The", " x", " ", "  ", "\n", "\n\n", "\t", "'s", " don't", "é", " été", "e\u0301", "北京",
    " 字", "😀", "👩‍👧", "1", " 42", "3.14", ".", ",", " -", "(", ")", "_", "▁", " ▁a", "[INST]", "[/INST]",
    "<s>", "</s>", "<think>", "</think>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<start_of_turn>",
    "\u00a0", "Ġ",
)  # fmt: skip


@NAMES
@pytest.mark.parametrize("seed", range(4))
def test_random_texts_have_the_tokens_that_the_rule_says(name: str, seed: int) -> None:
    tokenizer, rng = loaded(name), random.Random(seed)

    def some(most: int) -> str:
        return "".join(rng.choices(PIECES, k=rng.randrange(most)))

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    texts = [Texts(some(40), some(12), some(12), is_rendered=True) for _ in range(500)]
    compared = 0
    for text, pair in zip(texts, Encoder(tokenizer).encode(texts), strict=True):
        assert pair.prompt == ids(text.prompt)
        for answer, found in ((text.chosen, pair.chosen), (text.rejected, pair.rejected)):
            whole = ids(text.prompt + answer)
            if whole[: len(pair.prompt)] == pair.prompt:
                assert found == whole[len(pair.prompt) :], (text.prompt, answer)
                compared += 1
    assert compared > 400


@NAMES
@pytest.mark.parametrize("template", TEMPLATES)
def test_our_templates_render_every_conversation_for_every_tokenizer(name: str, template: str) -> None:
    from copy import copy

    tokenizer = copy(loaded(name))
    tokenizer.chat_template = read_template(template)
    for record, pair in zip(chats(), tokenized(chats(), tokenizer), strict=True):
        prompt = tokenizer.apply_chat_template(record.prompt, tokenize=False, add_generation_prompt=True)
        assert pair.prompt == tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for answer, found in ((record.chosen, pair.chosen), (record.rejected, pair.rejected)):
            assert answer[0]["content"].split()[0].split("\n")[0][:3] in tokenizer.decode(found)
