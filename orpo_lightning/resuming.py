"""What a module writes into its checkpoints beside the weights, and what it makes of that when it goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from orpo_lightning import __version__
from orpo_lightning.adapter_state import check_same_weights
from orpo_lightning.masking import mask
from orpo_lightning.run_settings import changed_model, changed_options, recount, refuse

log = logging.getLogger(__name__)
KEY = "orpo_lightning"
_FORMAT = 1
_OF_TRAINER = ("precision", "gradient_clip_val", "max_steps", "max_epochs")
"""Settings of the Trainer that may change, and are told then."""


def extra_state(module: Any) -> dict[str, Any]:
    """Return what was added up since the last logged step, of every rank. All ranks must call it together."""
    sums: list[Any] = [module.train_means.sums()]
    if module.trainer.world_size > 1:
        sums = sums * module.trainer.world_size
        torch.distributed.all_gather_object(sums, sums[0])
    norm = module.grad_norm
    return {
        "format": _FORMAT,
        "versions": {"orpo_lightning": __version__, "torch": str(torch.__version__)},
        "train_sums": sums,
        "grad_norm": None if norm is None else float(norm),
        "optimizer": _class_of(module.optimizer_made),
        "trainer": _settings_of(module.trainer),
    }


def is_unlogged(checkpoint: Mapping[str, Any]) -> bool:
    """Tell whether the values of a checkpoint's own step were still to be logged when it was saved."""
    return checkpoint.get(KEY, {}).get("grad_norm") is not None


def restore_extra_state(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Take over what this rank had added up; of another number of ranks, all of it on the first."""
    state = checkpoint.get(KEY)
    if state is None:
        return
    sums, rank = state["train_sums"], module.trainer.global_rank
    if len(sums) == module.trainer.world_size:
        module.train_means.go_on_from(sums[rank], module.device)
    elif full := [one for one in sums if one["names"]]:
        totals = sum(one["totals"] for one in full)
        # Nothing on the other ranks, but in the same shape: they add up together.
        totals = torch.zeros_like(totals) if rank else totals
        module.train_means.go_on_from({**full[0], "totals": totals}, module.device)
    norm = state["grad_norm"]
    module.grad_norm = None if norm is None else torch.tensor(norm, device=module.device)


def refuse_other_run(module: Any, checkpoint: dict[str, Any]) -> None:
    """Compare a checkpoint with the run that is to go on from it, before anything of it is loaded.

    Raises:
        CheckpointError: lists each difference in model, data and plan, or names the first weight that
        differs.
    """
    saved, here = checkpoint.get("hyper_parameters", {}), mask(module.hparams)  # as they are saved
    found = changed_model(saved, here)
    trainer = module._trainer
    data: Any = None if trainer is None else getattr(trainer, "datamodule", None)
    position = None if data is None else checkpoint.get(type(data).__qualname__)
    training = trainer is not None and trainer.state.fn == "fit"
    if training and position and hasattr(data, "other_run"):
        found += data.other_run(position)
    refuse(found)
    check_same_weights(checkpoint["state_dict"], module.state_dict())
    options = changed_options(saved, here)
    if training:
        options += changed_options(checkpoint.get(KEY, {}).get("trainer", {}), _settings_of(trainer))
    if options:
        log.info("changed since the checkpoint: %s", ", ".join(options))
    if training and position and "accumulate" in position:
        recount(checkpoint["loops"]["fit_loop"], position, data.split_of_steps())


def refuse_other_optimizer(saved: str | None, optimizer: torch.optim.Optimizer | None) -> None:
    """Compare the optimizer that a checkpoint's state is of with this run's, before the state is loaded.

    Args:
        saved: what `extra_state` has written; None where it is of a version that did not.
        optimizer: this run's; None where it is not made yet, or made by a subclass.

    Raises:
        CheckpointError: they keep different states, so that the one means nothing to the other.
    """
    here = _class_of(optimizer)
    if not saved or not here:
        return
    if _kind_of_state(saved) != _kind_of_state(here):
        refuse([f"model.optimizer {saved} became {here}, which cannot take over its state"])
    if _short(saved) != _short(here):
        log.info("changed since the checkpoint: model.optimizer %s became %s", saved, here)


def _class_of(optimizer: torch.optim.Optimizer | None) -> str | None:
    kind = type(optimizer)
    return None if optimizer is None else f"{kind.__module__}.{kind.__qualname__}"


def _short(name: str) -> tuple[str, str]:
    """Return the package and the class of a class's full name: a version may move it from file to file."""
    return name.partition(".")[0], name.rpartition(".")[2]


def _kind_of_state(name: str) -> tuple[str, str]:
    """Return what optimizers of one state have in common: its pages and weight decay change nothing in it."""
    package, kind = _short(name)
    return package, kind.removeprefix("Paged").replace("AdamW", "Adam")


def _settings_of(trainer: Any) -> dict[str, Any]:
    return {key: getattr(trainer, key) for key in _OF_TRAINER}
