"""Batches scored through backbone and head equal one sequence at a time through the whole model."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from reference import pair_sums, random_pairs
from tiny_models import tiny_model

from orpo_lightning.batching import TokenizedPair, pad_pairs
from orpo_lightning.logps import PairLogps
from orpo_lightning.modeling import add_lora, disable_dropout
from orpo_lightning.scoring import Scorer, score, take_apart

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "phi", "gemma2", "mixtral", "cohere", "granite"]


def reference_loss(model: Any, pairs: list[TokenizedPair]) -> torch.Tensor:
    """Return a sum in which every log-probability has its own coefficient, one sequence at a time."""
    sums = [pair_sums(model, pair) for pair in pairs]
    return weighted(
        *(torch.stack([one[name] for one in sums]) for name in ("chosen_sum", "rejected_sum", "prompt_sum"))
    )


def weighted(chosen: torch.Tensor, rejected: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Return a sum with a different coefficient for each entry."""
    grid = torch.linspace(0.3, 1.7, chosen.shape[0], dtype=chosen.dtype)
    return (grid * chosen).sum() - 0.5 * (grid.flip(0) * rejected).sum() + 0.25 * (grid**2 * prompt).sum()


def loss_of(policy: PairLogps) -> torch.Tensor:
    """Return the same sum of a scored batch."""
    return weighted(policy.chosen_sum, policy.rejected_sum, policy.prompt_sum)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every trainable parameter by name."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare gradients relative to the largest entry of each."""
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        scale = one.abs().max().clamp(min=1e-6)
        assert (found[name] - one).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", ["lora", "all"])
def test_log_probabilities_and_gradients_equal_one_sequence_at_a_time(family: str, trained: str) -> None:
    model: Any = tiny_model(family)
    disable_dropout(model)
    if trained == "lora":
        model = add_lora(
            model, r=4, alpha=4, dropout=0.0, targets="all-linear", variant="lora", init="gaussian", seed=1
        )
        for name, parameter in model.named_parameters():  # B = 0 would hide A's gradient
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.config.output_router_logits = False  # the router loss of a batch is not a sum over its sequences
    pairs = random_pairs(5, 128)
    scorer = take_apart(model)
    assert scorer.why_full_logits is None
    assert scorer.head is not None
    assert scorer.head.is_frozen is (trained == "lora")
    policy = score(scorer, pad_pairs(pairs, pad_id=2))
    sums = [pair_sums(model, pair) for pair in pairs]
    for name in ("chosen_sum", "rejected_sum", "prompt_sum"):
        expected = torch.stack([one[name] for one in sums])
        assert torch.allclose(getattr(policy, name), expected, rtol=1e-5, atol=1e-5), name
    found = gradients(model, loss_of(policy))
    assert_same(found, gradients(model, reference_loss(model, pairs)), 1e-5)


def test_a_lora_wrapped_head_takes_the_recomputing_path_and_gets_its_gradient() -> None:
    model = add_lora(
        tiny_model("llama"),
        r=4,
        alpha=4,
        dropout=0.0,
        targets=["q_proj", "lm_head"],
        variant="lora",
        init="gaussian",
    )
    pairs = random_pairs(3, 128)
    scorer = take_apart(model)
    assert scorer.head is not None
    assert not scorer.head.is_frozen
    found = gradients(model, loss_of(score(scorer, pad_pairs(pairs, pad_id=0))))
    assert any("lm_head" in name for name in found)
    assert_same(found, gradients(model, reference_loss(model, pairs)), 1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_trained_token_rows_get_their_gradient_in_embedding_and_head(tied: bool) -> None:
    model = add_lora(
        tiny_model("llama", tie_word_embeddings=tied),
        r=4,
        alpha=4,
        dropout=0.0,
        targets=["q_proj"],
        variant="lora",
        init="default",
        trainable_token_ids=[7, 9],
    )
    pairs = [TokenizedPair([5, 7], [9, 7], [7, 11, 9])]
    scorer = take_apart(model)
    found = gradients(model, loss_of(score(scorer, pad_pairs(pairs, pad_id=0))))
    rows = [grad for name, grad in found.items() if "trainable_tokens" in name]
    assert [tuple(grad.shape) for grad in rows] == [(2, 64)] * (1 if tied else 2)
    assert all(grad.abs().max() > 0 for grad in rows)
    assert_same(found, gradients(model, reference_loss(model, pairs)), 1e-5)


def test_more_padding_changes_nothing() -> None:
    model = tiny_model("mistral")
    short, long = random_pairs(2, 128), [*random_pairs(2, 128), TokenizedPair([3] * 20, [4] * 20, [5] * 30)]
    scorer = take_apart(model)
    alone, together = (score(scorer, pad_pairs(pairs, pad_id=0)) for pairs in (short, long))
    assert torch.allclose(alone.chosen_sum, together.chosen_sum[:2], rtol=1e-5, atol=1e-5)
    assert torch.allclose(alone.rejected_sum, together.rejected_sum[:2], rtol=1e-5, atol=1e-5)


def test_a_model_whose_head_is_not_its_last_step_is_served_by_full_logits_and_says_why() -> None:
    model = tiny_model("llama")
    original = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    model.forward = shifted
    scorer = take_apart(model)
    assert "logits are not its head's output" in (scorer.why_full_logits or "")
    pairs = random_pairs(3, 128)
    policy = score(scorer, pad_pairs(pairs, pad_id=0))
    expected = torch.stack([pair_sums(model, pair)["chosen_sum"] for pair in pairs])
    assert torch.allclose(policy.chosen_sum, expected, rtol=1e-5, atol=1e-5)


def test_the_router_loss_is_the_models_own() -> None:
    model = tiny_model("mixtral")
    batch = pad_pairs(random_pairs(3, 128), pad_id=0)
    policy = score(take_apart(model), batch)
    whole = model(**batch.model_inputs, output_router_logits=True)
    assert policy.router_loss is not None
    assert policy.router_loss.item() == pytest.approx(whole.aux_loss.item(), rel=1e-6)
    full = score(Scorer(model, why_full_logits="asked for"), batch)
    assert full.router_loss is not None
    assert full.router_loss.item() == pytest.approx(whole.aux_loss.item(), rel=1e-6)


def test_the_check_of_the_parts_leaves_every_module_in_its_mode(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    model = tiny_model("llama")
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    take_apart(model)
    assert [module.training for module in model.modules()] == before
