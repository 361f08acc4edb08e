"""The left-padded layout: every sequence a row of its own, all rows ending in the same column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from orpo_lightning.batching.base import Normalisers, PairBatch, TokenizedPair


def pair_lengths(pairs: Sequence[TokenizedPair]) -> Tensor:
    """Return (B, 3) int64: the tokens of prompt, chosen and rejected answer of each pair."""
    lengths = [[len(ids) for ids in pair] for pair in pairs]
    return torch.tensor(lengths, dtype=torch.int64).reshape(len(pairs), 3)


def count_targets(lengths: Tensor) -> Tensor:
    """Return (B, 3) int64: how many prompt, chosen and rejected tokens of each pair are scored.

    The first token of a sequence has no predictor: the prompt's, or the answer's where the prompt is empty. A
    pair that lacks a target on either side says nothing about a preference: none of its tokens is scored.

    Args:
        lengths: (B, 3) tokens of prompt, chosen and rejected, from `pair_lengths`.
    """
    prompt, answers = lengths[:, :1], lengths[:, 1:]
    answers = torch.where(prompt > 0, answers, (answers - 1).clamp(min=0))
    counts = torch.cat([(prompt - 1).clamp(min=0), answers], dim=1)
    has_weight = (answers > 0).all(dim=1, keepdim=True)
    return counts * has_weight


def pad_pairs(
    pairs: Sequence[TokenizedPair], pad_id: int, normalisers: Normalisers | None = None
) -> PairBatch:
    """Lay B pairs out as 2B rows padded on the left, chosen rows first.

    Args:
        pairs: B pairs; one with empty answers is carried along without a target.
        pad_id: fills the left; any id of the vocabulary will do: padding is told by position, never by id.
        normalisers: totals of the optimizer step these pairs are a part of.
    """
    lengths = pair_lengths(pairs)
    rows = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    prompts = lengths[:, 0].repeat(2)
    sizes = prompts + lengths[:, 1:].T.reshape(-1)
    width = max(1, int(sizes.max()))

    # (2B, width): where in its sequence each column stands; negative is padding.
    positions = torch.arange(width) - (width - sizes)[:, None]
    is_token = positions >= 0
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    input_ids[is_token] = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int64)

    is_completion = positions >= prompts[:, None]
    has_weight = (count_targets(lengths)[:, 1] > 0).repeat(2)
    is_chosen = torch.arange(len(rows)) < len(pairs)
    is_target = (positions >= 1) & (is_completion | is_chosen[:, None]) & has_weight[:, None]
    sequences, columns = is_target.nonzero(as_tuple=True)

    attention_mask = is_token.long()
    # A row that sees nothing gives NaN in some attention kernels; a sequence without tokens looks at one pad.
    attention_mask[:, -1] = 1
    return PairBatch(
        model_inputs={
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions.clamp(min=0),
        },
        target_ids=input_ids[is_target],
        target_positions=sequences * width + columns - 1,
        target_sequences=sequences,
        target_is_completion=is_completion[is_target],
        num_pairs=len(pairs),
        normalisers=normalisers,
    )
