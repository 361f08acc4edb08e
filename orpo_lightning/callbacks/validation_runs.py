"""What a validation needs beside its batches: a size from a budget, the base's values, the end on all."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning
import torch

from orpo_lightning.base_logps import FOLDER, BaseLogps, fingerprint, without_adapter
from orpo_lightning.errors import UsageError
from orpo_lightning.modeling import causal_model

log = logging.getLogger(__name__)

FEWEST = 64
"""Pairs of the smallest sample that a budget leads to, and of the one it is measured on."""


class ValidationRuns(lightning.Callback):
    """Keeps what `data.validation_budget` and `data.final_validation` promise; `PreferenceModule` brings it.

    The budget becomes a number of pairs once, at the first validation: the training time since the run began,
    times the share, times the pairs that a forward pass over a small stratified sample managed a second. The
    number then stays, also in a run that goes on from a checkpoint, so that all values are of the same pairs.
    """

    def __init__(self) -> None:
        """Start without a clock."""
        self._clock: tuple[float, int] | None = None
        self._seen_step = self._steps = 0
        self._last: tuple[int, int] | None = None
        self._has_new_size = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._seen_step, self._steps = trainer.global_step, 0
        self._clock = (time.perf_counter(), 0)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Start the clock again after the first step, which takes longer than all others."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step, self._steps = trainer.global_step, self._steps + 1
        if self._steps == 1:
            self._first_step = self._elapsed(pl_module)
            self._clock = (time.perf_counter(), 1)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fix the size of the sample, and open what is known of the base."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "validation_pairs", None) is None:
            return
        _open_base(trainer, pl_module, data)
        is_due = data.validation_budget is not None and data.measured_size is None
        if is_due and trainer.state.fn == "fit" and not trainer.sanity_checking and self._steps:
            self._fix_size(trainer, pl_module, data)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Keep the base's values, and note what was validated on."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "validation_pairs", None) is None:
            return
        _keep_base(trainer, pl_module)
        if not trainer.sanity_checking:
            self._last = (trainer.global_step, data.validation_pairs.size)
        if self._has_new_size:
            _plan_again(trainer)
            self._has_new_size = False

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Validate on all pairs, where that is asked for and not just done."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pairs = getattr(data, "validation_pairs", None)
        if pairs is None or data.final_validation != "full":
            return
        if self._last == (trainer.global_step, len(pairs.whole)) or not trainer.enable_validation:
            return
        size = pairs.size
        data.resize_validation(None)
        pl_module.validation_name = "val_full"
        _plan_again(trainer)
        # As the training loop does it: what is logged in between belongs to the validation.
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        pl_module.validation_name = "val"
        data.resize_validation(size)

    def _elapsed(self, module: lightning.LightningModule) -> float:
        assert self._clock is not None
        _wait_for(module.device)
        return time.perf_counter() - self._clock[0]

    def _fix_size(self, trainer: lightning.Trainer, module: lightning.LightningModule, data: Any) -> None:
        assert self._clock is not None
        steps = self._steps - self._clock[1]
        each = self._elapsed(module) / steps if steps else self._first_step
        rate = _pairs_per_second(trainer, module, data)
        size = budgeted_size(data.validation_budget, each * trainer.global_step, rate)
        size = int(trainer.strategy.broadcast(size))
        data.resize_validation(size, keep=True)
        self._has_new_size = True
        pairs = data.validation_pairs
        log.info(
            "validation on %s of %s pairs from now on: %.3g %% of %d steps of %.3g s, at %.3g pairs/s%s",
            f"{pairs.size:,}",
            f"{len(pairs.whole):,}",
            100 * data.validation_budget,
            trainer.global_step,
            each,
            rate,
            f" (at least {FEWEST})" if size == FEWEST else "",
        )


def require_validation_runs(trainer: Any) -> None:
    """Stop where nobody would keep what the data module promises about validation.

    Raises:
        UsageError: the module brings no `ValidationRuns`, nor does the Trainer have it.
    """
    if trainer is not None and not any(isinstance(one, ValidationRuns) for one in trainer.callbacks):
        raise UsageError(
            "data.validation_budget and data.final_validation need the callback ValidationRuns, which "
            "PreferenceModule brings: add it in configure_callbacks of your module"
        )


def budgeted_size(share: float, seconds: float, pairs_per_second: float) -> int:
    """Return how many pairs a share of some seconds of training pays for, at least FEWEST."""
    return max(FEWEST, int(share * seconds * pairs_per_second))


def _pairs_per_second(trainer: lightning.Trainer, module: lightning.LightningModule, data: Any) -> float:
    """Return what all ranks together score a second, measured on the first pairs of the order."""
    pairs, loader = data.validation_pairs, data.validation_loader
    some = pairs.first(FEWEST)
    loader.plan.take(some)
    batches = [trainer.strategy.batch_to_device(batch) for batch in loader]
    loader.plan.take(pairs.chosen)
    with trainer.precision_plugin.val_step_context():
        module(batches[0])  # what happens at a first call only is no part of it
        _wait_for(module.device)
        start = time.perf_counter()
        for batch in batches:
            module(batch)
        _wait_for(module.device)
    return len(some) / max(time.perf_counter() - start, 1e-9)


def _plan_again(trainer: lightning.Trainer) -> None:
    """Let Lightning ask for the loader anew: it counts a loader's batches only then."""
    trainer.fit_loop.epoch_loop.val_loop._combined_loader = None


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _open_base(trainer: lightning.Trainer, module: Any, data: Any) -> None:
    """Give the module the base's known values of the pairs it validates on, once for each set of pairs."""
    whole = data.validation_pairs.whole
    of_pairs = whole.fingerprint()
    if module.base_logps is not None and module.base_logps.of_pairs == of_pairs:
        return
    module.base_logps = None
    if not module.hparams.get("lora_r") or without_adapter(module.model, module.hparams["lora_init"]) is None:
        return
    key = fingerprint(
        module.model,
        pairs=of_pairs,
        precision=trainer.precision,
        attention=module.attention_choice.value,
        quantization=module.hparams["quantization"],
        config=_computation(causal_model(module.model).config),
    )
    module.base_logps = BaseLogps(data.cache_dir / FOLDER / f"{key[:32]}.npy", len(whole), of_pairs)


def _computation(config: Any) -> dict[str, Any]:
    """Return what a config says of how the weights are used (rotary positions, scales, windows): no paths."""
    said = config.to_dict()
    return {name: said[name] for name in said.keys() - {"_name_or_path", "transformers_version"}}


def _keep_base(trainer: lightning.Trainer, module: Any) -> None:
    if module.base_logps is None:
        return
    if trainer.world_size > 1:
        known = torch.from_numpy(module.base_logps.values).to(module.device)
        module.base_logps.merge(module.all_gather(known))
    if trainer.is_global_zero:
        module.base_logps.save()
