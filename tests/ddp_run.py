"""Run by test_distributed.py: one optimizer step and a validation on N processes; results to a file."""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import lightning
import torch
from training import GradientRecorder, make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule
from orpo_lightning.batching import Layout


class Words(PreferenceDataModule):
    """Thirty-one ragged pairs: not divisible by anything."""

    def load_rows(self, split: str) -> list[dict[str, str]]:
        """Return the pairs of a split."""
        first = 0 if split == "train" else 100
        count = 12 if split == "train" else 31
        return [
            {
                "prompt": "count " * (1 + k % 4) + str(k),
                "chosen": " up" * (1 + k % 5) + str(k),
                "rejected": " down" * (1 + k % 3) + str(k),
            }
            for k in range(first, first + count)
        ]


def main(
    base: str, processes: int, batch_size: int, accumulate: int, tokens: int, layout: Layout, out: str
) -> None:
    """Fit one optimizer step of twelve pairs, validate, and save gradients and metrics from rank zero."""
    lightning.seed_everything(3)
    module = PreferenceModule(base, lora_r=4, lora_dropout=0.0, lora_init="gaussian")
    data = Words(
        tokenizer=base,
        layout=layout,
        batch_size=batch_size,
        tokens_per_batch=tokens or None,
        validation_batch_size=3,
        max_length=128,
        cache_dir=out + ".d",
    )
    recorder = GradientRecorder()
    trainer = make_trainer(
        max_steps=1,
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        accumulate_grad_batches=accumulate,
        callbacks=[recorder],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    metrics = {name: value.clone() for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        torch.save({"gradients": recorder.gradients, "metrics": metrics, "world": trainer.world_size}, out)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), *sys.argv[6:])
