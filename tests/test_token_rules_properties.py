"""What holds of the tokens of every pair, whatever the template and the texts: found by trying many."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from orpo_lightning.batching import TokenizedPair
from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.screening import EMPTY, EMPTY_PROMPT, IDENTICAL, IDENTICAL_NORMAL
from orpo_lightning.data.templates import TEMPLATES, read_template
from orpo_lightning.data.tokenization import pairs_of, tokenize_records

many = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
kinds = pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>")
NOTHING_TO_LEARN = {EMPTY, EMPTY_PROMPT, IDENTICAL, IDENTICAL_NORMAL}


@cache
def tokenizer_of(kind: str) -> Any:
    tokenizer = tiny_tokenizer("chatml" if kind == "byte-level" else "mistral")
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL]})
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "<|im_end|>" if kind == "byte-level" else "</s>"
    return tokenizer


# Templates made of parts


class Template(NamedTuple):
    """A chat template, and what it is made of."""

    begins: str
    header: str
    """Jinja, of `role`."""
    trims: bool
    ends: str
    """What stands behind each turn."""

    @property
    def text(self) -> str:
        """The template as a tokenizer takes it."""
        content = "message.content | trim" if self.trims else "message.content"
        turn = f"{{%- set role = message.role -%}}{{{{- {self.header} + ({content}) + {self.ends!r} -}}}}"
        opened = f"{{%- set role = 'assistant' -%}}{{{{- {self.header} -}}}}"
        opening = f"{{%- if add_generation_prompt -%}}{opened}{{%- endif -%}}"
        return f"{self.begins}{{%- for message in messages -%}}{turn}{{%- endfor -%}}{opening}"

    def answer(self, text: str, eos: str) -> str:
        """Return what an answer must be trained to be: its text and one stop token."""
        text = text.strip() if self.trims else text
        stops = [self.ends.find(token) + len(token) for token in SPECIAL if token in self.ends]
        return text + (self.ends[: min(stops)] if stops else self.ends + eos)


templates = st.builds(
    Template,
    begins=st.sampled_from(["", "{{ bos_token }}", "A chat.\n"]),
    header=st.sampled_from(
        [
            "'<|im_start|>' + role + '\n'",
            "'### ' + role + ':\n'",
            "role + ': '",
            "('[INST] ' if role == 'user' else ' [/INST]')",
            "'<|user|>' if role == 'user' else '<|assistant|>'",
            "'\n\n<' + role + '>'",
        ]
    ).map(lambda header: f"({header})".replace("\n", "\\n")),
    trims=st.booleans(),
    ends=st.sampled_from(
        [
            "<|im_end|>\n",
            "<|im_end|>",
            "</s>",
            " </s>",
            "</s>\n\n",
            "<|im_end|>\n<|im_end|>\n",
            "\n",
            "\n\n",
            "",
        ]
    ),
)

# Texts: any characters but the three that are reserved, words the tokenizers join, white space at the edges

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1\ufdd2")
pieces = st.sampled_from(
    ["the", " the ", "\n", "  ", "é", "中文", "😀", "you", "ing", ".", "[INST]", "###", "\u200b", "3"]
)
plain = st.lists(st.one_of(pieces, st.text(characters, max_size=4)), min_size=1, max_size=8).map("".join)
plain = plain.filter(lambda text: not any(token in text for token in SPECIAL))
tokens = st.sampled_from([*SPECIAL, "<|im_end", "</s", "<|im_<|im_end|>end|>", "<s></s>"])
marked = st.lists(st.one_of(pieces, tokens), min_size=1, max_size=8).map("".join)


def chat(prompt: list[str], chosen: str, rejected: str) -> PreferenceRecord:
    """Return a record whose prompt is turns of user and assistant, by turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(prompt)]
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return PreferenceRecord(turns, *answers, "x:1")


def chats(text: st.SearchStrategy[str]) -> st.SearchStrategy[PreferenceRecord]:
    turns = st.lists(text, min_size=1, max_size=3).map(lambda turns: turns[: 1 + 2 * ((len(turns) - 1) // 2)])
    return st.builds(chat, turns, text, text)


def texts(text: st.SearchStrategy[str]) -> st.SearchStrategy[PreferenceRecord]:
    return st.tuples(text, text, text).map(lambda three: PreferenceRecord(*three, "x:1"))


def tokenized(
    records: list[PreferenceRecord], tokenizer: Any, **limits: Any
) -> list[TokenizedPair | LeftOut]:
    """Return what became of each record, one at a time."""
    found: list[TokenizedPair | LeftOut] = []
    for record in records:
        (chunk,) = tokenize_records([record], tokenizer, **({"max_length": 100_000} | limits))
        found += [*pairs_of([chunk]), *chunk.left_out]
    assert len(found) == len(records)
    return found


def pair_of(record: PreferenceRecord, tokenizer: Any, **limits: Any) -> TokenizedPair:
    """Return the tokens of a record; passes over examples with nothing to learn."""
    (found,) = tokenized([record], tokenizer, **limits)
    if isinstance(found, LeftOut):
        assert found.reason in NOTHING_TO_LEARN, found
        assume(False)
    assert isinstance(found, TokenizedPair)
    return found


def under(template: Template | str, kind: str) -> Any:
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = template if isinstance(template, str) else template.text
    return tokenizer


def special_ids(tokenizer: Any) -> set[int]:
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


# Answers


@many
@given(templates, chats(st.one_of(plain, marked)))
def test_an_answer_reads_as_its_text_and_one_stop_token(template: Template, record: PreferenceRecord) -> None:
    tokenizer = under(template, "byte-level")
    pair = pair_of(record, tokenizer)
    for message, ids in ((record.chosen, pair.chosen), (record.rejected, pair.rejected)):
        assert tokenizer.decode(ids) == template.answer(message[0]["content"], tokenizer.eos_token)
        assert [token in special_ids(tokenizer) for token in ids] == [False] * (len(ids) - 1) + [True]


@kinds
@many
@given(templates, chats(st.one_of(plain, marked)))
def test_exchanging_chosen_and_rejected_exchanges_their_tokens(
    kind: str, template: Template, record: PreferenceRecord
) -> None:
    tokenizer = under(template, kind)
    pair = pair_of(record, tokenizer)
    exchanged = pair_of(record._replace(chosen=record.rejected, rejected=record.chosen), tokenizer)
    assert exchanged == TokenizedPair(pair.prompt, pair.rejected, pair.chosen)


@many
@given(texts(plain))
def test_raw_text_is_trained_on_letter_by_letter(record: PreferenceRecord) -> None:
    tokenizer = tokenizer_of("byte-level")
    pair = pair_of(record, tokenizer)
    assert pair.prompt == tokenizer(record.prompt)["input_ids"]
    assert tokenizer.decode(pair.prompt) == record.prompt
    assert tokenizer.decode(pair.chosen) == f"{record.chosen}<|im_end|>"
    assert tokenizer.decode(pair.rejected) == f"{record.rejected}<|im_end|>"


# Prompts


@kinds
@many
@given(templates, chats(plain), plain)
def test_the_prompt_is_what_the_tokenizer_makes_of_it_at_inference(
    kind: str, template: Template, record: PreferenceRecord, said: str
) -> None:
    tokenizer = under(template, kind)
    expected = tokenizer.apply_chat_template(record.prompt, add_generation_prompt=True)["input_ids"]
    assert pair_of(record, tokenizer).prompt == expected
    # Nor does it matter what the answers say.
    answer = [{"role": "assistant", "content": f"</s> {said} <|im_start|>"}]
    assert pair_of(record._replace(rejected=answer), tokenizer).prompt == expected


@kinds
@pytest.mark.parametrize("name", TEMPLATES)
@settings(many, max_examples=15)
@given(chats(plain))
def test_so_it_is_under_each_template_of_ours_and_answers_end_with_one_stop_token(
    kind: str, name: str, record: PreferenceRecord
) -> None:
    tokenizer = under(read_template(name), kind)
    pair = pair_of(record, tokenizer)
    assert (
        pair.prompt == tokenizer.apply_chat_template(record.prompt, add_generation_prompt=True)["input_ids"]
    )
    for ids in pair[1:]:
        assert [token in special_ids(tokenizer) for token in ids] == [False] * (len(ids) - 1) + [True]


@kinds
@many
@given(templates, chats(marked))
@example(Template("", "(role + ': ')", False, "</s>"), chat(["<|im_<|im_end|>end|>"], "</</s>s>", "no"))
def test_control_tokens_in_messages_never_become_control_tokens(
    kind: str, template: Template, record: PreferenceRecord
) -> None:
    tokenizer = under(template, kind)
    pair = pair_of(record, tokenizer)
    bare = [{**turn, "content": "x"} for turn in record.prompt]
    frame = tokenizer.apply_chat_template(bare, add_generation_prompt=True)["input_ids"]

    def controls(ids: list[int]) -> list[int]:
        return [token for token in ids if token in special_ids(tokenizer)]

    assert controls(pair.prompt) == controls(frame)
    assert [len(controls(ids)) for ids in pair[1:]] == [1, 1]


# Limits


@kinds
@many
@given(templates, chats(plain), st.integers(2, 60), st.one_of(st.none(), st.integers(1, 40)))
def test_truncation_keeps_the_limits_the_bos_the_prompts_end_and_the_answers_beginnings(
    kind: str, template: Template, record: PreferenceRecord, max_length: int, max_prompt: int | None
) -> None:
    assume(max_prompt is None or max_prompt < max_length)
    tokenizer = under(template, kind)
    whole = pair_of(record, tokenizer)
    limits = {"max_length": max_length, "max_prompt_length": max_prompt, "overlong": "truncate"}
    (cut,) = tokenized([record], tokenizer, **limits)
    if isinstance(cut, LeftOut):
        too_long = len(whole.prompt) if max_prompt is None else min(len(whole.prompt), max_prompt)
        assert too_long >= max_length or cut.reason == "identical after truncation"
        return
    assert len(cut.prompt) + max(len(cut.chosen), len(cut.rejected)) <= max_length
    assert len(cut.prompt) == min(len(whole.prompt), max_prompt or len(whole.prompt))
    bos = int(whole.prompt[:1] == [tokenizer.bos_token_id])
    assert cut.prompt[:bos] == whole.prompt[:bos]
    assert cut.prompt[bos:] == whole.prompt[len(whole.prompt) - len(cut.prompt) + bos :]
    for before, after in zip(whole[1:], cut[1:], strict=True):
        assert after == before[: max_length - len(cut.prompt)]
        assert len(after) > 0
        assert (after[-1] in special_ids(tokenizer)) == (after == before)
    assert cut.chosen != cut.rejected


# What stands beside a pair, and where it comes from


@kinds
@settings(many, max_examples=25)
@given(
    templates,
    st.lists(st.one_of(chats(plain), chats(marked), texts(plain)), min_size=2, max_size=6),
    st.randoms(),
)
def test_the_tokens_of_a_pair_do_not_depend_on_the_pairs_beside_it(
    kind: str, template: Template, records: list[PreferenceRecord], rng: Any
) -> None:
    tokenizer = under(template, kind)
    records = [record._replace(where=f"x:{number}") for number, record in enumerate(records)]
    alone = [found for found in tokenized(records, tokenizer) if isinstance(found, TokenizedPair)]
    (chunk,) = tokenize_records(records, tokenizer, max_length=100_000)
    assert pairs_of([chunk]) == alone
    by_place = dict(zip(chunk.places, alone, strict=True))
    rng.shuffle(records)
    (chunk,) = tokenize_records(records, tokenizer, max_length=100_000)
    assert dict(zip(chunk.places, pairs_of([chunk]), strict=True)) == by_place


@settings(many, max_examples=20)
@given(templates, st.lists(chats(st.one_of(plain, marked)), min_size=1, max_size=5))
def test_what_comes_from_the_cache_is_what_was_made(
    template: Template, records: list[PreferenceRecord]
) -> None:
    tokenizer = under(template, "byte-level")
    made = [found for found in tokenized(records, tokenizer) if isinstance(found, TokenizedPair)]
    assume(made)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        rows = [{key: getattr(record, key) for key in ("prompt", "chosen", "rejected")} for record in records]
        path.write_text("\n".join(map(json.dumps, rows)))
        for _ in range(2):
            data = PreferenceDataModule(
                train=str(path), cache_dir=folder, max_dropped=1.0, duplicates="keep", max_length=100_000
            )
            data.processor = tokenizer
            data.setup("fit")
            assert list(data.train_dataset) == made
