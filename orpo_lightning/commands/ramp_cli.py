"""The configuration of `fit`, built to train a few steps of which nothing is kept."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from orpo_lightning import runfolder
from orpo_lightning.callbacks import LostRanks, MemoryReport, RunHeader, StopAtSignal
from orpo_lightning.callbacks.rate_ramp import RateRamp
from orpo_lightning.cli import PreferenceCLI
from orpo_lightning.cli_fill import (
    check_base_model,
    expand_home,
    fill_hardware,
    fill_strategy,
    fill_tokenizer,
    trusted_code,
)
from orpo_lightning.errors import DivergedError, UsageError

# Of the Trainer: whatever would write, validate, or end before the ramp does.
_OFF: dict[str, Any] = {
    "logger": False,
    "callbacks": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "max_epochs": -1,
    "max_time": None,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
}


class RampCLI(PreferenceCLI):
    """Builds module, data and Trainer of a configuration, all of it in a folder that is thrown away.

    Args:
        args: the words behind the command.
        folder: of whatever the Trainer writes.
    """

    def __init__(self, args: list[str], folder: Path) -> None:
        """Parse, fill and build."""
        self._folder = folder
        super().__init__(
            args=args,
            run=False,
            parser_kwargs={"prog": "orpo-lightning find-lr"},
            save_config_callback=None,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of a run and the command's own options."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--steps", type=PositiveInt, default=100, help="Optimizer steps.")
        parser.add_argument("--low", type=PositiveFloat, default=1e-6, help="The first learning rate.")
        parser.add_argument("--high", type=PositiveFloat, default=1.0, help="The last learning rate.")
        parser.add_argument("--out", type=str | None, default=None, help="Folder of page and numbers.")
        parser.add_argument("--json", action="store_true", help="Print everything as JSON.")

    def before_instantiate_classes(self) -> None:
        """Fill what `fit` fills, and switch off what would leave anything behind."""
        config = self.config
        if config.low >= config.high or config.steps < 2:
            raise UsageError(
                f"--low, --high, --steps: expected low below high and two steps or more, found "
                f"{config.low:g}, {config.high:g} and {config.steps}"
            )
        if config.json:
            runfolder.log_to_console(1)
        expand_home(config)
        self.header = fill_hardware(config) | fill_strategy(config)
        fill_tokenizer(config)
        self.header |= trusted_code(config)
        check_base_model(config)
        off = {key: value for key, value in _OFF.items() if key in config.trainer}
        off |= {"max_steps": int(config.steps), "default_root_dir": str(self._folder)}
        for key, value in off.items():
            config.trainer[key] = value
        self.header["learning rate"] = (
            f"from {config.low:g} to {config.high:g} in {config.steps} steps; nothing is kept"
        )
        self.ramp = RateRamp(config.low, config.high, config.steps)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Build the Trainer with the ramp, and without all that writes to a run's folder."""
        ours = [RunHeader(self.header), LostRanks(), StopAtSignal(self.signals), MemoryReport(), self.ramp]
        # Past PreferenceCLI's own, which is for runs.
        return LightningCLI.instantiate_trainer(self, **{**kwargs, "callbacks": ours})

    def climb(self) -> RateRamp:
        """Train until all steps are done or the loss has diverged; return the losses."""
        with suppress(DivergedError):  # nothing but NaN from here on: the ramp has what came before
            self.trainer.fit(self.model, datamodule=self.datamodule)
        return self.ramp
