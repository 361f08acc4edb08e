"""What makes a host wait for its GPU, counted in a training step: operations whose result has to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "configs" / "quickstart"
# On CUDA each of these copies something to the host first: a value, or how large the result will be.
_READ = {"_local_scalar_dense", "bincount", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim"}
_READ |= {"_unique", "_unique2", "unique_consecutive"}


class Reads(TorchDispatchMode):
    """Keeps the names of the operations that would wait."""

    def __init__(self) -> None:
        """Nothing has been read."""
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in _READ:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class OfEachBatch(lightning.Callback):
    """Counts from a micro-batch's start to its end."""

    def __init__(self) -> None:
        """No batch was seen."""
        self.names: list[list[str]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin to count."""
        self.reads = Reads()
        self.reads.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop."""
        self.reads.__exit__(None, None, None)
        self.names.append(self.reads.names)


def test_what_would_wait_is_counted() -> None:
    values = torch.arange(4)
    with Reads() as reads:
        values.sum().item()
        values[values > 1]
        values[torch.tensor([0, 1])]
        bool((values > 1).any())
        torch.bincount(values)
    assert reads.names == ["_local_scalar_dense", "index", "_local_scalar_dense", "bincount"]


def test_nothing_is_read_in_a_micro_batch_and_one_thing_in_an_optimizer_step() -> None:
    counted = OfEachBatch()
    trainer = make_trainer(
        max_steps=2,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        log_every_n_steps=50,
        callbacks=[counted],
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    data = PreferenceDataModule(
        train=str(QUICKSTART / "train.jsonl"),
        tokenizer=str(QUICKSTART / "model"),
        layout="shared_prefix",  # of padded rows transformers itself reads the mask
        batch_size=2,
    )
    module = PreferenceModule(str(QUICKSTART / "model"), lora_r=4, gradient_checkpointing=True)
    trainer.fit(module, datamodule=data)
    # The step's one is that of FiniteSteps, which keeps a gradient that is not finite from the weights.
    assert counted.names == [[], ["_local_scalar_dense"]] * 2
