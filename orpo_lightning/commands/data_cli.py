"""The configuration of `fit` for commands that need the data alone: no model, no Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from orpo_lightning import runfolder
from orpo_lightning.cli_fill import fill_tokenizer
from orpo_lightning.commands.config_cli import ConfigCLI
from orpo_lightning.data.datamodule import PreferenceDataModule


class DataCLI(ConfigCLI):
    """Builds the data module of a configuration, and nothing else of it.

    Args:
        name: the command, for messages.
        args: the words behind it.
        add_options: adds the command's own options to the parser.
        datamodule_class: PreferenceDataModule or a subclass of it.
    """

    datamodule: Any  # a PreferenceDataModule; LightningCLI declares another type

    def __init__(
        self,
        name: str,
        args: list[str],
        *,
        add_options: Callable[[LightningArgumentParser], None] = lambda parser: None,
        datamodule_class: type[PreferenceDataModule] = PreferenceDataModule,
    ) -> None:
        """Parse, fill and build."""
        self._data_class = datamodule_class
        super().__init__(name, args, add_options=add_options, datamodule_class=datamodule_class)

    def before_instantiate_classes(self) -> None:
        """Fill the tokenizer, and find the run's folder without writing to it."""
        fill_tokenizer(self.config)
        files = [str(path) for path in self.config.get("config") or [] if path]
        self.run_folder = runfolder.run_folder(self.config.run_dir, files)

    def instantiate_classes(self) -> None:
        """Build the data module alone: its arguments first, then itself."""
        # With its groups, the parser would build the model and the Trainer too, from nothing.
        arguments = self.parser.instantiate_classes(
            Namespace(data=self.config.data), instantiate_groups=False
        ).data
        self.datamodule = self._data_class(**arguments)


def device_count(trainer: Namespace) -> int:
    """Return how many devices a Trainer of this configuration would use, all nodes together."""
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, int) and devices > 0:
        return devices * nodes
    if isinstance(devices, str) and devices != "auto":
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, list):
        return max(1, len(devices)) * nodes
    return _all_devices(trainer.get("accelerator", "auto")) * nodes


def _all_devices(accelerator: Any) -> int:
    import torch

    return max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
