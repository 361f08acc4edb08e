"""The real peak of a real training step on the CPU, and what a plan says to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from live_memory import LiveMemory
from torch import Tensor
from torch.utils.data import DataLoader
from training import make_trainer
from transformers import AutoConfig, AutoModelForCausalLM

from orpo_lightning import PreferenceModule
from orpo_lightning.batching import TokenizedPair, pad_pairs

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}


class StepPeak(lightning.Callback):
    """Measures the second step: by then the optimizer has its state, and the first step's gradients live."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self.peak = self.held = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Start to count, with what lives already."""
        if batch_idx == 1:
            self.memory = LiveMemory(_living(trainer, module, batch))
            self.held = self.memory.now
            self.memory.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop."""
        if batch_idx == 1:
            self.memory.__exit__(None, None, None)
            self.peak = self.memory.peak


def _living(trainer: Any, module: Any, batch: Any) -> Iterator[Tensor]:
    for parameter in module.parameters():
        yield parameter.detach()
        if parameter.grad is not None:
            yield parameter.grad
        if (state := getattr(parameter, "quant_state", None)) is not None:
            yield from _tensors([state.absmax, state.code, state.offset])
            if state.state2 is not None:
                yield from _tensors([state.state2.absmax, state.state2.code])
    yield from module.buffers()
    for state in trainer.optimizers[0].state.values():
        yield from _tensors(state.values())
    yield from _tensors([*batch.model_inputs.values(), *batch, *(batch.normalisers or ())])


def _tensors(values: Any) -> Iterator[Tensor]:
    yield from (value for value in values if isinstance(value, Tensor))


def save_model(folder: Path, family: str, **sizes: Any) -> str:
    """Write a random model of this size, and return its folder."""
    config = AutoConfig.for_model(family, **(SIZES | sizes))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def measure(
    base: str, lengths: tuple[int, int, int, int], *, precision: str = "32-true", **settings: Any
) -> StepPeak:
    """Train two steps on a batch of (pairs, prompt, chosen, rejected) and return the peak of the second."""
    pairs, prompt, chosen, rejected = lengths
    pair = TokenizedPair([1] * prompt, [2] * chosen, [3] * rejected)
    batch = pad_pairs([pair] * pairs, pad_id=0)
    module = PreferenceModule(base, **settings)
    callback = StepPeak()
    trainer = make_trainer(precision=precision, callbacks=[callback])
    trainer.fit(module, DataLoader([batch, batch], batch_size=None))
    return callback
