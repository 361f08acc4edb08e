"""How well the device is used: its peak memory, and the share of its arithmetic that the model asks for."""

from __future__ import annotations

import logging
import resource
import sys
from typing import Any

import lightning
import torch

from orpo_lightning.batching import PairBatch
from orpo_lightning.callbacks.memory_report import sizes
from orpo_lightning.errors import UsageError
from orpo_lightning.planning.base import Model, Training
from orpo_lightning.planning.gpus import gpu_of_driver
from orpo_lightning.planning.speed import work
from orpo_lightning.recomputation import planned_training, read_shape

log = logging.getLogger(__name__)


class Meters(lightning.Callback):
    """Logs `train/peak_memory_mb` and, on a GPU whose peak is known, `train/mfu`.

    MFU is the share of the data sheet's half-precision peak that the arithmetic of the steps takes: matrix
    products and attention, forward and backward, of all tokens that are computed, without what is recomputed.
    Memory is the most that tensors took on a GPU, elsewhere the most that the process had resident.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._flops = 0.0
        self._peak: float | None = None
        self._plan: tuple[Model, Training] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """See whether the share of the peak can be known, and say so."""
        self._flops, self._plan = 0.0, None
        self._peak, reason = peak_of(pl_module.device, str(trainer.precision))
        if self._peak is not None:
            try:
                model = read_shape(pl_module)
                training = planned_training(trainer, pl_module, model)
                self._plan = (model, training._replace(recomputed=0))
            except (AttributeError, KeyError, TypeError, UsageError) as error:
                self._peak, reason = None, f"no plan for this model: {error}"
        log.info("train/mfu is %s: %s", "not logged" if self._peak is None else "logged", reason)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count what the micro-batch asks for, by its sizes alone."""
        if self._plan is not None and isinstance(batch, PairBatch) and batch.num_pairs:
            self._flops += work(*self._plan, sizes(batch)).total

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log where the module will; its clock still runs."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if getattr(pl_module, "grad_norm", None) is None or not every or trainer.global_step % every:
            return
        pl_module.log("train/peak_memory_mb", peak_memory_mb(pl_module.device), rank_zero_only=False)
        if self._peak is not None:
            share = self._flops / pl_module.speed.seconds / self._peak
            pl_module.log("train/mfu", share, rank_zero_only=False)
        self._flops = 0.0


def peak_of(device: torch.device, precision: str) -> tuple[float | None, str]:
    """Return the floating-point operations a second of a device's peak, None if unknown; and why."""
    if device.type != "cuda":
        return None, f"no peak is known of {device.type.upper()}"
    name = torch.cuda.get_device_name(device)
    gpu = gpu_of_driver(name)
    if gpu is None:
        return None, f"no peak is known of {name}"
    if "16" not in precision:
        return None, f"the peak of {gpu.name} is that of half precision, found {precision}"
    return gpu.teraflops * 1e12, f"against {gpu.teraflops:g} TFLOP/s of {gpu.name}"


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory that was in use so far, in 1e6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6
