"""Keeps what each validated pair scored, and draws how margins and log-odds ratios are spread."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import torch

from orpo_lightning.objectives.orpo import log_odds
from orpo_lightning.observing.scored_pairs import PAIRS, ScoredPairs, Values, scored_pairs, write_pairs
from orpo_lightning.observing.tensorboard import writer_of

log = logging.getLogger(__name__)


class ValidatedPairs(lightning.Callback):
    """Writes `pairs.npz` after each validation of a training: what each pair's answers scored.

    Into TensorBoard go histograms of margins (chosen less rejected) and of log-odds ratios, those of the base
    beside those of now. Nothing is computed for it: the values are those that the validation adds up.

    Args:
        dirpath: folder of the file; the run's folder where left open.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        """Keep the place."""
        self.dirpath = dirpath
        self._said_why_not = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Gather the pairs of all ranks; the first one writes."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.sanity_checking or trainer.state.fn != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if getattr(data, "validation_pairs", None) is None or not hasattr(pl_module, "val_means"):
            return
        scored = _of_all_ranks(trainer, _of_this_rank(pl_module, data))
        if scored is None:
            self._say_why_not()
        elif trainer.is_global_zero:
            folder = Path(self.dirpath or trainer.default_root_dir)
            write_pairs(folder / PAIRS, scored, data.validation_pairs.whole, trainer.global_step)
            _draw(writer_of(trainer), scored, trainer.global_step)

    def _say_why_not(self) -> None:
        if not self._said_why_not:
            reason = "the objective does not report logps/chosen and logps/rejected pair by pair"
            log.info("no %s: %s", PAIRS, reason)
        self._said_why_not = True


def _of_this_rank(module: Any, data: Any) -> ScoredPairs | None:
    batches = [batch.indices for batch in data.validation_loader.plan.batches]
    base = None if module.base_logps is None else module.base_logps.values
    return scored_pairs(module.val_means.shares, module.val_means.with_shares, batches, base)


def _of_all_ranks(trainer: lightning.Trainer, own: ScoredPairs | None) -> ScoredPairs | None:
    parts: list[Any] = [own]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, own)
    return None if any(part is None for part in parts) else ScoredPairs.join(parts)


def _draw(writer: Any, scored: ScoredPairs, step: int) -> None:
    if writer is None:
        return
    for name, values in (("base", scored.base), ("now", scored.now)):
        known = values[~(values != values).any(axis=1)]
        if len(known):
            writer.add_histogram(f"margins/{name}", known[:, 0] - known[:, 1], step)
            writer.add_histogram(f"log_odds_ratios/{name}", _log_odds_ratios(known), step)


def _log_odds_ratios(values: Values) -> Values:
    odds = log_odds(torch.from_numpy(values))
    return (odds[:, 0] - odds[:, 1]).numpy()
