"""Keeps `record.json`: what a run was, how far it came, and how it ended."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning

from orpo_lightning import __version__, hardware
from orpo_lightning.callbacks.canary import Canary
from orpo_lightning.callbacks.header import RunHeader
from orpo_lightning.callbacks.meters import peak_memory_mb
from orpo_lightning.errors import SurroundingsError
from orpo_lightning.masking import mask_text
from orpo_lightning.modeling import parameter_counts
from orpo_lightning.observing.record import RECORD, RunRecord, WarningsOf, how_it_failed, versions

_PACKAGE_LOGGER = logging.getLogger("orpo_lightning")


class RecordKeeper(lightning.Callback):
    """Writes `record.json` into the run's folder: at the start, at each validation, and however the run ends.

    A run that was killed has an `ended` of null; one that goes on from a checkpoint goes on in its record.
    """

    dirpath: str | None = None
    """The run's folder, as the command line sets it; the Trainer's default_root_dir where left open."""

    def __init__(self) -> None:
        """Start without a record."""
        self.record: RunRecord | None = None
        self._warnings: WarningsOf | None = None
        self._is_earlier = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Begin, on the first process of a training."""
        if stage != "fit" or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(self.dirpath or trainer.default_root_dir) / RECORD
        self._is_earlier = trainer.ckpt_path is not None  # until this process trains too
        self.record = RunRecord(path, goes_on=self._is_earlier)
        self._warnings = WarningsOf(self.record)
        _PACKAGE_LOGGER.addHandler(self._warnings)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write what is known when all is loaded."""
        if self.record is None:
            return
        self._is_earlier = False
        header = next((one.shown for one in trainer.callbacks if isinstance(one, RunHeader)), {})  # type: ignore[attr-defined]
        self._write(
            trainer,
            pl_module,
            package=__version__,
            versions=versions(),
            device=_device(trainer, pl_module),
            header={label: mask_text(text) for label, text in header.items()},
            parameters=_parameters(pl_module),
            data=_data(trainer),
        )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write how far the run came."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write that it is done."""
        self._end(trainer, pl_module, "completed")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write why it is over; what could not even go on leaves the record as it is."""
        if self._is_earlier:
            return
        # The disk is full, say: what went wrong first is what is to be told.
        with suppress(OSError, SurroundingsError):
            self._end(trainer, pl_module, how_it_failed(exception))

    def _end(self, trainer: lightning.Trainer, module: Any, how: str) -> None:
        if self._warnings is not None:
            _PACKAGE_LOGGER.removeHandler(self._warnings)
        if self.record is not None:
            self.record.end(how)
            self._write(trainer, module)

    def _write(self, trainer: lightning.Trainer, module: Any, **facts: Any) -> None:
        if self.record is None:
            return
        canary = next((one.facts() for one in trainer.callbacks if isinstance(one, Canary)), None)  # type: ignore[attr-defined]
        known = {} if canary is None else {"canary": canary}
        peak = round(peak_memory_mb(module.device), 1)
        self.record.write(steps=trainer.global_step, peak_memory_mb=peak, **known, **facts)


def _device(trainer: lightning.Trainer, module: Any) -> str:
    name = hardware.detect_device(module.device.type).name
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def _parameters(module: Any) -> dict[str, int]:
    total, trained = parameter_counts(getattr(module, "model", None) or module)
    return {"total": total, "trained": trained}


def _data(trainer: Any) -> dict[str, Any] | None:
    report = getattr(getattr(trainer, "datamodule", None), "report", None)
    if report is None:
        return None
    return {
        split: {
            "pairs": held.pairs,
            "left_out": {reason: dropped.rows for reason, dropped in held.dropped.items()},
        }
        for split, held in report().items()
    }
