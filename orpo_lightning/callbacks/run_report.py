"""Writes the page of a run when it ends, however it ends."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import lightning

from orpo_lightning.errors import SurroundingsError, first_line
from orpo_lightning.observing.defaults import defaults
from orpo_lightning.observing.run_files import read_run
from orpo_lightning.observing.summary import summary
from orpo_lightning.pages.files import write_text
from orpo_lightning.pages.report_page import report_page

log = logging.getLogger(__name__)
PAGE = "report.html"


class RunReport(lightning.Callback):
    """Writes `report.html` into the run's folder: what happened, settings, data, curves, answers, use.

    Of a run that was stopped or failed it shows what there is; one that could not even go on keeps the page
    it has. A page that cannot be written is one warning.
    """

    dirpath: str | None = None
    """The run's folder, as the command line sets it; the Trainer's default_root_dir where left open."""

    def __init__(self) -> None:
        """Start with a folder of one's own."""
        self._is_earlier = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """See whether the folder has a run already."""
        self._is_earlier = trainer.ckpt_path is not None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on it is this run's."""
        self._is_earlier = False

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write it, after everything else is saved."""
        self._write(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write what there is."""
        if trainer.state.fn == "fit" and not self._is_earlier:
            self._write(trainer)

    def _write(self, trainer: lightning.Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(self.dirpath or trainer.default_root_dir) / PAGE
        try:
            run = read_run(path.parent)
            write_text(path, report_page([run], [summary(run, defaults())]))
        except Exception as error:  # whatever it is: the run is done, its weights are saved
            with suppress(SurroundingsError):  # the log is on the disk that is full
                log.debug("traceback", exc_info=error)
                log.warning("%s was not written: %s: %s", path, type(error).__name__, first_line(error))
            return
        log.info("report: %s", path)
