"""What each limit of the length would cost: how many pairs, how many tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from orpo_lightning.data.health.distributions import Numbers, share
from orpo_lightning.data.limits import Overlong

USUAL = (128, 256, 512, 1024, 2048, 4096)


def limit_costs(
    whole: Numbers, *, max_length: int, max_prompt_length: int | None = None, overlong: Overlong = "drop"
) -> list[dict[str, Any]]:
    """Return what the limit that is set and the usual ones would cost, the shortest first.

    Args:
        whole: (m, 3) tokens of prompt, chosen and rejected before any limit.
        max_length: the limit that is set.
        max_prompt_length: counts beside each limit that it is shorter than.
        overlong: "truncate" loses what is cut off, all else the whole pair.
    """
    total = int(whole.sum(dtype=np.int64))
    sizes = whole[:, 0] + np.maximum(whole[:, 1], whole[:, 2])
    costs = []
    for limit in sorted({*USUAL, max_length}):
        of_prompt = max_prompt_length if max_prompt_length and max_prompt_length < limit else None
        is_over = sizes > limit if of_prompt is None else (sizes > limit) | (whole[:, 0] > of_prompt)
        beyond = whole[is_over].astype(np.int64)
        lost = _lost(beyond, limit, of_prompt, overlong)
        costs.append(
            {
                "max_length": limit,
                "pairs_over": len(beyond),
                "share": share(len(beyond), len(whole)),
                "tokens_lost": lost,
                "tokens_lost_share": share(lost, total),
                "is_set": limit == max_length,
            }
        )
    return costs


def _lost(beyond: Numbers, limit: int, of_prompt: int | None, overlong: Overlong) -> int:
    """Return how many tokens of pairs beyond the limits are not trained on."""
    everything = int(beyond.sum())
    if overlong != "truncate":
        return everything
    kept = beyond[:, :1] if of_prompt is None else beyond[:, :1].clip(max=of_prompt)
    room = (limit - kept).clip(min=0)
    # A prompt that fills the limit leaves no answer to train on, so the whole pair goes.
    remains = (kept + np.minimum(beyond[:, 1:], room).sum(axis=1, keepdims=True)) * (room > 0)
    return everything - int(remains.sum())
