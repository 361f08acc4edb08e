"""Answers: the tokens of training before them, the right end, and nothing of a neighbour in the batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tiny_models import CHATML_TEMPLATE, tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from orpo_lightning.data.prompts import Prompt, PromptEncoder, read_prompt
from orpo_lightning.data.records import to_record
from orpo_lightning.data.tokenization import pairs_of, tokenize_records
from orpo_lightning.errors import DataError, UsageError
from orpo_lightning.using.generation import Answerer, Sampling

TOKENIZER = tiny_tokenizer("chatml")
TURNS = [{"role": "user", "content": "the thing"}]
TEXTS = ["the", "an the other thing is on", "a" * 9, "You and the others", "i", "what is it then, you?"]
GREEDY = Sampling(max_new_tokens=12)


def answerer(family: str = "llama", **overrides: Any) -> Answerer:
    tokenizer = tiny_tokenizer("chatml")
    return Answerer(tiny_model(family, tokenizer=tokenizer, **overrides), tokenizer)


def prompts_of(one: Answerer) -> list[list[int]]:
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    return one.prompts.encode(Prompt(turn, f"row {n}") for n, turn in enumerate(turns))


# A window, soft-caps, learned positions, experts, and states instead of attention.
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "mixtral", "qwen3_next"])
@pytest.mark.parametrize(
    "sampling", [GREEDY, GREEDY._replace(temperature=0.8, top_p=0.9)], ids=["greedy", "drawn"]
)
def test_an_answer_in_a_batch_is_the_answer_alone(family: str, sampling: Sampling) -> None:
    # Bent as hard as in that family's other tests, most scores reach the cap: ties, which rounding decides.
    bent = {"final_logit_softcapping": 50.0, "tie_word_embeddings": False} if family == "gemma2" else {}
    one = answerer(family, **bent)
    prompts = prompts_of(one)
    together = one.answers(prompts, sampling, batch_size=len(prompts))
    alone = [one.answers([ids], sampling, keys=[place])[0] for place, ids in enumerate(prompts)]
    assert together == alone
    assert one.answers(prompts, sampling, batch_size=2) == alone
    assert len({answer.text for answer in together}) > 1


def test_greedy_answers_are_those_of_a_loop_over_the_whole_model() -> None:
    one = answerer()
    model = one._model
    for ids in prompts_of(one):
        tokens = list(ids)
        while len(tokens) - len(ids) < GREEDY.max_new_tokens and tokens[-1] not in one.stop_ids:
            with torch.no_grad():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        written = tokens[len(ids) :]
        found = one.answers([ids], GREEDY)[0]
        assert found.tokens == len(written)
        text = written[:-1] if written[-1] in one.stop_ids else written
        assert found.text == TOKENIZER.decode(text, skip_special_tokens=True)


def test_tokens_are_drawn_as_often_as_their_probabilities_say() -> None:
    one = answerer(initializer_range=0.1)
    ids = prompts_of(one)[0]
    with torch.no_grad():
        logits = one._model(input_ids=torch.tensor([ids])).logits[0, -1]
    shares = (logits / 0.7).softmax(0)
    best = shares.argsort(descending=True)[:3]
    draws = 600
    sampling = Sampling(max_new_tokens=1, temperature=0.7)
    # The tokens themselves: what an answer decodes to hides control tokens.
    written = one._write([ids] * draws, sampling, list(range(draws)))
    counted = Counter(row[0] for row in written)
    for token in best.tolist():
        share = shares[token].item()
        assert abs(counted[token] / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5
    narrow = one._write([ids] * 50, sampling._replace(top_p=shares[best[0]].item() / 2), list(range(50)))
    assert {row[0] for row in narrow} == {int(best[0])}
    assert one._write([ids] * 20, sampling._replace(seed=1), list(range(20))) != written[:20]


def test_every_token_that_may_end_an_answer_does() -> None:
    tokenizer = tiny_tokenizer("chatml")
    model = tiny_model("llama", tokenizer=tokenizer)
    tokenizer.eos_token = "<|endoftext|>"  # as of a base model: its template ends a turn with another token
    model.generation_config = GenerationConfig(eos_token_id=[5, 6])
    model.config.eos_token_id = 7
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")}
    assert Answerer(model, tokenizer).stop_ids == {5, 6, 7} | ends
    tokenizer.chat_template = None
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in Answerer(model, tokenizer).stop_ids


def test_an_answer_ends_before_its_stop_token_and_says_how_it_ended() -> None:
    one = answerer()
    prompts = prompts_of(one)
    whole = one._write([prompts[1]], GREEDY, [0])[0]
    one.stop_ids = {whole[4]}
    first = whole.index(whole[4])
    found = one.answers(prompts[1:2], GREEDY)[0]
    assert (found.ended, found.tokens) == ("stop", first + 1)
    assert found.text == TOKENIZER.decode(whole[:first], skip_special_tokens=True)
    one.stop_ids = set()
    assert one.answers(prompts[1:2], GREEDY)[0].ended == "length"


def test_streamed_text_is_the_answer_in_pieces() -> None:
    one = answerer()
    for place, ids in enumerate(prompts_of(one)):
        pieces: list[str] = []
        found = one.stream(ids, GREEDY, pieces.append)
        assert found == one.answers([ids], GREEDY)[0]
        assert "".join(pieces) == found.text
        assert place > 0 or len(pieces) > 1


def test_a_character_of_several_tokens_is_streamed_whole() -> None:
    one = answerer()
    text = "né 字 😀!"
    tokens = TOKENIZER(text)["input_ids"]
    pieces: list[str] = []

    def write(prompts: Any, sampling: Any, keys: Any, streamer: Any) -> list[list[int]]:
        streamer.put(torch.tensor([[1, 2]]))
        for token in tokens:
            streamer.put(torch.tensor([token]))
        return [tokens]

    one._write = write  # type: ignore[method-assign, assignment]
    assert one.stream([1, 2], GREEDY, pieces.append).text == text
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "😀" in "".join(pieces)


def test_ctrl_c_ends_an_answer_where_it_is() -> None:
    one = answerer()
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    found = one.stream(prompts_of(one)[1], GREEDY._replace(max_new_tokens=50), write)
    assert found.ended == "interrupted"
    assert found.text.startswith("".join(pieces))
    assert found.tokens < 50


def test_what_the_models_own_settings_say_changes_nothing_and_stays() -> None:
    one = answerer()
    plain = one.answers(prompts_of(one), GREEDY)
    model = one._model
    own = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_new_tokens=3, top_k=2)
    model.generation_config = own
    model.train()
    assert one.answers(prompts_of(one), GREEDY) == plain
    assert model.generation_config is own
    assert model.training
    assert model.model.layers[0].training


def test_an_answer_never_leaves_the_context() -> None:
    one = answerer("gpt2", max_position_embeddings=48)
    prompts = prompts_of(one)
    lengths = [len(ids) for ids in prompts]
    assert max(lengths) > 48 - 30
    found = one.answers(prompts, Sampling(max_new_tokens=30))
    assert all(answer.tokens + length <= 48 for answer, length in zip(found, lengths, strict=True))
    assert one.answers(prompts[1:2], Sampling(max_new_tokens=30))[0] == found[1]
    with pytest.raises(UsageError, match=r"48 tokens leaves no room .* context is 48 tokens"):
        one.answers([(prompts[0] * 9)[:48]], GREEDY)


@pytest.mark.parametrize("content", ["the thing", "say <|im_end|> to me", "é 字"])
def test_a_prompt_has_the_tokens_that_training_puts_before_an_answer(content: str) -> None:
    row = {
        "prompt": [{"role": "system", "content": "be nice"}, {"role": "user", "content": content}],
        "chosen": [{"role": "assistant", "content": "you"}],
        "rejected": [{"role": "assistant", "content": "or"}],
    }
    trained = pairs_of(tokenize_records([to_record(row, "row 1")], TOKENIZER, max_length=500))[0]
    encoder = PromptEncoder(TOKENIZER)
    asked = [read_prompt(row, "row 1"), read_prompt({"messages": row["prompt"]}, "row 2")]
    assert encoder.encode(asked) == [trained.prompt, trained.prompt]


@pytest.mark.parametrize("kind", ["chatml", "mistral"])
def test_a_text_is_taken_as_it_is_as_in_training(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    row = {"prompt": "Question: the\nAnswer:", "chosen": " you", "rejected": " or"}
    trained = pairs_of(tokenize_records([to_record(row, "row 1")], tokenizer, max_length=500))[0]
    assert PromptEncoder(tokenizer).encode([read_prompt({"prompt": row["prompt"]}, "row 1")]) == [
        trained.prompt
    ]


def test_a_template_that_writes_an_empty_thought_before_answers_does_so_here() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = CHATML_TEMPLATE.replace(
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"
        "{% endif %}",
    ).replace(
        "+ message['content']",
        "+ ('<think></think>' if message['role'] == 'assistant' else '') + message['content']",
    )
    encoder = PromptEncoder(tokenizer)
    ids = encoder.encode([Prompt(TURNS, "row 1")])[0]
    assert tokenizer.decode(ids).endswith("assistant\n<think></think>")
    assert any("enable_thinking=False" in note for note in encoder.notes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a"}, "p.jsonl:3: expected a key prompt or messages, found 'question'"),
        ({"prompt": 4}, "p.jsonl:3: prompt must be text or a list of messages, found int 4"),
        (
            {"messages": []},
            "p.jsonl:3: messages: the last message must be from 'user' or 'tool', found no message",
        ),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "found 'assistant'"),
        ({"prompt": [{"role": "x", "content": "a"}]}, r"p.jsonl:3: prompt\[0\]: role must be one of"),
        ({"prompt": "\ud800"}, "p.jsonl:3: prompt is not valid Unicode"),
    ],
)
def test_a_row_without_a_usable_prompt_is_told_with_its_place(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_prompt(row, "p.jsonl:3")


def test_an_empty_prompt_and_messages_without_a_template_are_refused() -> None:
    with pytest.raises(DataError, match="row 1: the prompt is empty"):
        PromptEncoder(TOKENIZER).encode([Prompt("", "row 1")])
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        PromptEncoder(tiny_tokenizer("mistral")).encode([Prompt(TURNS, "row 1")])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens: expected 1 or more, found 0"),
        ({"temperature": -1.0}, "--temperature: expected 0"),
        ({"temperature": float("nan")}, "--temperature: expected 0"),
        ({"top_p": 0.0}, "--top_p: expected a share above 0"),
        ({"top_p": 1.5}, "--top_p: expected a share above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Sampling(**values).check()
