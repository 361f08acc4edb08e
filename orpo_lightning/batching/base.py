"""The seam between data and model: what a micro-batch of preference pairs is, whatever its layout."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

Layout = Literal["auto", "padded", "shared_prefix"]
"""What may be asked for; auto is shared_prefix where the model gives the same numbers."""


class TokenizedPair(NamedTuple):
    """One preference pair as token ids: a prompt and two answers, stop token included."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Normalisers(NamedTuple):
    """Totals over one whole optimizer step, all micro-batches on all ranks; each an int64 tensor of shape ().

    The loss of a micro-batch divided by these sums to the same value however the step was split. (Whole
    numbers: some precisions cast all floats of a batch, and above 65,504 fp16 has only infinity.)
    """

    pairs: Tensor
    prompt_tokens: Tensor
    completion_tokens: Tensor


class PairBatch(NamedTuple):
    """A micro-batch of B pairs in any layout; N scored targets.

    Sequences are numbered chosen 0..B-1, then rejected B..2B-1: `target_sequences` of pair i is i or B + i.
    Scored are the prompt and completion of each chosen sequence and the completion of each rejected one;
    a rejected prompt and padding never reach the vocabulary projection. A named tuple, so that pinning and
    device transfer know it.
    """

    model_inputs: dict[str, Any]
    """Keyword arguments the backbone is called with."""
    target_ids: Tensor
    """(N,) int64, the token to be predicted."""
    target_positions: Tensor
    """(N,) int64, where in the flattened hidden states that token is predicted; positions may repeat."""
    target_sequences: Tensor
    """(N,) int64, which sequence the target belongs to."""
    target_is_completion: Tensor
    """(N,) bool, True for answer tokens, False for the prompt tokens of a chosen sequence."""
    num_pairs: int
    """B."""
    normalisers: Normalisers | None = None
    """Totals of the optimizer step, or None: then the batch is normalised by its own totals."""
    is_filler: bool = False
    """Whether its pair stands for none, on a rank that had none left: nothing of it is counted."""
