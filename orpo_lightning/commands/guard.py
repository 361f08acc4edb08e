"""Every error of a command's user is one line on stderr and an exit code, as in training."""

from __future__ import annotations

from collections.abc import Callable

from orpo_lightning import runfolder
from orpo_lightning.cli_errors import report


def guarded(command: Callable[[], int], *, quiet: bool = False) -> int:
    """Run a command and return its exit code, or that of what went wrong.

    Args:
        command: returns an exit code.
        quiet: keep all messages but errors off the terminal.
    """
    runfolder.log_to_console(1 if quiet else 0)
    try:
        return command()
    except KeyboardInterrupt:
        runfolder.PACKAGE_LOGGER.error("interrupted")
        return 130
    except (Exception, SystemExit) as error:
        return report(error)
