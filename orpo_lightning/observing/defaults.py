"""What a run's settings are where nobody sets them: read off the classes that take them."""

from __future__ import annotations

import dataclasses
import inspect
from functools import cache
from typing import Any

import lightning
import torch

from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.module import PreferenceModule
from orpo_lightning.observing.run_files import flat

OF_TRAINER = {
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # the header says it
}
"""Where the command line's Trainer differs from Lightning's own."""
OF_RUN = {"seed_everything": 42, "save_every": 50, "resume": "none", "safe_config": False}


@cache
def defaults() -> dict[str, Any]:
    """Return the default of every key of a config.yaml, flat, as `changed` compares them."""
    trainer = _of(lightning.Trainer) | OF_TRAINER | {"use_distributed_sampler": False}
    model = _of(PreferenceModule)
    model["objective"] = _spelled(f"orpo_lightning.{type(model['objective']).__name__}", model["objective"])
    model["optimizer"] = _optimizer(model["optimizer"])
    return OF_RUN | flat({"trainer": trainer, "model": model, "data": _of(PreferenceDataModule)})


def _of(kind: Any) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {one.name: _plain(one.default) for one in parameters if one.default is not one.empty}


def _plain(value: Any) -> Any:
    """Return a value as YAML gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _spelled(name: str, objective: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": dataclasses.asdict(objective)}


def _optimizer(make: Any) -> dict[str, Any]:
    made = make([torch.nn.Parameter(torch.zeros(1))])
    settings = {key: _plain(value) for key, value in made.defaults.items()}
    return {"class_path": f"torch.optim.{type(made).__name__}", "init_args": settings}
