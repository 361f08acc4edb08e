"""The `config.yaml` of a run: everything resolved, nothing secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.cli import SaveConfigCallback

from orpo_lightning.callbacks import TrialWatch
from orpo_lightning.cli_fill import filled_places
from orpo_lightning.full_disk import RUN_ELSEWHERE
from orpo_lightning.masking import mask
from orpo_lightning.whole_files import whole_file


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration of a training run to `config.yaml` in its folder."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Save before training; a validation or test leaves the file of the training alone."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save again where a key was left open that only model and data together could fill."""
        budget = getattr(trainer.datamodule, "token_budget", None)  # type: ignore[attr-defined]
        if budget is None or not trainer.is_global_zero or not self.already_saved:
            return
        arguments = self.config.data.get("init_args", self.config.data)
        arguments.tokens_per_batch = budget.tokens
        self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Write the file, secrets masked; a resumed run replaces it by what it runs with now.

        What was filled with the run's folder is left open, so that `--run_dir` alone says where the file's
        settings are run again. So is what a sweep watches its trials with: it would end any other run.

        Raises:
            SurroundingsError: the disk is full; the file that was there is still there.
        """
        path = Path(self.config.run_dir) / "config.yaml"
        settings = {"skip_none": False, "overwrite": True, "multifile": False, "skip_validation": True}
        saved = mask(self.config)
        for key in filled_places(self.config):
            saved[key] = None
        if isinstance(saved.trainer.get("callbacks"), list):
            saved.trainer.callbacks = [one for one in saved.trainer.callbacks if not _watches(one)] or None
        with whole_file(path, "the configuration", RUN_ELSEWHERE) as staging:
            self.parser.save(saved, str(staging), **settings)


def _watches(callback: Any) -> bool:
    return str(getattr(callback, "class_path", "")).rpartition(".")[2] == TrialWatch.__name__
