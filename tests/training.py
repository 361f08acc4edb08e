"""Small real training runs for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from orpo_lightning.batching import Normalisers, PairBatch, TokenizedPair, pad_pairs


def make_trainer(**settings: Any) -> lightning.Trainer:
    """Return a quiet CPU trainer."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "max_steps": 2,
    }
    return lightning.Trainer(**(defaults | settings))


def totals(pairs: Iterable[TokenizedPair]) -> Normalisers:
    """Return the normalisers of one optimizer step that these pairs make up."""
    chosen = list(pairs)
    prompt = sum(len(pair.prompt) - 1 for pair in chosen)
    completion = sum(len(pair.chosen) for pair in chosen)
    return Normalisers(*(torch.tensor(value) for value in (len(chosen), prompt, completion)))


def loader(pairs: list[TokenizedPair], batch_size: int, step: int | None = None) -> DataLoader[PairBatch]:
    """Return a loader over fixed batches; every `step` pairs share the normalisers of their step."""
    batches = []
    for start in range(0, len(pairs), batch_size):
        normalisers = None
        if step is not None:
            first = start - start % step
            normalisers = totals(pairs[first : first + step])
        batches.append(pad_pairs(pairs[start : start + batch_size], pad_id=0, normalisers=normalisers))
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class GradientRecorder(lightning.Callback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self) -> None:
        """Start empty."""
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Copy every gradient."""
        if not self.gradients:
            named = module.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
