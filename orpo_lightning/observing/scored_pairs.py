"""`pairs.npz`: of each pair of a validation its log-probabilities, now and under the base."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orpo_lightning.batching.packing import FILLER
from orpo_lightning.data.table import PairTable
from orpo_lightning.full_disk import RUN_ELSEWHERE
from orpo_lightning.masking import mask_text
from orpo_lightning.whole_files import whole_file

PAIRS = "pairs.npz"
_SIDES = ("logps/chosen", "logps/rejected")
Values = npt.NDArray[np.float64]


class ScoredPairs(NamedTuple):
    """Pairs of a table with the mean log-probabilities of a token of their answers."""

    numbers: npt.NDArray[np.int64]
    """(n,) which of the table."""
    now: Values
    """(n, 2) chosen and rejected under the model as it is."""
    base: Values
    """(n, 2) under the base, NaN where that is not known."""

    @classmethod
    def join(cls, parts: Sequence[ScoredPairs]) -> ScoredPairs:
        """Return those of several ranks in the order of the table."""
        numbers, now, base = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(numbers, kind="stable")
        return cls(numbers[order], now[order], base[order])


def scored_pairs(
    shares: Sequence[Tensor],
    names: Sequence[str],
    batches: Sequence[Sequence[int]],
    base: npt.NDArray[np.float32] | None,
) -> ScoredPairs | None:
    """Return the pairs that one rank validated on; fillers and pairs that count nothing are left out.

    Args:
        shares: of each batch (B, names, 2): what each pair adds to the sum and to the count of each mean.
        names: of the means.
        batches: the pairs' numbers, batch by batch; more than there are shares of where a validation was
            limited.
        base: (whole table, 2) the base's values.

    Returns:
        None where the objective does not report `logps/chosen` and `logps/rejected` pair by pair.
    """
    if not set(names) >= {*_SIDES}:
        return None
    columns = [list(names).index(name) for name in _SIDES]
    rows = torch.cat([share[:, columns] for share in shares]).double().cpu().numpy()
    numbers = np.fromiter(chain.from_iterable(batches), np.int64)[: len(rows)]
    counts = (numbers != FILLER) & (rows[:, :, 1] > 0).all(axis=1)
    numbers, now = numbers[counts], rows[counts, :, 0] / rows[counts, :, 1]
    known = np.full_like(now, np.nan) if base is None else base[numbers].astype(np.float64)
    return ScoredPairs(numbers, now, known)


def write_pairs(path: Path, scored: ScoredPairs, table: PairTable, step: int) -> None:
    """Write the file, whole or not at all.

    Args:
        path: of the file.
        scored: the pairs.
        table: that their numbers point into.
        step: optimizer steps done.

    Raises:
        SurroundingsError: the disk is full.
    """
    some = table.select(torch.from_numpy(scored.numbers))
    lengths = some.lengths.numpy().astype(np.int32)
    columns = {
        "keys": some.keys,
        "chosen": scored.now[:, 0].astype(np.float32),
        "rejected": scored.now[:, 1].astype(np.float32),
        "base_chosen": scored.base[:, 0].astype(np.float32),
        "base_rejected": scored.base[:, 1].astype(np.float32),
        "tokens_prompt": lengths[:, 0],
        "tokens_chosen": lengths[:, 1],
        "tokens_rejected": lengths[:, 2],
        "source": some.source_of.numpy().astype(np.int16),
        "sources": np.array([mask_text(source.info.source) for source in table.sources]),
        "step": np.int64(step),
    }
    with whole_file(path, "the file of pairs", RUN_ELSEWHERE) as staging, staging.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **columns)
