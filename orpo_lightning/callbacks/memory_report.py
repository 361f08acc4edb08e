"""Says, when memory runs out, what the batch was, what was planned for it, and what would fit."""

from __future__ import annotations

import logging
import os
from typing import Any

import lightning
import torch

from orpo_lightning.batching import PairBatch
from orpo_lightning.batching.costs import longest_and_distinct
from orpo_lightning.batching.shared_prefix import KEYWORD
from orpo_lightning.errors import is_out_of_memory
from orpo_lightning.planning.base import Batch
from orpo_lightning.planning.gpus import GIB
from orpo_lightning.planning.out_of_memory import Facts, TokensPerBatch, lines
from orpo_lightning.recomputation import planned_training, read_shape
from orpo_lightning.sharding import is_sharded

log = logging.getLogger(__name__)


class MemoryReport(lightning.Callback):
    """Adds notes to an out-of-memory error of a step; the command line prints them in its place."""

    def __init__(self) -> None:
        """Start without a batch."""
        self._batch: Batch | None = None
        self._held_out: Batch | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's sizes, never its tensors."""
        self._batch = sizes(batch) if isinstance(batch, PairBatch) else None

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the sizes of a batch that nothing is trained on."""
        self._held_out = sizes(batch) if isinstance(batch, PairBatch) else None

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Forget them: what comes between batches is no matter of their size."""
        self._held_out = None

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Add the notes."""
        if not is_out_of_memory(exception):
            return
        if self._held_out is not None:
            exception.add_note(_of_held_out(self._held_out, _device(pl_module.device), trainer.testing))
            return
        if self._batch is None or not trainer.training:
            return
        if is_sharded(pl_module):  # the plan knows no shares
            return
        try:
            notes = lines(facts_of(trainer, pl_module, self._batch))
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a module of another make
            log.debug("no plan for this module: %s", error)
            return
        exception.add_note("\n".join(notes))


def _of_held_out(batch: Batch, device: tuple[str, int], testing: bool) -> str:
    """Return what to do about a batch of validation or test, whose size is a key of its own."""
    name, budget = device
    smaller = f"set data.validation_batch_size below {batch.pairs}, or " if batch.pairs > 1 else ""
    return (
        f"out of memory in a step of {'the test' if testing else 'the validation'}: {batch.pairs} pairs, "
        f"{batch.tokens:,} tokens, on {name} ({budget / GIB:.1f} GiB): {smaller}lower data.max_length"
    )


def sizes(batch: PairBatch) -> Batch:
    """Return a batch's sizes."""
    rows, width = batch.model_inputs["input_ids"].shape
    targets, tokens = batch.target_ids.shape[0], rows * width
    flat = batch.model_inputs.get(KEYWORD)
    if flat is not None:
        rows, width = 2 * batch.num_pairs, flat.longest
    return Batch(batch.num_pairs, tokens, targets, rows, width, masked=flat is None, flat=flat is not None)


def facts_of(trainer: Any, module: Any, batch: Batch) -> Facts:
    """Return what is known of a run that is out of memory."""
    name, budget = _device(module.device)
    model = read_shape(module)
    training = planned_training(trainer, module, model)
    tokens = _tokens_per_batch(trainer.datamodule)
    return Facts(
        model, training, batch, trainer.accumulate_grad_batches, name, budget, tokens_per_batch=tokens
    )


def _tokens_per_batch(data: Any) -> TokensPerBatch | None:
    budget = getattr(data, "tokens_per_batch", None)
    if budget is None:
        return None
    longest, _ = longest_and_distinct(data.train_dataset.lengths)
    return TokensPerBatch(budget, data.batch_size, int(longest.max()))


def _device(device: torch.device) -> tuple[str, int]:
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return facts.name, facts.total_memory
    return device.type.upper(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
