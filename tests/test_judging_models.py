"""Models that judge and are judged: rewards through the chat template; both layouts, base and adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import pair_sums, random_pairs
from stored_pairs import store
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from orpo_lightning import PreferenceDataModule
from orpo_lightning.data.table import PairTable
from orpo_lightning.errors import SurroundingsError, UsageError
from orpo_lightning.judging.answers import write_answers
from orpo_lightning.judging.kept import Kept
from orpo_lightning.judging.pairs import Question
from orpo_lightning.judging.reward import RewardModel
from orpo_lightning.judging.scoring import score_pairs, sides_of
from orpo_lightning.judging.verdicts import Comparison
from orpo_lightning.using.generation import Sampling
from orpo_lightning.using.trained import find, load

TURNS: list[Any] = [{"role": "user", "content": "Name a colour."}]


def reward_model(folder: Path, labels: int = 1, template: bool = True) -> str:
    tokenizer = tiny_tokenizer("chatml")
    if not template:
        tokenizer.chat_template = None
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=labels,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_reward_is_that_of_the_rendered_conversation(tmp_path: Path) -> None:
    judge = RewardModel(reward_model(tmp_path), accelerator="cpu")
    text = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\nBlue<|im_end|>\n"
    ids = tiny_tokenizer("chatml")(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        model: Any = LlamaForSequenceClassification.from_pretrained(tmp_path)
        wanted = float(model.eval()(input_ids=ids).logits)
    assert judge.reward(TURNS, "Blue") == pytest.approx(wanted, abs=1e-6)
    assert judge.reward("Name a colour.", "Blue") == judge.reward(TURNS, "Blue")


def test_the_higher_reward_wins_in_either_order(tmp_path: Path) -> None:
    judge = RewardModel(reward_model(tmp_path), accelerator="cpu")
    answers = ("Blue", "A long and winding answer")
    better = max(answers, key=lambda answer: judge.reward(TURNS, answer))
    asked = [Comparison(TURNS, *answers), Comparison(TURNS, *answers[::-1]), Comparison(TURNS, "x", "x")]
    found: dict[int, str] = {}
    judge.compare(asked, lambda place, reply: found.__setitem__(place, reply.verdict))
    wanted = ["first", "second"] if better == answers[0] else ["second", "first"]
    assert [found[place] for place in range(3)] == [*wanted, "tie"]


def test_verdicts_of_a_reward_model_are_none_of_another_in_its_place(tmp_path: Path) -> None:
    before = RewardModel(reward_model(tmp_path), accelerator="cpu").key
    assert RewardModel(str(tmp_path), accelerator="cpu").key == before
    weights = tmp_path / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1_000_000))  # what was trained on and saved again
    assert RewardModel(str(tmp_path), accelerator="cpu").key != before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_ends_the_judging_and_is_no_tie(value: float, tmp_path: Path) -> None:
    judge = RewardModel(reward_model(tmp_path), accelerator="cpu")
    with torch.no_grad():
        judge._model.score.weight.fill_(value)
    found: list[Any] = []
    with pytest.raises(SurroundingsError, match=r"--judge: .* gives the reward -?(nan|inf): its weights"):
        judge.compare([Comparison(TURNS, "Blue", "Red")], lambda *reply: found.append(reply))
    assert not found


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda folder: reward_model(folder, labels=2), UsageError, "one output, .* has 2"),
        (lambda folder: reward_model(folder, template=False), UsageError, "has no chat template"),
        (lambda folder: str(folder / "nowhere"), SurroundingsError, "--judge: .*nowhere"),
    ],
)
def test_what_is_no_reward_model_is_refused(make: Any, kind: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words):
        RewardModel(make(tmp_path), accelerator="cpu")


def test_a_language_model_is_not_given_a_random_head_and_asked(tmp_path: Path) -> None:
    tiny_model("llama", num_labels=1).save_pretrained(tmp_path)
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    with pytest.raises(SurroundingsError, match=r"lacks 1 weights of a reward model, first score.weight"):
        RewardModel(str(tmp_path), accelerator="cpu")


def test_answers_of_another_precision_or_another_end_are_written_anew(tiny_base: str, tmp_path: Path) -> None:
    trained, file = find(tiny_base), tmp_path / "answers.jsonl"
    model, tokenizer, _ = load(trained, accelerator="cpu")

    def kept() -> int:
        question, sides = Question(1, [5, 6, 7], "the"), sides_of(model, has_adapter=False)
        write_answers(model, tokenizer, trained, sides, [question], Sampling(3), Kept(file))
        return len(file.read_text().splitlines())

    assert [kept(), kept()] == [1, 1]
    model.generation_config.eos_token_id = [2, 40]
    assert kept() == 2
    model.double()
    assert kept() == 3


@pytest.fixture(scope="module")
def adapted() -> Any:
    """Return a tiny model with an adapter that changes a lot."""
    torch.manual_seed(3)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_base_and_adapter_in_one_pass_equal_one_pair_at_a_time(
    layout: Any, batch_size: int | None, adapted: Any, tmp_path: Path
) -> None:
    pairs = random_pairs(13, 128)
    table = PairTable.of([store(tmp_path / "pairs", pairs)])
    data = PreferenceDataModule(layout=layout, validation_batch_size=batch_size)
    data.processor = tiny_tokenizer("chatml")
    found = score_pairs(adapted, data, table, sides_of(adapted, has_adapter=True))
    assert found.layout.value == layout
    for name, side in sides_of(adapted, has_adapter=True).items():
        with torch.no_grad(), side():
            sums = [pair_sums(adapted, pair) for pair in pairs]
        for column in ("chosen", "rejected"):
            lengths = [len(getattr(pair, column)) for pair in pairs]
            wanted = [float(one[f"{column}_sum"]) / n for one, n in zip(sums, lengths, strict=True)]
            np.testing.assert_allclose(getattr(found.scores[name], column), wanted, atol=2e-5)
    assert not np.allclose(found.scores["base"].chosen, found.scores["adapter"].chosen, atol=1e-2)


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    table = PairTable.of([store(tmp_path / "pairs", random_pairs(3, 128))])
    table.sources[0].info.largest_token = 500
    data = PreferenceDataModule()
    data.processor = tiny_tokenizer("chatml")
    model: Any = tiny_model("llama")
    with pytest.raises(UsageError, match=r"token 500 .* the model's vocabulary has 128"):
        score_pairs(model, data, table, sides_of(model, has_adapter=False))


def test_a_model_that_gives_no_numbers_is_told_as_such(tmp_path: Path, tiny_base: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    table = PairTable.of([store(tmp_path / "pairs", random_pairs(3, 128))])
    data = PreferenceDataModule(layout="padded")
    data.processor = tiny_tokenizer("chatml")
    with pytest.raises(SurroundingsError, match="log-probabilities of 3 of 3 pairs are not finite"):
        score_pairs(model, data, table, sides_of(model, has_adapter=False))
