"""Says at the end of training what it came to."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning

from orpo_lightning.errors import UsageError
from orpo_lightning.observing.finding import LEARNING
from orpo_lightning.observing.findings import findings
from orpo_lightning.observing.run_files import read_run

log = logging.getLogger(__name__)


class Verdict(lightning.Callback):
    """Prints whether the run learned preferences, or what went wrong, with the figures that show it.

    It reads what the run wrote into its folder, so that a resumed run is judged as a whole; report.html has
    the same sentences.
    """

    dirpath: str | None = None
    """The run's folder, as the command line sets it; the Trainer's default_root_dir where left open."""

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print a line for each finding."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(self.dirpath or trainer.default_root_dir)
        try:
            run = read_run(folder)
        except UsageError:  # nothing was written: no logger, no configuration
            log.debug("no files of a run in %s", folder)
            return
        for found in findings(run.curves, run.pairs):
            log.log(logging.INFO if found.kind == LEARNING else logging.WARNING, "%s", found.line)
