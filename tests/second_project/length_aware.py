"""Somebody else's Lightning project: a data origin, a loss term and a metric of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning
import torch

from orpo_lightning import ORPO, ObjectiveOutput, PreferenceDataModule, PreferenceModule
from orpo_lightning.batching import PairBatch
from orpo_lightning.objectives import Mean, Term


class LengthAwareModule(PreferenceModule):
    """ORPO with a penalty on a large gap between the two log-probabilities, and that gap as a metric."""

    def __init__(self, *args: Any, gap_weight: float = 0.5, **kwargs: Any) -> None:
        """Keep the penalty's weight."""
        super().__init__(*args, **kwargs)
        self.gap_weight = gap_weight

    def step(self, batch: PairBatch) -> ObjectiveOutput:
        """Add the term and the metric to what ORPO gives."""
        output = super().step(batch)
        policy = self(batch)
        gap = (policy.chosen_sum / policy.chosen_tokens - policy.rejected_sum / policy.rejected_tokens).abs()
        count = torch.tensor(float(batch.num_pairs))
        step_count = count if batch.normalisers is None else batch.normalisers.pairs
        output.terms["gap_loss"] = Term(self.gap_weight, gap.sum(), count, step_count)
        output.metrics["gap"] = Mean(gap.detach().sum(), count)
        return output


class Sums(PreferenceDataModule):
    """Pairs that are made on the spot."""

    def load_rows(self, split: str) -> Iterable[dict[str, str]]:
        """Return sums, right and wrong."""
        low, high = (0, 6) if split == "train" else (6, 8)
        for a in range(low, high):
            for b in range(4):
                yield {"prompt": f"{a} + {b} =", "chosen": f" {a + b}", "rejected": f" {a + b + 1}"}


def main(base: str, cache: str) -> dict[str, float]:
    """Train four steps and return what was logged."""
    lightning.seed_everything(5)
    module = LengthAwareModule(
        base,
        lora_r=4,
        objective=ORPO(beta=0.2),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        warmup=0,
    )
    data = Sums(tokenizer=base, batch_size=2, max_length=64, cache_dir=cache)
    trainer = lightning.Trainer(
        max_steps=4,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    logged = dict(trainer.callback_metrics)
    trainer.validate(module, datamodule=data, verbose=False)
    return {name: value.item() for name, value in (logged | trainer.callback_metrics).items()}
