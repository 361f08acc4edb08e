"""The real peak of a real training step on the CPU, and what the plan says to it.

Run as a program, it prints the table of docs/memory.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bitsandbytes
import lightning
import torch
from live_memory import LiveMemory
from torch import Tensor
from torch.utils.data import DataLoader
from training import make_trainer
from transformers import AutoConfig, AutoModelForCausalLM

from orpo_lightning import PreferenceModule
from orpo_lightning.batching import TokenizedPair, pad_pairs
from orpo_lightning.batching.shared_prefix import KEYWORD, lay_flat
from orpo_lightning.modeling import SEVEN_PROJECTIONS
from orpo_lightning.planning.base import Optimizer, padded, shared_prefix
from orpo_lightning.planning.peak import Plan, plan
from orpo_lightning.planning.settings import training_of
from orpo_lightning.planning.shapes import read_model


class Shape(NamedTuple):
    """A Llama-like model and a batch for it."""

    hidden: int
    mlp: int
    layers: int
    vocabulary: int
    heads: int
    key_heads: int
    pairs: int
    prompt: int
    chosen: int
    rejected: int


SHAPES = {
    "square": Shape(128, 384, 4, 512, 4, 2, 2, 64, 64, 64),
    "large vocabulary": Shape(64, 256, 2, 4096, 4, 4, 3, 32, 32, 32),
    "long and wide": Shape(256, 512, 2, 256, 4, 1, 1, 96, 160, 160),
    "deep, padded": Shape(96, 288, 8, 1000, 6, 2, 2, 16, 48, 20),
}


class Case(NamedTuple):
    """One way to train, for the table."""

    name: str
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed
    precision: str = "32-true"
    family: str = "llama"
    accumulate: int = 1
    flat: bool = False
    optimizer: Optimizer = Optimizer("AdamW")


GALORE, BY_LAYERS = Optimizer("GaLoreAdamW", rank=8), Optimizer("LayerwiseGaLoreAdamW", rank=8)
WAYS = [
    Case("LoRA, fp32", {"lora_dropout": 0.0}),
    Case("LoRA with dropout, fp32"),
    Case("LoRA, bf16-mixed", {"lora_dropout": 0.0}, "bf16-mixed"),
    Case("LoRA with dropout, bf16-mixed", {}, "bf16-mixed"),
    Case("fp32 base, bf16-mixed", {"dtype": "float32"}, "bf16-mixed"),
    Case("NF4, fp32", {"quantization": "nf4"}),
    Case("NF4, bf16-mixed", {"quantization": "nf4"}, "bf16-mixed"),
    Case("LLM.int8()", {"quantization": "int8"}),
    Case("DoRA", {"lora_variant": "dora"}),
    Case("eager attention", {"attention": "eager"}),
    Case("AdamW8bit, accumulated", accumulate=2, optimizer=Optimizer("AdamW8bit")),
    Case("all weights, fp32", {"lora_r": 0}),
    Case("all weights, bf16-mixed", {"lora_r": 0}, "bf16-mixed"),
    Case("GaLore, fp32", {"lora_r": 0}, optimizer=GALORE),
    Case("GaLore by layers, fp32", {"lora_r": 0}, optimizer=BY_LAYERS),
    Case("GaLore by layers, bf16-mixed", {"lora_r": 0}, "bf16-mixed", optimizer=BY_LAYERS),
    Case("Qwen3", {}, family="qwen3"),
    Case("Gemma 2", {"attention": "eager"}, family="gemma2"),
]
FLAT = [
    Case("LoRA with dropout, fp32, shared prefixes", flat=True),
    Case("LoRA, bf16-mixed, shared prefixes", {"lora_dropout": 0.0}, "bf16-mixed", flat=True),
]


class StepPeak(lightning.Callback):
    """Measures the second step: by then the optimizer has its state, and gradients of the first live."""

    def __init__(self, micro_batch: int = 1) -> None:
        """Nothing is measured yet."""
        self.micro_batch = micro_batch
        self.peak = self.held = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Start to count, with what lives already."""
        if batch_idx == self.micro_batch:
            self.memory = LiveMemory(_living(trainer, module, batch))
            self.held = self.memory.now
            self.memory.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop."""
        if batch_idx == self.micro_batch:
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
        yield from _tensors([getattr(state.get("projector"), "ortho_matrix", None)])
    yield from _tensors([*batch.model_inputs.values(), *batch, *batch.model_inputs.get(KEYWORD, ())])


def _tensors(values: Any) -> Iterator[Tensor]:
    yield from (value for value in values if isinstance(value, Tensor))


def save_model(folder: Path, family: str, shape: Shape) -> str:
    """Write a random model of this shape, and return its folder."""
    config = AutoConfig.for_model(
        family,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        vocab_size=shape.vocabulary,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def _made(optimizer: Optimizer, groups: Any) -> torch.optim.Optimizer:
    if optimizer.galore:
        from orpo_lightning import galore

        # A new projection at every step: the step that is measured makes one too.
        return getattr(galore, optimizer.name)(groups, rank=optimizer.rank, update_proj_gap=1)
    if optimizer.name == "AdamW8bit":
        return bitsandbytes.optim.AdamW8bit(groups)
    return torch.optim.AdamW(groups, lr=5e-5, weight_decay=0.0)


def measure(base: str, shape: Shape, case: Case, *, checkpointing: bool) -> StepPeak:
    """Train two steps and return the peak of the second."""
    pair = TokenizedPair([1] * shape.prompt, [2] * shape.chosen, [3] * shape.rejected)
    pairs = [pair] * shape.pairs
    batch = lay_flat(pairs) if case.flat else pad_pairs(pairs, pad_id=0)
    settings = case.settings | {"gradient_checkpointing": checkpointing}
    module = PreferenceModule(base, optimizer=lambda groups: _made(case.optimizer, groups), **settings)
    callback = StepPeak(2 * case.accumulate - 1)
    trainer = make_trainer(
        precision=case.precision, callbacks=[callback], accumulate_grad_batches=case.accumulate
    )
    trainer.fit(module, DataLoader([batch] * 2 * case.accumulate, batch_size=None))
    return callback


def planned(base: str, shape: Shape, case: Case, *, checkpointing: bool, device: str = "cpu") -> Plan:
    """Return the plan of the same step."""
    model = read_model(AutoConfig.from_pretrained(base), SEVEN_PROJECTIONS)
    training = training_of(
        precision=case.precision,
        gradient_checkpointing=checkpointing,
        layers=len(model.layers),
        accumulate=case.accumulate,
        optimizer=case.optimizer,
        device=device,
        **({"attention": "sdpa"} | case.settings),
    )
    lengths = shape.pairs, shape.prompt, shape.chosen, shape.rejected
    rows = padded(*lengths, masked=shape.chosen != shape.rejected)
    return plan(model, training, shared_prefix(*lengths) if case.flat else rows)


def compare(shape: Shape, case: Case, *, checkpointing: bool) -> tuple[int, int]:
    """Return (measured, planned) bytes of a step's peak."""
    with tempfile.TemporaryDirectory() as folder:
        base = save_model(Path(folder), case.family, shape)
        found = measure(base, shape, case, checkpointing=checkpointing)
        return found.peak, planned(base, shape, case, checkpointing=checkpointing).total


def _rows() -> Iterator[tuple[Any, ...]]:
    for case in (WAYS[1], *FLAT):
        for name, shape in SHAPES.items():
            for checkpointing in (False, True):
                yield name, case.name, *_both(shape, case, checkpointing)
    for case in WAYS:
        for checkpointing in (False, True):
            yield "square", case.name, *_both(SHAPES["square"], case, checkpointing)


def _both(shape: Shape, case: Case, checkpointing: bool) -> tuple[bool, int, int]:
    return checkpointing, *compare(shape, case, checkpointing=checkpointing)


if __name__ == "__main__":
    print("| shape | trained | checkpointing | measured MB | planned MB | ratio |\n|---|---|---|---|---|---|")
    for shape_name, way, checkpointing, measured, expected in _rows():
        switch = "on" if checkpointing else "off"
        print(
            f"| {shape_name} | {way} | {switch} | {measured / 1e6:.2f} | {expected / 1e6:.2f} | "
            f"{expected / measured:.3f} |",
            flush=True,
        )
