"""The command line: LightningCLI that fills what the configuration leaves open, and says why."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import lightning
import transformers
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from orpo_lightning import runfolder
from orpo_lightning.checkpoint_io import IntactCheckpointIO
from orpo_lightning.cli_errors import report
from orpo_lightning.cli_fill import (
    check_base_model,
    check_length,
    expand_home,
    fill_epochs,
    fill_hardware,
    fill_run_folder,
    fill_strategy,
    fill_tokenizer,
    trusted_code,
)
from orpo_lightning.cli_parser import OneLineParser, UniqueKeysConfigFile
from orpo_lightning.cli_run import add_curves, cut_curves, run_callbacks
from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.masking import mask
from orpo_lightning.module import PreferenceModule
from orpo_lightning.observing.defaults import OF_TRAINER
from orpo_lightning.run_lock import RunLock
from orpo_lightning.run_settings import BASE, changed_model, refuse
from orpo_lightning.safe_config import FLAG, enforce_denylist, refuse_unlisted
from orpo_lightning.saved_config import SaveRunConfig
from orpo_lightning.stop_signals import StopSignals

_SEED = 42
# Lightning speaks of these in every run; none of them asks for anything to be done.
_NOISE = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*The dirpath has changed.*",
    ".*smaller than the logging interval.*",
    ".*treespec, LeafSpec.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*is_gradient_checkpointing. is deprecated.*",
)


class PreferenceCLI(LightningCLI):
    """LightningCLI for preference training; `PreferenceCLI(MyModule, MyData)` serves classes of your own too.

    Args:
        model_class: Your LightningModule; PreferenceModule where left out.
        datamodule_class: Your LightningDataModule; PreferenceDataModule where left out.
        kwargs: Further arguments of LightningCLI, which win over the defaults here; and `signals`, the
            StopSignals that the process is within.
    """

    def __init__(self, model_class: Any = None, datamodule_class: Any = None, **kwargs: Any) -> None:
        """Parse, fill, instantiate and run."""
        runfolder.log_to_console(_rank())
        enforce_denylist()
        given = kwargs.get("args")
        if not isinstance(given, (dict, Namespace)):  # these are code of the caller's
            refuse_unlisted(sys.argv[1:] if given is None else given)
        self.signals: StopSignals = kwargs.pop("signals", None) or StopSignals()
        _quiet_lightning()
        datamodule_class = datamodule_class or PreferenceDataModule
        trainer_defaults = {
            # Our data module shares out the pairs itself; any other needs the sampler.
            "use_distributed_sampler": not _is_ours(datamodule_class),
            **OF_TRAINER,
            **kwargs.pop("trainer_defaults", {}),
        }
        defaults: dict[str, Any] = {
            "seed_everything_default": _SEED,
            "save_config_callback": SaveRunConfig,
            "save_config_kwargs": {"save_to_log_dir": False},
            "parser_class": OneLineParser,
            "parser_kwargs": {"prog": "orpo-lightning"},
            # Built before configure_model, an automatic optimizer would find no parameters.
            "auto_configure_optimizers": False,
        }
        self.lock: RunLock | None = None
        try:
            super().__init__(
                model_class or PreferenceModule,
                datamodule_class,
                trainer_defaults=trainer_defaults,
                **{**defaults, **kwargs},
            )
        finally:
            if self.lock is not None:
                self.lock.release()

    # Parsing

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the subcommands and the arguments of the Trainer's methods that are ours to give."""
        ours = {"model", "datamodule", "ckpt_path", "weights_only"}
        return {
            "fit": {*ours, "train_dataloaders", "val_dataloaders"},
            "validate": {*ours, "dataloaders"},
            "test": {*ours, "dataloaders"},
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser whose `--config` refuses doubled keys."""
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={lightning.__version__}"])
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=UniqueKeysConfigFile,
            help="YAML file of keys; may be given again, the later file wins.",
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's own keys."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of config.yaml, checkpoints, adapter, tb, log. (default: runs/NAME_OF_FIRST_CONFIG)",
        )
        parser.add_argument(
            "--resume",
            type=str,
            default="none",
            help="Checkpoint to start from: auto (the run folder's newest), none, or a path.",
        )
        parser.add_argument(
            "--save_every",
            type=PositiveInt,
            default=50,
            help="Optimizer steps between two saves of checkpoints/last.ckpt.",
        )
        parser.add_argument(
            FLAG,
            action="store_true",
            help="Import no class that a configuration names but those on a list; docs/security.md.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; unlike the parent, do not mind `args` in a process that was given some of its own."""
        given = isinstance(args, (dict, Namespace))
        self.config = parser.parse_object(args) if given else parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, on purpose.

        The parent merges a checkpoint's hyper-parameters over the YAML file and the flags, without a word.
        Here flags beat YAML beats defaults, and a checkpoint never overrides either; an adapter that does not
        fit is refused where it is loaded.
        """

    # Between parsing and running

    def before_instantiate_classes(self) -> None:
        """Fill what is left open, check what was set, choose the checkpoint, open the run's log."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        training = self.subcommand in ("fit", None)
        expand_home(config)
        self.header = fill_hardware(config) | fill_strategy(config)
        if training:
            check_length(config)
            self.header |= fill_epochs(config)
        fill_tokenizer(config)
        self.header |= trusted_code(config)
        self.run_folder = fill_run_folder(config, _config_files(self.config, config))
        self.checkpoint = runfolder.choose_checkpoint(self.run_folder, config.resume, training)
        self._refuse_other_base(config)
        if isinstance(self.model_class, type) and issubclass(self.model_class, PreferenceModule):
            check_base_model(config)
        if _rank() == 0 and training:
            self.lock = RunLock(self.run_folder)
        self.header |= {"weights from": self.checkpoint.words, "written to": str(self.run_folder)}
        if _rank() == 0:
            runfolder.log_to_file(self.run_folder)

    def _refuse_other_base(self, config: Namespace) -> None:
        """Compare the base model's name with the checkpoint's before another one is downloaded."""
        saved, model = (self.checkpoint.content or {}).get("hyper_parameters"), config.get("model")
        here = vars(mask(model)) if isinstance(model, Namespace) else {}  # as they are saved
        if saved and changed_model(saved, here, BASE):
            refuse(changed_model(saved, here))

    def before_fit(self) -> None:
        """Let the curves go on where the checkpoint stands."""
        cut_curves(self.trainer, self.checkpoint.content)

    def after_instantiate_classes(self) -> None:
        """Keep secrets out of loggers, and two of Lightning's warnings for those of which they are true."""
        parts: tuple[Any, Any] = (self.model, self.datamodule)
        for part in parts:
            if hasattr(part, "hparams_initial"):
                part._hparams_initial = mask(part.hparams_initial)
        if isinstance(self.datamodule, PreferenceDataModule):
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        if isinstance(self.model, PreferenceModule):  # it sums its metrics over ranks before it logs them
            warnings.filterwarnings("ignore", ".*recommended to use `self.log.*sync_dist=True.*")

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Build the Trainer with the run's callbacks, besides those of the configuration."""
        trainer_config = self._get(self.config_init, "trainer")
        given = trainer_config.get("callbacks") or []
        given = list(given) if isinstance(given, Iterable) else [given]
        ours = run_callbacks(
            given,
            trainer_config,
            self.run_folder,
            header=self.header,
            save_every=self._get(self.config, "save_every"),
            signals=self.signals,
            is_preference=isinstance(self.model, PreferenceModule),
        )
        trainer = super().instantiate_trainer(**{**kwargs, "callbacks": [*given, *ours]})
        training = self.subcommand in ("fit", None)
        add_curves(trainer, self.run_folder, None if training else self.checkpoint.content)
        if (
            type(trainer.strategy.checkpoint_io) is TorchCheckpointIO
        ):  # neither the user's nor a strategy's own
            trainer.strategy.checkpoint_io = IntactCheckpointIO()
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        path = None if self.checkpoint.path is None else str(self.checkpoint.path)
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": path}


def _rank() -> int:
    # Lightning's own launcher on a further node knows its rank only when the Trainer is there.
    return rank_zero_only.rank or int(os.environ.get("NODE_RANK", "0"))  # type: ignore[attr-defined]


def _is_ours(datamodule_class: Any) -> bool:
    return isinstance(datamodule_class, type) and issubclass(datamodule_class, PreferenceDataModule)


def _config_files(whole: Namespace, config: Namespace) -> list[str]:
    return [str(path) for path in [*(whole.get("config") or []), *(config.get("config") or [])] if path]


def _quiet_lightning() -> None:
    """Silence advertisements and what the header says better; warnings that matter still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Which child process ended, before it kills all others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def main(args: list[str] | None = None, model_class: Any = None, datamodule_class: Any = None) -> int:
    """Run `PreferenceCLI` and return its exit code; every error of the user is one line on stderr.

    Args:
        args: The words after the program's name; None takes them from `sys.argv`.
        model_class: Your LightningModule instead of PreferenceModule.
        datamodule_class: Your LightningDataModule instead of PreferenceDataModule.
    """
    runfolder.log_to_console(_rank())
    try:
        with StopSignals() as signals:
            PreferenceCLI(model_class, datamodule_class, args=args, signals=signals)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return report(error)
    finally:
        runfolder.close_log_file()
    return 0
