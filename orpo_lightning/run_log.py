"""The log in a run's folder."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

from orpo_lightning.full_disk import RUN_ELSEWHERE, full_disk, is_full
from orpo_lightning.masking import mask_text


class RunLogHandler(logging.FileHandler):
    """Appends messages to a file, secrets masked; a disk that is full ends the run.

    `logging` itself would print a traceback at each message that cannot be written, and go on.
    """

    def __init__(self, file: Path, logger: logging.Logger) -> None:
        """Open the file, whose handler of `logger` this will be."""
        super().__init__(file, encoding="utf-8")
        self._logger = logger
        self.setFormatter(_MaskingFormatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - overridden
        """Stop writing, and say why.

        Raises:
            SurroundingsError: the disk is full.
        """
        error = sys.exc_info()[1]
        self._logger.removeHandler(self)  # what is said about it would come here again
        self.close()
        if error is not None and is_full(error):
            file = Path(self.baseFilename)
            raise full_disk(file, "the log", RUN_ELSEWHERE) from error
        super().handleError(record)

    def close(self) -> None:
        """Close the file; what could not be written before cannot be now."""
        with suppress(OSError):
            super().close()


class _MaskingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))
