"""A callback that makes something happen at a chosen moment of a run."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning
import torch


class Strike(lightning.Callback):
    """At a hook, once `step` optimizer steps are done, does something so many times.

    Args:
        where: name of the hook.
        step: optimizer steps that must be done.
        do: the name of a signal to send to this process (with " to all": to its whole group); "stop" as a
            timer does; or what goes wrong: "nan gradient", "nan loss" (of the batch that begins), "zero
            gradient", "frozen weight".
        times: how often; -1 for ever.
        rank: the only rank it happens on; -1 is all.
    """

    def __init__(self, where: str, step: int, do: str, times: int = 1, rank: int = -1) -> None:
        """Take the hook's place."""
        self.step, self.do, self.times, self.rank = step, do, times, rank
        setattr(self, where, self._strike)

    def _strike(self, trainer: Any, module: Any, *args: Any, **named: Any) -> None:
        if trainer.sanity_checking or trainer.global_step < self.step or self.times == 0:
            return
        if self.rank not in (-1, trainer.global_rank):
            return
        self.times -= 1
        if self.do == "stop":
            trainer.should_stop = True
        elif self.do == "nan loss":
            _spoil_next_forward(module)
        elif self.do == "frozen weight":
            frozen = next(p for p in module.parameters() if not p.requires_grad)
            with torch.no_grad():
                frozen.view(-1)[0] += 1
        elif self.do.endswith("gradient"):
            for gradient in (p.grad for p in module.parameters() if p.grad is not None):
                gradient.fill_(float("nan") if self.do.startswith("nan") else 0)
        elif self.do.endswith(" to all"):
            os.killpg(0, getattr(signal, self.do.removesuffix(" to all")))
        else:
            os.kill(os.getpid(), getattr(signal, self.do))


def _spoil_next_forward(module: Any) -> None:
    whole = module.forward

    def spoiled(batch: Any) -> Any:
        module.forward = whole
        policy = whole(batch)
        return policy._replace(chosen_sum=policy.chosen_sum * float("nan"))

    module.forward = spoiled
