"""What two splits have in common: a pair that was trained on says nothing about new ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from orpo_lightning.data.health.distributions import Numbers
from orpo_lightning.data.health.findings import EXAMPLES
from orpo_lightning.data.pair_keys import prompt_stands_in, stands_in
from orpo_lightning.data.table import PairTable


def shared(train: PairTable, other: PairTable, split: str) -> dict[str, Any]:
    """Return how many prompts and pairs of a split are also trained on, with the first places.

    Args:
        train: the pairs that are trained on.
        other: those of the other split, before any is left out because of this.
        split: its name.
    """
    keys, trained = other.keys, train.keys
    of_shared_prompt, same = prompt_stands_in(keys, trained), stands_in(keys, trained)
    return {
        "shared_prompts": len(np.unique(keys[of_shared_prompt, 0])),
        f"{split}_pairs_of_shared_prompts": int(of_shared_prompt.sum()),
        "shared_pairs": int(same.sum()),
        f"{split}_pairs": len(keys),
        "examples": _examples(train, other, trained[:, 0], keys[:, 0], np.flatnonzero(of_shared_prompt)),
    }


def _examples(
    train: PairTable, other: PairTable, trained: Numbers, prompts: Numbers, numbers: Numbers
) -> list[str]:
    first = numbers[:EXAMPLES]
    partners = [int(np.flatnonzero(trained == prompts[number])[0]) for number in first]
    theirs = other.select(torch.from_numpy(first)).places()
    ours = train.select(torch.tensor(partners, dtype=torch.int64)).places()
    return [f"{one} and {two}" for one, two in zip(theirs, ours, strict=True)]
