"""Looking at a model in the middle of its training, so that training goes on as if nobody had looked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from orpo_lightning.base_logps import without_adapter


@contextmanager
def undisturbed(trainer: Any, module: Any) -> Iterator[None]:
    """Eval mode, no gradients, the run's precision; modes, random state and clock are given back after it.

    Args:
        trainer: of the run.
        module: with `model`, and with `speed`, the clock that counts training alone.
    """
    modes = [(part, part.training) for part in module.modules()]
    devices = [module.device] if module.device.type == "cuda" else []
    pausing = not trainer.validating and hasattr(module, "speed")
    if pausing:
        module.speed.pause()
    module.eval()
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            trainer.precision_plugin.val_step_context(),
        ):
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        if pausing:
            module.speed.resume()


def as_base(module: Any, step: int) -> AbstractContextManager[Any] | None:
    """Return a context in which a module's model is the base; None where the base cannot be had any more.

    Args:
        module: a `PreferenceModule` with its model.
        step: optimizer steps done: before the first one any model is its base.
    """
    settings = module.hparams
    switch_off = without_adapter(module.model, settings["lora_init"]) if settings["lora_r"] else None
    if switch_off is not None:
        return switch_off()
    return nullcontext() if step == 0 else None
