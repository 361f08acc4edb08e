"""What the command line gives a run beside the configuration: its callbacks, its curves, where both go on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from orpo_lightning import runfolder
from orpo_lightning.callbacks import (
    AdapterExport,
    BestCheckpoint,
    Canary,
    Displacement,
    LostRanks,
    MemoryReport,
    Meters,
    PlainProgress,
    PlotLayout,
    RecordKeeper,
    ResumeCheckpoint,
    RunHeader,
    RunReport,
    Samples,
    StopAtSignal,
    ValidatedPairs,
    Verdict,
)
from orpo_lightning.observing.logger import CurvesLogger
from orpo_lightning.resuming import is_unlogged
from orpo_lightning.stop_signals import StopSignals

_IN_RUN_FOLDER = (AdapterExport, RecordKeeper, RunHeader, RunReport, Samples, ValidatedPairs, Verdict)


def run_callbacks(
    given: Sequence[Callback],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    header: dict[str, str],
    save_every: int,
    signals: StopSignals,
    is_preference: bool,
) -> list[Callback]:
    """Return the run's callbacks; one of the configuration stands instead of ours of its kind.

    All of ours, those of the configuration too, write into the run's folder where they name no other one.

    Args:
        given: those of the configuration.
        settings: `trainer` of the configuration.
        folder: of the run.
        header: rows for the header.
        save_every: steps between two checkpoints.
        signals: that the process is within.
        is_preference: whether the module is a PreferenceModule.
    """
    checkpoints = str(folder / runfolder.CHECKPOINTS)
    callbacks: list[Callback] = [RunHeader(header), LostRanks()]
    if settings.get("enable_progress_bar") is not False and not sys.stdout.isatty():
        callbacks.append(PlainProgress())
    if settings.get("enable_checkpointing") is not False:
        callbacks += [ResumeCheckpoint(checkpoints, save_every), BestCheckpoint(checkpoints)]
    callbacks.append(StopAtSignal(signals))
    if is_preference:
        callbacks += [Displacement(), AdapterExport(), MemoryReport(), Meters(), ValidatedPairs()]
        callbacks += [Canary(), Samples(), PlotLayout()]
    callbacks.append(RecordKeeper())  # a run is complete when all is written
    callbacks += [Verdict(), RunReport()]  # what all of that says
    for one in [*given, *callbacks]:
        # trainer.default_root_dir, where they would write else, may be set to a folder of many runs.
        if isinstance(one, _IN_RUN_FOLDER) and one.dirpath is None:
            one.dirpath = str(folder)
    return [ours for ours in callbacks if not any(isinstance(theirs, _kind(ours)) for theirs in given)]


def _kind(callback: Callback) -> type:
    return ProgressBar if isinstance(callback, ProgressBar) else type(callback)


def add_curves(trainer: lightning.Trainer, folder: Path, checkpoint: Mapping[str, Any] | None) -> None:
    """Log into `curves.jsonl` too, behind the user's loggers; where there are none, nowhere.

    Args:
        trainer: of the run.
        folder: of the run.
        checkpoint: that a validation or test is of; None for a training, whose steps are its own.
    """
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    step = None if checkpoint is None else checkpoint["global_step"]
    trainer.loggers = [*trainer.loggers, CurvesLogger(str(folder), step)]


def cut_curves(trainer: lightning.Trainer, checkpoint: Mapping[str, Any] | None) -> None:
    """Cut the curves of a run that goes on where its checkpoint stands: what came after comes anew.

    Args:
        trainer: of the run.
        checkpoint: that it goes on from; None for a run from the beginning.
    """
    first = 0
    if checkpoint is not None:
        step = checkpoint["global_step"]
        # A run that has ended has logged the values of its last step since, and does not do it again.
        first = step if is_unlogged(checkpoint) and step != trainer.max_steps else step + 1
    for logger in trainer.loggers:
        if isinstance(logger, CurvesLogger):
            logger.cut(first)
        elif isinstance(logger, TensorBoardLogger) and checkpoint is not None:
            logger._kwargs["purge_step"] = first
