"""The log-probabilities of pairs under a model, and under its base in the same pass over the batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from orpo_lightning import hardware
from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.batching.shared_prefix import lay_flat
from orpo_lightning.batching.sorted_sampler import plan_validation
from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.data.loading import refuse_tokens_beyond, tokens_of
from orpo_lightning.data.table import PairTable
from orpo_lightning.errors import SurroundingsError
from orpo_lightning.judging.figures import Scores
from orpo_lightning.layouts import choose_layout
from orpo_lightning.scoring import score, take_apart

log = logging.getLogger(__name__)
_SAY_EVERY = 10.0

Sides = Mapping[str, Callable[[], AbstractContextManager[Any]]]
"""Of each name, what the model is put into to be the one of that name."""


class Pass(NamedTuple):
    """What came of one pass over the pairs."""

    scores: dict[str, Scores]
    layout: hardware.Choice


def sides_of(model: Any, has_adapter: bool) -> Sides:
    """Return what is scored of a model: base and adapter, the same weights with the adapter off and on."""
    if has_adapter:
        return {"base": model.disable_adapter, "adapter": nullcontext}
    return {"model": nullcontext}


@torch.no_grad()
def score_pairs(model: Any, data: PreferenceDataModule, pairs: PairTable, sides: Sides) -> Pass:
    """Score all pairs in batches of like length, in each batch once for each side.

    Args:
        model: in eval mode.
        data: says how large batches are, and their layout.
        pairs: to score.
        sides: what is scored.

    Raises:
        UsageError: the pairs have tokens that the model does not know.
        SurroundingsError: the model gives no numbers.
    """
    refuse_tokens_beyond(model.get_input_embeddings(), data.processor, pairs)
    with _precision(model):
        scorer = take_apart(model)
        layout = choose_layout(data.layout, scorer)
        collate = lay_flat if layout.value == "shared_prefix" else partial(pad_pairs, pad_id=0)
        plan = plan_validation(
            pairs.lengths,
            batch_size=data.validation_batch_size,
            training=(data.batch_size, data.tokens_per_batch),
            layout_tokens=tokens_of(collate),
            ranks=(0, 1),
        )
        found = {name: np.full((len(pairs), 2), np.nan) for name in sides}
        progress = _Progress(len(pairs))
        for planned in plan:
            batch = collate([pairs[index] for index in planned.indices])
            batch = move_data_to_device(batch, model.device)
            for name, side in sides.items():
                with side():
                    means = torch.stack(score(scorer, batch).answer_means(), dim=1)
                found[name][planned.indices] = means.double().cpu().numpy()
            progress.add(len(planned.indices))
    _refuse_no_numbers(found)
    return Pass({name: Scores(*values.T.copy()) for name, values in found.items()}, layout)


def _refuse_no_numbers(found: Mapping[str, np.ndarray[Any, Any]]) -> None:
    for name, values in found.items():
        if wrong := int((~np.isfinite(values)).any(axis=1).sum()):
            raise SurroundingsError(
                f"{name}: the log-probabilities of {wrong} of {len(values)} pairs are not finite: its "
                "weights are damaged, or too large for their precision"
            )


def _precision(model: Any) -> AbstractContextManager[Any]:
    """Return the precision of training: half-precision weights under autocast, as `test` has them."""
    if model.dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(model.device.type, dtype=model.dtype)


class _Progress:
    """A line every ten seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = self.said = time.monotonic()

    def add(self, pairs: int) -> None:
        self.done += pairs
        now = time.monotonic()
        if now - self.said >= _SAY_EVERY and self.done < self.total:
            rate = self.done / (now - self.start)
            log.info("scored %s of %s pairs, %.3g a second", f"{self.done:,}", f"{self.total:,}", rate)
            self.said = now
