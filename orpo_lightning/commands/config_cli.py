"""The configuration of `fit` for commands that build nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from orpo_lightning.cli import PreferenceCLI


class ConfigCLI(PreferenceCLI):
    """Reads the keys of `fit`, from the same files and with the same errors, into `config`.

    Args:
        name: the command, for messages.
        args: the words behind it.
        add_options: adds the command's own options to the parser.
        datamodule_class: whose arguments the keys of `data` are; PreferenceDataModule where left out.
    """

    def __init__(
        self,
        name: str,
        args: list[str],
        *,
        add_options: Callable[[LightningArgumentParser], None] = lambda parser: None,
        datamodule_class: Any = None,
    ) -> None:
        """Parse, and do what the subclass does with it."""
        self._add_options = add_options
        parser_kwargs = {"prog": f"orpo-lightning {name}"}
        super().__init__(None, datamodule_class, args=args, run=False, parser_kwargs=parser_kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of a run and the command's own options."""
        super().add_arguments_to_parser(parser)
        self._add_options(parser)

    def _set_seed(self) -> None:
        """Leave the random state alone: what a command says depends on its configuration only."""

    def before_instantiate_classes(self) -> None:
        """Fill nothing: what a key is filled with depends on this machine."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Do nothing: there is neither module nor Trainer to warn of."""
