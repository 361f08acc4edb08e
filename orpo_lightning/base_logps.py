"""The base model's own log-probabilities of validation pairs: computed once, kept on disk, compared with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orpo_lightning.batching.packing import FILLER
from orpo_lightning.logps import PairLogps
from orpo_lightning.objectives.base import Mean, ObjectiveOutput
from orpo_lightning.sharding import is_sharded
from orpo_lightning.weights_digest import sum_of_bits, weights_digest

FOLDER = "base_logps"
_SIDES = ("chosen", "rejected")


class BaseLogps:
    """Mean token log-probabilities (n, 2) of n pairs under the base model; NaN where not known yet.

    Args:
        file: where they are kept; None keeps them in memory only.
        count: n.
        of_pairs: which pairs they are of, for the owner to tell.
    """

    def __init__(self, file: Path | None, count: int, of_pairs: str = "") -> None:
        """Read what is known already; a file that is damaged or of other pairs is made again."""
        self.file, self.of_pairs = file, of_pairs
        self._is_saved = True
        self.values = np.full((count, 2), np.nan, np.float32)
        try:
            stored = None if file is None else np.load(file)
        except (OSError, ValueError, EOFError):
            return
        if stored is not None and stored.shape == self.values.shape:
            self.values[:] = stored

    def of(
        self,
        pairs: Sequence[int],
        compute: Callable[[], Tensor],
        agree: Callable[[bool], bool] = bool,
    ) -> Tensor:
        """Return the values (B, 2) of some pairs; where one is not known, all are computed.

        Args:
            pairs: their numbers; a filler's value means nothing.
            compute: returns the values of all of them.
            agree: tells whether to compute, from whether it is needed here.
        """
        real = [place for place, pair in enumerate(pairs) if pair != FILLER]
        numbers = [pairs[place] for place in real]
        if agree(bool(np.isnan(self.values[numbers]).any())):
            self.values[numbers] = compute()[real].float().cpu().numpy()
            self._is_saved = False
        found = torch.zeros(len(pairs), 2, dtype=torch.float32)  # the default may be half here
        found[real] = torch.from_numpy(self.values[numbers])
        return found

    def merge(self, gathered: Tensor) -> None:
        """Take over what other ranks know, (ranks, n, 2)."""
        known = gathered.float().cpu().numpy()
        for values in known.reshape(-1, *self.values.shape):
            is_new = np.isnan(self.values) & ~np.isnan(values)
            self.values[is_new] = values[is_new]
            self._is_saved &= not is_new.any()

    def save(self) -> None:
        """Write the file, whole or not at all; without it they are only computed again."""
        if self.file is None or self._is_saved:
            return
        staging = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with staging.open("wb") as stream:
                np.save(stream, self.values)
            staging.replace(self.file)
            self._is_saved = True
        except OSError:
            with suppress(OSError):
                staging.unlink()


def add_change(
    output: ObjectiveOutput,
    base: BaseLogps,
    pairs: Sequence[int],
    score_base: Callable[[], PairLogps],
    agree: Callable[[bool], bool] = bool,
) -> ObjectiveOutput:
    """Add `logps_change/chosen`, `/rejected`, `/margins`: how far mean log-probabilities moved.

    `margins` is the change of chosen less rejected: what both have gained or lost alike is not in it.

    Args:
        output: of an objective that reports `logps/chosen` and `logps/rejected` pair by pair; any other is
            returned as it is.
        base: what is known of the base.
        pairs: the numbers of the batch's pairs.
        score_base: returns the base's log-probabilities of the batch.
        agree: as for `BaseLogps.of`.
    """
    found = [output.metrics.get(f"logps/{side}") for side in _SIDES]
    if any(mean is None or mean.pairs is None for mean in found):
        return output

    def compute() -> Tensor:
        return torch.stack(score_base().answer_means(), dim=1)

    shares = [mean.pairs for mean in found if mean is not None and mean.pairs is not None]
    before = base.of(pairs, compute, agree).to(shares[0].sums.device)
    moved = [share.sums - share.counts * before[:, i] for i, share in enumerate(shares)]
    moved.append(moved[0] - moved[1])
    counts = [share.counts for share in shares] + [shares[0].counts]
    changes = {
        f"logps_change/{name}": Mean.over(sums, count)
        for name, sums, count in zip((*_SIDES, "margins"), moved, counts, strict=True)
    }
    return output._replace(metrics={**output.metrics, **changes})


def with_change(module: Any, batch: Any, batch_idx: int, output: ObjectiveOutput) -> ObjectiveOutput:
    """Return a validation batch's output with the change from the base, where the module knows the base.

    Args:
        module: with `base_logps`, and with the adapter that is to be switched off.
        batch: of the data module's validation loader.
        batch_idx: which of its plan.
        output: of the batch.
    """
    if module.base_logps is None:
        return output
    switch_off = without_adapter(module.model, module.hparams["lora_init"])
    assert switch_off is not None

    def score_base() -> PairLogps:
        with switch_off():
            return module(batch)

    plan = module.trainer.datamodule.validation_loader.plan
    # A forward pass gathers weights that are shared out, so all ranks make it or none.
    together = partial(module.trainer.strategy.reduce_boolean_decision, all=False)
    agree = together if is_sharded(module) else bool
    return add_change(output, module.base_logps, plan.batches[batch_idx].indices, score_base, agree)


def without_adapter(model: Any, lora_init: str) -> Callable[[], AbstractContextManager[Any]] | None:
    """Return what switches the adapter off so that the base is left, or None where it would not be.

    PiSSA and LoftQ take the adapter's first values out of the base's weights; without LoRA the base is lost
    with the first step.
    """
    switch = getattr(model, "disable_adapter", None)
    return switch if lora_init in ("default", "gaussian") else None


def fingerprint(model: nn.Module, **settings: Any) -> str:
    """Return a hash of a model's frozen weights and of whatever else decides their log-probabilities."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad and "lora_" not in n]
    if is_sharded(model):  # no rank has them all
        digest.update(weights_digest(frozen).encode())
        return digest.hexdigest()
    for name, weight in frozen:
        absmax = getattr(getattr(weight, "quant_state", None), "absmax", None)
        for tensor in (weight.detach(), absmax):
            if tensor is not None:
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {_bits(tensor)}".encode())
    return digest.hexdigest()


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> list[int]:
    """Return the sum of all values' bits, and some of them; whole numbers, so the same on every device."""
    bits = tensor.contiguous().view(_WHOLE[tensor.element_size()]).flatten()
    some = bits[:: max(1, len(bits) // 64)]
    return [int(sum_of_bits(bits)), *some.tolist()]
