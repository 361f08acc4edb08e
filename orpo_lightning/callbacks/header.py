"""What a run is about to do, in aligned rows, before it does it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning

from orpo_lightning.batching.report import report_plan
from orpo_lightning.batching.sampler import PlannedSampler
from orpo_lightning.data.health import Rules, brief, examine, gather
from orpo_lightning.data.table import DROPPED
from orpo_lightning.modeling import unlearnable_stop_tokens

log = logging.getLogger(__name__)
_STEPS_REPORTED = 500


class RunHeader(lightning.Callback):
    """Prints model, precision, data and steps once, when fit, validate or test begins.

    Args:
        rows: further rows, label to text; one of a label that is there already replaces its text.
    """

    dirpath: str | None = None
    """The run's folder, as the command line sets it; the Trainer's default_root_dir where left open."""

    def __init__(self, rows: dict[str, str] | None = None) -> None:
        """Keep the rows."""
        self.rows = rows or {}
        self.shown: dict[str, str] = {}
        self._printed = False

    def on_sanity_check_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print before the first thing that takes time; any earlier, the steps done are not restored yet."""
        self._print(trainer, pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print, where there was no sanity check."""
        self._print(trainer, pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print, where validation is all that runs."""
        self._print(trainer, pl_module)

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print."""
        self._print(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say so where a resumed run had nothing left to do."""
        if not self._printed and trainer.is_global_zero:
            log.info(
                "nothing left to train: %d steps are done (trainer.max_steps %s, trainer.max_epochs %s)",
                trainer.global_step,
                trainer.max_steps,
                trainer.max_epochs,
            )

    def _print(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self._printed:
            return
        self._printed = True
        if trainer.state.fn == "fit":
            # The sanity check comes before it, the number of batches after it, and all ranks do it together.
            trainer.fit_loop.setup_data()
        if not trainer.is_global_zero:
            return
        rows = {**model_rows(module), "precision": str(trainer.precision), **data_rows(trainer)}
        if trainer.state.fn == "fit":
            rows |= {**left_out_rows(trainer, self.dirpath), **step_rows(trainer), **batch_rows(trainer)}
            rows |= stop_token_rows(trainer, module)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                rows |= getattr(callback, "header_rows", dict)()
        self.shown = {**rows, **self.rows}
        log.info("%s", aligned(self.shown))
        if trainer.state.fn == "fit":
            for line in suspicious_lines(trainer):
                log.warning("%s", line)


def aligned(rows: dict[str, str]) -> str:
    """Return one line per row, the texts below each other."""
    width = max(len(label) for label in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows.items())


def model_rows(module: Any) -> dict[str, str]:
    """Return the module's own rows, those of a module without `describe` being its class."""
    describe = getattr(module, "describe", None)
    return dict(describe()) if describe else {"model": type(module).__name__}


def data_rows(trainer: Any) -> dict[str, str]:
    """Return how many pairs each split keeps and drops, and why; nothing for a foreign data module."""
    report = getattr(getattr(trainer, "datamodule", None), "report", None)
    return {} if report is None else {split: str(held) for split, held in report().items()}


def left_out_rows(trainer: Any, folder: str | None = None) -> dict[str, str]:
    """List every row that is not trained on in the run's folder, and say where; nothing where none is."""
    preparation = getattr(getattr(trainer, "datamodule", None), "preparation", None)
    if preparation is None:
        return {}
    file = Path(folder or trainer.default_root_dir) / DROPPED
    count = preparation.write_left_out(file)
    return {"left out": f"{count:,} rows, each with its reason in {file}"} if count else {}


def suspicious_lines(trainer: Any) -> list[str]:
    """Return what `inspect` would find wrong or surprising in the data of a run, a few lines at most."""
    data: Any = getattr(trainer, "datamodule", None)
    if getattr(data, "preparation", None) is None:
        return []
    splits = gather(data.preparation, ("train", "validation"))
    most = data.cleaning.max_dropped
    return brief(examine(splits, data.processor, Rules.of(data), max_dropped=most, with_rows=False))


def stop_token_rows(trainer: Any, module: Any) -> dict[str, str]:
    """Return a warning where answers end with a token the model does not know and will not learn."""
    report = getattr(getattr(trainer, "datamodule", None), "report", None)
    train = None if report is None else report().get("train")
    if train is None or not hasattr(module, "model"):
        return {}
    ids = {trainer.datamodule.processor.convert_tokens_to_ids(token): token for token in train.stop_tokens}
    names = [ids[token] for token in unlearnable_stop_tokens(module.model, list(ids))]
    if not names:
        return {}
    unlearned = f"the base may never have learned to stop with {', '.join(names)}, nor will LoRA"
    advice = f"set model.trainable_tokens: {names}, or a chat template that ends with the base's own token"
    return {"warning": f"{unlearned}: {advice}"}


def batch_rows(trainer: Any) -> dict[str, str]:
    """Return how the first steps are split and what of it is wasted; nothing for a foreign sampler."""
    plan = getattr(trainer.train_dataloader, "plan", None)
    if not isinstance(plan, PlannedSampler):
        return {}
    budget = getattr(trainer.datamodule, "token_budget", None)
    chosen = {} if budget is None else {"tokens per batch": f"{budget.tokens:,} ({budget.reason})"}
    return chosen | {"micro-batches": report_plan(plan, _STEPS_REPORTED).words(plan.split)}


def step_rows(trainer: Any) -> dict[str, str]:
    """Return the counts of optimizer steps and of the pairs in each; the training data must be set up."""
    accumulate, devices = trainer.accumulate_grad_batches, trainer.world_size
    total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    per_epoch = math.ceil(batches / accumulate) if batches != float("inf") else "unknown"
    rows = {"steps": f"{total} in all, {per_epoch} per pass over the data"}
    batch_size = getattr(trainer.train_dataloader, "batch_size", None)
    batch_size = batch_size or getattr(getattr(trainer.datamodule, "hparams", {}), "batch_size", None)
    if batch_size:
        factors = f"batch {batch_size} x {accumulate} accumulated x {devices} devices"
        rows["pairs per step"] = f"{batch_size * accumulate * devices} ({factors})"
    return rows
