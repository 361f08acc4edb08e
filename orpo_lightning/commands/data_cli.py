"""The configuration of `fit` for commands that need the data alone: no model, no Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from orpo_lightning import runfolder
from orpo_lightning.cli import PreferenceCLI
from orpo_lightning.cli_fill import fill_tokenizer
from orpo_lightning.data.datamodule import PreferenceDataModule


class DataCLI(PreferenceCLI):
    """Reads the keys of `fit`, from the same files and with the same errors, and builds the data module.

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
        self._add_options, self._data_class = add_options, datamodule_class
        parser_kwargs = {"prog": f"orpo-lightning {name}"}
        super().__init__(None, datamodule_class, args=args, run=False, parser_kwargs=parser_kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of a run and the command's own options."""
        super().add_arguments_to_parser(parser)
        self._add_options(parser)

    def _set_seed(self) -> None:
        """Leave the random state alone: the data depends on `data.seed` and on nothing else."""

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

    def after_instantiate_classes(self) -> None:
        """Do nothing: there is neither module nor Trainer to warn of."""


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
