"""The shared-prefix layout: every prompt once, no padding, all pairs one after the other in a single row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orpo_lightning.batching.base import Normalisers, PairBatch, TokenizedPair
from orpo_lightning.batching.padded import count_targets, pair_lengths

KEYWORD = "shared_prefix"
"""The name of the `SharedPrefix` among a batch's model inputs."""


class SharedPrefix(NamedTuple):
    """Which tokens of a flat row of T see which: what attention must know, and nothing else does.

    The row holds prompt, chosen answer and rejected answer of pair 0, then of pair 1, and so on. Its 2B
    sequences are numbered in that order: chosen 0, rejected 0, chosen 1, ... The queries of a chosen sequence
    are its prompt and answer, those of a rejected one its answer alone, so that every token of the row is a
    query once, in the row's own order. Keys are the whole sequence, its end aligned with the queries' end.
    """

    lengths: Sequence[Sequence[int]]
    """Tokens of prompt, chosen and rejected answer of each pair: numbers of the host, known without a GPU."""
    keys: Tensor
    """(K,) int64, where in the row each key stands, sequence by sequence."""
    query_ends: Tensor
    """(2B+1,) int32, 0 and where the queries of each sequence end."""
    key_ends: Tensor
    """(2B+1,) int32, 0 and where the keys of each sequence end in `keys`."""
    derived: dict[Any, Any]
    """What an attention backend makes of the rest, once for all layers."""

    @property
    def longest(self) -> int:
        """The tokens of the longest sequence."""
        return max(prompt + max(chosen, rejected) for prompt, chosen, rejected in self.lengths)


class _Tokens(NamedTuple):
    """Of each token of the flat row, (T,) int64."""

    pair: Tensor
    part: Tensor
    """0 in a prompt, 1 in a chosen, 2 in a rejected answer."""
    position: Tensor
    """In its own sequence: a rejected answer goes on where the prompt ended."""


def lay_flat(pairs: Sequence[TokenizedPair], normalisers: Normalisers | None = None) -> PairBatch:
    """Lay B pairs out as one row without padding, each prompt once.

    Args:
        pairs: B pairs; one with empty answers is carried along without a target.
        normalisers: totals of the optimizer step these pairs are a part of.
    """
    if not any(chain.from_iterable(pairs)):
        # No model takes a row without tokens; this one is of a pair without answers and so has no target.
        pairs = [TokenizedPair([0], [], []), *pairs[1:]]
    lengths = pair_lengths(pairs)
    ids = torch.tensor(list(chain.from_iterable(chain.from_iterable(pairs))), dtype=torch.int64)
    tokens = _describe(lengths)
    targets = _targets(tokens, lengths)
    # The first token of a rejected answer is predicted where the prompt ends, not by the token before it.
    follows_prompt = (tokens.part == 2) & (tokens.position == lengths[tokens.pair, 0])
    predictors = torch.arange(len(ids)) - 1 - torch.where(follows_prompt, lengths[tokens.pair, 1], 0)
    return PairBatch(
        model_inputs={
            "input_ids": ids[None],
            "position_ids": tokens.position[None],
            KEYWORD: _plan(lengths),
        },
        target_ids=ids[targets],
        target_positions=predictors[targets],
        target_sequences=(tokens.pair + len(pairs) * (tokens.part == 2))[targets],
        target_is_completion=(tokens.part > 0)[targets],
        num_pairs=len(pairs),
        normalisers=normalisers,
    )


def _ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """Return the numbers from starts[i] on, sizes[i] of them, for one i after the other."""
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + (starts - before).repeat_interleave(sizes)


def _describe(lengths: Tensor) -> _Tokens:
    parts = lengths.reshape(-1)
    part = torch.arange(len(parts)).repeat_interleave(parts)
    first = torch.stack([torch.zeros_like(lengths[:, 0]), lengths[:, 0], lengths[:, 0]], dim=1)
    return _Tokens(pair=part // 3, part=part % 3, position=_ranges(first.reshape(-1), parts))


def _targets(tokens: _Tokens, lengths: Tensor) -> Tensor:
    """Return (N,) which tokens are scored, those of the chosen sequences first, as in the padded layout."""
    has_weight = count_targets(lengths)[:, 1] > 0
    is_target = (tokens.position >= 1) & has_weight[tokens.pair]
    rejected = tokens.part == 2
    return torch.cat([(is_target & side).nonzero()[:, 0] for side in (~rejected, rejected)])


def _plan(lengths: Tensor) -> SharedPrefix:
    prompt, chosen, rejected = lengths.unbind(dim=1)
    start = lengths.sum(dim=1).cumsum(0) - lengths.sum(dim=1)
    # Each pair's keys are four stretches of the row: prompt, chosen answer, prompt again, rejected answer.
    starts = torch.stack([start, start + prompt, start, start + prompt + chosen], dim=1)
    sizes = torch.stack([prompt, chosen, prompt, rejected], dim=1)
    queries = torch.stack([prompt + chosen, rejected], dim=1)
    return SharedPrefix(
        lengths=tuple(tuple(pair) for pair in lengths.tolist()),
        keys=_ranges(starts.reshape(-1), sizes.reshape(-1)),
        query_ends=_ends(queries.reshape(-1)),
        key_ends=_ends(sizes.reshape(-1, 2).sum(dim=1)),
        derived={},
    )


def _ends(sizes: Tensor) -> Tensor:
    """Return 0 and the running sums, int32 as variable-length attention kernels want them."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).to(torch.int32)
