"""ORPO preference training for PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "ORPO",
    "Objective",
    "ObjectiveOutput",
    "PairLogps",
    "PreferenceCLI",
    "PreferenceDataModule",
    "PreferenceModule",
    "__version__",
    "main",
]

if TYPE_CHECKING:
    from orpo_lightning.cli import PreferenceCLI, main
    from orpo_lightning.data.datamodule import PreferenceDataModule
    from orpo_lightning.logps import PairLogps
    from orpo_lightning.module import PreferenceModule
    from orpo_lightning.objectives import ORPO, Objective, ObjectiveOutput

# Looked up on first use: importing Lightning takes seconds, and `--help` or a pure function needs none of it.
_HOMES = {
    "ORPO": "objectives",
    "Objective": "objectives",
    "ObjectiveOutput": "objectives",
    "PairLogps": "logps",
    "PreferenceCLI": "cli",
    "PreferenceDataModule": "data.datamodule",
    "PreferenceModule": "module",
    "main": "cli",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
