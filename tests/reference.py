"""The slow, readable computation that the fast one is compared with: one sequence at a time, whole logits."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from orpo_lightning.batching import TokenizedPair


def random_pairs(count: int, vocabulary: int, seed: int = 0) -> list[TokenizedPair]:
    """Return ragged pairs of 1 to 9 tokens a part."""
    draw = random.Random(seed)

    def tokens() -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(draw.randint(1, 9))]

    return [TokenizedPair(tokens(), tokens(), tokens()) for _ in range(count)]


def sequence_logps(model: Any, tokens: list[int]) -> Tensor:
    """Return log p of every token but the first given those before it, (len - 1,) fp32."""
    ids = torch.tensor([tokens], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]


def pair_sums(model: Any, pair: TokenizedPair) -> dict[str, Tensor]:
    """Return the sums of one pair under the names of `PairLogps`, each of shape ()."""
    chosen = sequence_logps(model, pair.prompt + pair.chosen)
    rejected = sequence_logps(model, pair.prompt + pair.rejected)
    cut = len(pair.prompt) - 1
    return {
        "chosen_sum": chosen[cut:].sum(),
        "rejected_sum": rejected[cut:].sum(),
        "prompt_sum": chosen[:cut].sum(),
    }


def orpo_by_hand(model: Any, pairs: list[TokenizedPair], beta: float) -> Tensor:
    """Return the ORPO loss (Eq. 6) of all pairs as one batch, as in the paper; NLL over prompt and answer."""
    nll, tokens, ratio_loss = torch.zeros(()), 0, torch.zeros(())
    for pair in pairs:
        sums = pair_sums(model, pair)
        nll = nll - sums["chosen_sum"] - sums["prompt_sum"]
        tokens += len(pair.chosen) + len(pair.prompt) - 1
        p_chosen = torch.exp(sums["chosen_sum"] / len(pair.chosen))
        p_rejected = torch.exp(sums["rejected_sum"] / len(pair.rejected))
        odds_ratio = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
        ratio_loss = ratio_loss - torch.log(torch.sigmoid(torch.log(odds_ratio)))
    return nll / tokens + beta * ratio_loss / len(pairs)
