"""Token rules: the prompt of inference, an exact seam, one stop token, one BOS; what is dropped or cut."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHATML_TEMPLATE, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from orpo_lightning.batching import TokenizedPair
from orpo_lightning.data import flags
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.token_rules import truncate
from orpo_lightning.data.tokenization import Chunk, pairs_of, tally, tokenize_records
from orpo_lightning.data.tokenizer import load_tokenizer
from orpo_lightning.errors import DataError, SurroundingsError, UsageError

# A template like Llama's or Mistral's: it writes BOS itself and ends answers with EOS.
BOS_TEMPLATE = (
    "<s>{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)


def words(eos: str | None = "</s>", added: str | None = None) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words: <unk> 0, <s> 1, </s> 2, a 3, b 4, ... z 28.

    Args:
        eos: the EOS token.
        added: a post-processor's template, such as "<s> $A".
    """
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if added:
        specials = [("<s>", 1), ("</s>", 2)]
        backend.post_processor = processors.TemplateProcessing(single=added, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos, unk_token="<unk>"
    )


def text(prompt: str, chosen: str, rejected: str, where: str = "x:1") -> PreferenceRecord:
    return PreferenceRecord(prompt, chosen, rejected, where)


def chat(prompt: str, chosen: str, rejected: str, where: str = "x:1") -> PreferenceRecord:
    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return PreferenceRecord(
        turn("user", prompt), turn("assistant", chosen), turn("assistant", rejected), where
    )


def chunks(*records: PreferenceRecord, tokenizer: Any, **rules: Any) -> list[Chunk]:
    return list(tokenize_records(records, tokenizer, **({"max_length": 1000} | rules)))


def tokenize(*records: PreferenceRecord, tokenizer: Any, **rules: Any) -> list[TokenizedPair]:
    """Return the pairs that are kept."""
    return pairs_of(chunks(*records, tokenizer=tokenizer, **rules))


def left_out(*records: PreferenceRecord, tokenizer: Any, **rules: Any) -> list[LeftOut]:
    return [item for chunk in chunks(*records, tokenizer=tokenizer, **rules) for item in chunk.left_out]


def dropped(*records: PreferenceRecord, tokenizer: Any, **rules: Any) -> dict[str, tuple[int, list[str]]]:
    return tally(left_out(*records, tokenizer=tokenizer, **rules))


# One stop token


@pytest.mark.parametrize(
    "ending", ["<|im_end|>\n", "<|im_end|>", "<|im_end|>\n<|im_end|>", "\n<|im_end|> \n"]
)
def test_an_answer_ends_with_exactly_one_stop_token_whatever_the_template_writes_behind(ending: str) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = CHATML_TEMPLATE.replace("'<|im_end|>' + '\n'", repr(ending))
    (pair,) = tokenize(chat("Hi", "yes", "no"), tokenizer=tokenizer)
    before = "\n" if ending.startswith("\n") else ""
    assert tokenizer.decode(pair.chosen) == f"yes{before}<|im_end|>"
    assert tokenizer.decode(pair.rejected) == f"no{before}<|im_end|>"


def test_text_without_a_stop_token_gets_the_eos_and_keeps_its_white_space() -> None:
    tokenizer = tiny_tokenizer("chatml")
    (pair,) = tokenize(text("Q:", " yes\n", " no"), tokenizer=tokenizer)
    assert tokenizer.decode(pair.chosen) == " yes\n<|im_end|>"
    assert tokenizer.decode(pair.rejected) == " no<|im_end|>"


def test_text_that_ends_with_the_stop_token_gets_no_second_one() -> None:
    (pair,) = tokenize(text("a", "b </s>", "c </s> </s>"), tokenizer=words())
    assert pair == ([3], [4, 2], [5, 2])


def test_an_unknown_last_word_is_no_stop_token() -> None:
    (pair,) = tokenize(text("a", "b ß", "c"), tokenizer=words())
    assert pair == ([3], [4, 0, 2], [5, 2])


def test_special_tokens_within_an_answer_stay() -> None:
    (pair,) = tokenize(text("a", "b </s> c", "c"), tokenizer=words())
    assert pair.chosen == [4, 2, 5, 2]


def test_a_tokenizer_without_any_stop_token_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"data\.tokenizer: it has no EOS token"):
        tokenize(text("a", "b", "c"), tokenizer=words(eos=None))


def test_the_stop_tokens_of_whole_answers_are_counted_and_cut_ones_apart() -> None:
    records = [text("a", "b", "c"), text("a", "b c d e f", "c")]
    (chunk,) = chunks(*records, tokenizer=words(), max_length=4, overlong="truncate")
    assert chunk.stop_tokens == {2: 3}
    assert chunk.cut_answers == 1
    assert list(chunk.flags) == [0, flags.CHOSEN_CUT]


# The prompt and its BOS


def test_the_prompt_is_what_the_template_gives_at_inference() -> None:
    tokenizer = tiny_tokenizer("chatml")
    record = chat("Hi the thing", "yes", "no")
    system = {"role": "system", "content": "Be brief."}
    record = record._replace(prompt=[system, *record.prompt])
    (pair,) = tokenize(record, tokenizer=tokenizer)
    assert (
        pair.prompt == tokenizer.apply_chat_template(record.prompt, add_generation_prompt=True)["input_ids"]
    )


@pytest.mark.parametrize("prompt", ["Hi", "<s> Hi"])
def test_a_text_prompt_begins_with_the_one_bos_that_the_tokenizer_adds(prompt: str) -> None:
    tokenizer = tiny_tokenizer("mistral")
    (pair,) = tokenize(text(prompt, " yes", " no"), tokenizer=tokenizer)
    assert pair.prompt[0] == 1
    assert (pair.prompt + pair.chosen).count(1) == 1


def test_a_template_that_writes_bos_gets_no_second_one_from_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer("mistral")
    tokenizer.chat_template = BOS_TEMPLATE
    (pair,) = tokenize(chat("Hi", "yes", "no"), tokenizer=tokenizer)
    assert pair.prompt[0] == 1
    assert (pair.prompt + pair.chosen).count(1) == 1
    assert pair.chosen.count(2) == pair.rejected.count(2) == 1


def test_a_template_that_writes_no_bos_gets_none_as_at_inference() -> None:
    tokenizer = tiny_tokenizer("mistral")
    tokenizer.chat_template = CHATML_TEMPLATE
    record = chat("Hi", "yes", "no")
    (pair,) = tokenize(record, tokenizer=tokenizer)
    assert (
        pair.prompt == tokenizer.apply_chat_template(record.prompt, add_generation_prompt=True)["input_ids"]
    )
    assert 1 not in pair.prompt + pair.chosen


def test_a_tokenizer_that_has_a_bos_but_does_not_add_it_is_taken_at_its_word() -> None:
    assert tokenize(text("a", "b", "c"), tokenizer=words()) == [([3], [4, 2], [5, 2])]


def test_an_eos_that_the_tokenizer_appends_does_not_end_the_prompt() -> None:
    tokenizer = words(added="<s> $A </s>")
    assert tokenize(text("a", "b", "c"), tokenizer=tokenizer) == [([1, 3], [4, 2], [5, 2])]


def test_an_empty_prompt_is_the_bos_alone_or_nothing() -> None:
    (pair,) = tokenize(text("", "b", "c"), tokenizer=words(added="<s> $A"), allow_empty_prompt=True)
    assert pair == ([1], [4, 2], [5, 2])
    (pair,) = tokenize(text("", "b", "c"), tokenizer=words(), allow_empty_prompt=True)
    assert pair == ([], [4, 2], [5, 2])


# The seam


@pytest.mark.parametrize("kind", ["chatml", "mistral"])
@pytest.mark.parametrize(
    ("prompt", "answer", "first"),
    [
        # Joined, the first, third and fourth text have a token across the seam: "_you", "the", "_the".
        ("Q: ", "you", "y"),
        ("Q:", " you", "_you"),
        ("Q: th", "e end", "e"),
        ("Q: ", "the end", "the"),
        ("Q:\n", "\nyou", "\n"),
    ],
)
def test_no_token_lies_across_the_seam(kind: str, prompt: str, answer: str, first: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    (pair,) = tokenize(text(prompt, answer, "x"), tokenizer=tokenizer)
    assert pair.prompt == tokenizer(prompt)["input_ids"]
    space = {"chatml": "Ġ", "mistral": "▁"}[kind]
    line_end = {"chatml": "Ċ", "mistral": "<0x0A>"}[kind]
    assert tokenizer.convert_ids_to_tokens(pair.chosen[0]) == first.replace("_", space).replace(
        "\n", line_end
    )
    # Neither lost nor added: a word mark in front of the answer would show as a second space.
    assert (
        tokenizer.decode(pair.prompt + pair.chosen[:-1], skip_special_tokens=True).strip() == prompt + answer
    )


def test_the_seam_of_two_answers_is_found_for_each_by_itself() -> None:
    tokenizer = tiny_tokenizer("chatml")
    (pair,) = tokenize(text("Q: th", "e", "!"), tokenizer=tokenizer)
    assert tokenizer.decode(pair.chosen) == "e<|im_end|>"
    assert tokenizer.decode(pair.rejected) == "!<|im_end|>"


# Templates that do not fit


def test_messages_without_a_template_are_an_error_that_names_the_setting() -> None:
    with pytest.raises(UsageError, match=r"x:7 holds messages .* set data\.chat_template"):
        tokenize(chat("Hi", "a", "b", "x:7"), tokenizer=tiny_tokenizer("mistral"))


def test_a_template_that_refuses_a_row_is_an_error_that_names_the_row() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = "{% if messages|length > 1 %}{{ raise_exception('no system') }}{% endif %}"
    (item,) = left_out(chat("Hi", "a", "b", "x:7"), tokenizer=tokenizer)
    assert item.is_broken
    assert item.detail == "x:7: the chat template cannot render this row: no system"


def test_a_template_that_does_not_continue_its_prompt_is_an_error_that_names_the_row() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = CHATML_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>bot\n")
    (item,) = left_out(chat("Hi", "a", "b", "x:7"), tokenizer=tokenizer)
    assert item.is_broken
    assert item.detail.startswith("x:7: the chat template does not render the chosen conversation")


# What is dropped


@pytest.mark.parametrize("answer", ["", "  \n", "</s>", " </s>\n"])
def test_pairs_with_an_answer_of_nothing_but_a_stop_token_are_dropped(answer: str) -> None:
    expected = {"empty answer": (2, ["x:1", "x:2"])}
    records = (text("a", answer, "b"), text("a", "b", answer, "x:2"))
    assert dropped(*records, tokenizer=words()) == expected
    messages = (chat("a", answer, "b"), chat("a", "b", answer, "x:2"))
    tokenizer = words()
    tokenizer.chat_template = BOS_TEMPLATE
    assert dropped(*messages, tokenizer=tokenizer) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("b", "b"), ("b", " b\n"), ("caf\u00e9", "cafe\u0301"), ("", " ")]
)
def test_pairs_whose_answers_read_the_same_are_dropped(chosen: str, rejected: str) -> None:
    reason = "identical answers" if chosen == rejected else "identical after normalisation"
    assert dropped(text("a", chosen, rejected), tokenizer=words()) == {reason: (1, ["x:1"])}
    tokenizer = words()
    tokenizer.chat_template = BOS_TEMPLATE
    assert dropped(chat("a", chosen, rejected), tokenizer=tokenizer) == {reason: (1, ["x:1"])}


def test_answers_of_the_same_tokens_are_dropped_as_identical() -> None:
    assert dropped(text("a", "b c", "b  c"), tokenizer=words()) == {"identical answers": (1, ["x:1"])}


def test_all_dropped_pairs_are_counted_and_the_first_five_named() -> None:
    records = [text("a", "b", "b", f"x:{i}") for i in range(1000)] + [text("a", "b", "c")]
    made = chunks(*records, tokenizer=words(), max_length=10)
    first = ["x:0", "x:1", "x:2", "x:3", "x:4"]
    assert tally(item for chunk in made for item in chunk.left_out) == {"identical answers": (1000, first)}
    assert [list(chunk.lengths) for chunk in made] == [[], [1, 2, 2]]


def test_pairs_keep_their_order_over_many_batches() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    records = [text(letters[i % 26], "b", "c") for i in range(1200)]
    pairs = tokenize(*records, tokenizer=words())
    assert [pair.prompt for pair in pairs] == [[3 + i % 26] for i in range(1200)]


# Long pairs: the prompt "a b c" has 3 tokens, "d e" with its stop token 3 and "f" 2.

LONG = text("a b c", "d e", "f", "x:9")


def test_a_pair_that_just_fits_is_kept_whole() -> None:
    whole = ([3, 4, 5], [6, 7, 2], [8, 2])
    assert tokenize(LONG, tokenizer=words(), max_length=6, max_prompt_length=3) == [whole]
    assert tokenize(LONG, tokenizer=words(), max_length=6, overlong="error") == [whole]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_length": 5}, "pair too long"),
        ({"max_length": 9, "max_prompt_length": 2}, "prompt too long"),
        ({"max_length": 3}, "prompt leaves no room for an answer"),
    ],
)
def test_long_pairs_are_dropped_and_counted_by_reason_or_an_error(
    limits: dict[str, int], reason: str
) -> None:
    assert dropped(LONG, tokenizer=words(), **limits) == {reason: (1, ["x:9"])}
    with pytest.raises(DataError, match=f"x:9: {reason}: 3 tokens of prompt and 3 of answer"):
        tokenize(LONG, tokenizer=words(), overlong="error", **limits)


def test_truncation_cuts_answers_on_the_right_and_a_cut_answer_has_no_stop_token() -> None:
    assert tokenize(LONG, tokenizer=words(), max_length=5, overlong="truncate") == [
        ([3, 4, 5], [6, 7], [8, 2])
    ]


def test_truncation_cuts_the_prompt_on_the_left_and_keeps_its_bos() -> None:
    limits: dict[str, Any] = {"max_length": 5, "max_prompt_length": 2, "overlong": "truncate"}
    assert tokenize(LONG, tokenizer=words(), **limits) == [([4, 5], [6, 7, 2], [8, 2])]
    assert tokenize(LONG, tokenizer=words(added="<s> $A"), **limits) == [([1, 5], [6, 7, 2], [8, 2])]


def test_a_prompt_limit_of_one_token_leaves_the_bos() -> None:
    pair = TokenizedPair([1, 3, 4], [5], [6])
    assert truncate(pair, max_length=2, max_prompt_length=1, bos=1) == ([1], [5], [6])
    assert truncate(pair, max_length=2, max_prompt_length=1, bos=None) == ([4], [5], [6])


def test_pairs_that_truncation_leaves_nothing_to_learn_from_are_dropped() -> None:
    limits: dict[str, Any] = {"tokenizer": words(), "overlong": "truncate"}
    assert dropped(LONG, max_length=3, **limits) == {"prompt leaves no room for an answer": (1, ["x:9"])}
    alike = text("a", "b c d", "b c e")
    assert dropped(alike, max_length=3, **limits) == {"identical after truncation": (1, ["x:1"])}
    assert dropped(alike, max_length=4, **limits) == {}


# Loading a tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer("mistral").save_pretrained(path)
    return str(path)


def test_a_tokenizer_without_a_pad_token_pads_left_with_eos_and_its_vocabulary_stays(folder: str) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == len(tiny_tokenizer("mistral"))


def test_a_pad_token_of_its_own_stays(tmp_path: Path) -> None:
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<|endoftext|>"


def test_a_chat_template_is_given_itself_or_as_a_file(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML_TEMPLATE)
    assert load_tokenizer(folder).chat_template is None
    assert load_tokenizer(folder, chat_template=CHATML_TEMPLATE).chat_template == CHATML_TEMPLATE
    assert load_tokenizer(folder, chat_template=str(path)).chat_template == CHATML_TEMPLATE
    path.write_text(CHATML_TEMPLATE, encoding="utf-8-sig")
    assert load_tokenizer(folder, chat_template=str(path)).chat_template == CHATML_TEMPLATE
    with pytest.raises(UsageError, match=r"data\.chat_template: .*'chatnl'"):
        load_tokenizer(folder, chat_template="chatnl")


def test_a_missing_tokenizer_is_named_in_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(
        SurroundingsError, match=re.escape(f"data.tokenizer: cannot load {missing!r}")
    ) as caught:
        load_tokenizer(missing)
    assert "\n" not in str(caught.value)
