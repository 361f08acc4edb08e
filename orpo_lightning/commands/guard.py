"""Every error of a command's user is one line on stderr and an exit code, as in training."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from orpo_lightning import runfolder
from orpo_lightning.cli_errors import Advice, report

_NONE = Advice("", "")


def run_verb(args: list[str], help_text: str, work: Callable[[list[str]], int], *, memory: str = "") -> int:
    """Print a verb's help where that is asked for, else do its work; return the exit code.

    Args:
        args: the words behind the verb; with `--json` among them nothing else is printed but errors.
        help_text: of the verb.
        work: returns an exit code.
        memory: what to do when it is out of memory.
    """
    if {"-h", "--help"} & set(args):
        print(help_text, end="")
        return 0
    advice = Advice(memory, "--out" if "  --out " in help_text else "")
    return guarded(lambda: work(args), quiet="--json" in args, advice=advice)


def guarded(command: Callable[[], int], *, quiet: bool = False, advice: Advice = _NONE) -> int:
    """Run a command and return its exit code, or that of what went wrong.

    Args:
        command: returns an exit code.
        quiet: keep all messages but errors off the terminal.
        advice: for its errors.
    """
    runfolder.log_to_console(1 if quiet else 0)
    # Told of every model that is loaded; nothing in it is wrong here.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing. is deprecated.*")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return command()
    except KeyboardInterrupt:
        runfolder.PACKAGE_LOGGER.error("interrupted")
        return 130
    except (Exception, SystemExit) as error:
        return report(error, advice)
